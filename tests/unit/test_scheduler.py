"""The scheduler against a runner that has no model but a KV cache it checks: every plan must be right."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from msgspec.structs import replace

from headrace.engine.core import Engine
from headrace.engine.grammar import Grammars
from headrace.engine.kv_cache import blocks_for
from headrace.engine.scheduler import Limits, Scheduler
from headrace.types import (
    EngineInfo,
    FinishReason,
    KVCacheLayout,
    KVGroup,
    Logprob,
    NewRow,
    Plan,
    PoolingParams,
    PositionLogprobs,
    Sampled,
    SamplingParams,
    Submit,
    TokenDelta,
)

VOCABULARY = 11
EOS = 0
STOP = 1


def digests(token_ids: list[int]) -> list[int]:
    """For each position, a number that stands for its keys and values: it depends on this token and all before."""
    found, parent = [], 7
    for token_id in token_ids:
        parent = hash((parent, token_id))
        found.append(parent)
    return found


def following(token_ids: list[int], num_prompt_tokens: int, stop_token_ids: list[int], min_tokens: int) -> int:
    """What the model says next, stop tokens being masked until ``min_tokens``."""
    token_id = digests(token_ids)[-1] % VOCABULARY
    while token_id in stop_token_ids and len(token_ids) - num_prompt_tokens < min_tokens:
        token_id = (token_id + 1) % VOCABULARY
    return token_id


class FakeRunner:
    """Executes plans on rows and blocks of plain lists, and asserts all that a real runner takes for granted."""

    def __init__(self, limits: Limits, layout: KVCacheLayout, steps_in_flight: int):
        self.limits, self.layout, self.steps_in_flight = limits, layout, steps_in_flight
        self.cache = [[(-1, -1)] * layout.block_size for _ in range(layout.num_blocks)]  # (group, digest) a slot
        self.facts: dict[int, NewRow] = {}
        self.tokens: dict[int, list[int]] = {}
        self.tables: dict[int, list[list[int]]] = {}
        self.computed: dict[int, int | None] = {}
        self.num_steps = self.num_waiting = 0
        self.plans: list[Plan] = []

    def execute(self, plan: Plan) -> Callable[[], Sampled]:
        assert plan.step == self.num_steps
        self.num_steps += 1
        self.plans.append(plan)
        self.num_waiting += 1
        assert self.num_waiting <= self.steps_in_flight
        self._apply(plan)
        assert plan.rows and len(set(plan.rows)) == len(plan.rows) <= self.limits.max_num_seqs
        assert min(plan.counts) >= 1 and sum(plan.counts) <= self.limits.max_num_batched_tokens
        assert [count > 1 for count in plan.counts] == sorted(count > 1 for count in plan.counts)
        for part in zip(plan.rows, plan.starts, plan.counts, strict=True):
            self._write(*part)
        for part in zip(plan.rows, plan.starts, plan.counts, strict=True):  # a step writes before it reads
            self._read(*part)
        prompts = {
            row: found
            for row, start, count in zip(plan.rows, plan.starts, plan.counts, strict=True)
            if (found := self._prompt_logprobs(row, start, count))
        }
        reached = [i for i, row in enumerate(plan.rows) if self.computed[row] == len(self.tokens[row])]
        assert sorted(plan.sampled) == reached
        masks = np.frombuffer(plan.masks, np.uint32).tolist()  # this vocabulary fits into one word
        allowed = dict(zip(plan.masked, masks, strict=True))
        tokens = [self._sample(plan.rows[i], allowed.get(place, -1)) for place, i in enumerate(plan.sampled)]
        sampled = Sampled(tokens, None, prompts)

        def wait() -> Sampled:
            self.num_waiting -= 1
            return sampled

        return wait

    def _apply(self, plan: Plan) -> None:
        for row in plan.freed_rows:
            self.facts.pop(row, None)
        for new in plan.new_rows:
            assert new.row not in self.facts and 0 <= new.row < self.limits.max_num_seqs
            self.facts[new.row] = new
            self.tokens[new.row] = list(new.token_ids)
            self.tables[new.row] = [[] for _ in self.layout.groups]
            self.computed[new.row] = None
        for group, row, offset, block_ids in ((n.group, n.row, n.offset, n.block_ids) for n in plan.new_blocks):
            assert row in self.facts and offset == len(self.tables[row][group])
            self.tables[row][group].extend(block_ids)

    def _write(self, row: int, start: int, count: int) -> None:
        """Every token is computed once, in order; what comes before the first was found in the cache."""
        assert row in self.facts
        assert start == self.computed[row] or (self.computed[row] is None and start % self.layout.block_size == 0)
        self.computed[row] = start + count
        assert start + count <= len(self.tokens[row]) <= self.limits.max_model_len
        values = digests(self.tokens[row])
        for group, table in enumerate(self.tables[row]):
            for position in range(start, start + count):
                block = table[position // self.layout.block_size]
                assert 0 < block < self.layout.num_blocks
                self.cache[block][position % self.layout.block_size] = (group, values[position])

    def _read(self, row: int, start: int, count: int) -> None:
        """Attention sees this row's own past in every group, or an equal prefix: nothing else gives its digests."""
        values = digests(self.tokens[row])
        for group, (table, spec) in enumerate(zip(self.tables[row], self.layout.groups, strict=True)):
            first = 0 if spec.window is None else max(0, start - spec.window + 1)
            for position in range(first, start + count):
                block = table[position // self.layout.block_size]
                assert self.cache[block][position % self.layout.block_size] == (group, values[position])

    def _sample(self, row: int, allowed: int) -> int:
        fact = self.facts[row]
        token_id = following(self.tokens[row], fact.num_prompt_tokens, fact.stop_token_ids, fact.params.min_tokens)
        while not allowed >> token_id & 1:
            token_id = (token_id + 1) % VOCABULARY
        self.tokens[row].append(token_id)
        return token_id

    def _prompt_logprobs(self, row: int, start: int, count: int) -> list[PositionLogprobs]:
        fact = self.facts[row]
        if fact.params.prompt_logprobs is None:
            return []
        last = min(start + count, fact.num_prompt_tokens - 1)
        return [{self.tokens[row][p + 1]: Logprob(-float(p + 1))} for p in range(start, last)]


@dataclass
class Case:
    budget: int = 16
    max_num_seqs: int = 4
    block_size: int = 4
    windows: tuple[int | None, ...] = (None,)
    spare_blocks: int = 0  # beyond what one request of the longest length needs
    prefix_caching: bool = True
    steps_in_flight: int = 1
    by_priority: bool = False
    chunked_prefill: bool = True
    threshold: int = 0
    max_model_len: int = 48


def build(case: Case, vocabulary: Any = None) -> tuple[Engine, FakeRunner]:
    """``vocabulary``: llguidance's, where there are grammars."""
    limits = Limits(
        case.budget, case.max_num_seqs, case.max_model_len, case.threshold, case.chunked_prefill, case.by_priority
    )
    needed = blocks_for(list(case.windows), case.block_size, case.max_model_len, case.budget)
    groups = [KVGroup([index], window) for index, window in enumerate(case.windows)]
    layout = KVCacheLayout(case.block_size, 1 + needed + case.spare_blocks, groups, 1)
    runner = FakeRunner(limits, layout, case.steps_in_flight)
    grammars = Grammars(lambda: vocabulary, VOCABULARY, [EOS])
    scheduler = Scheduler(limits, layout, case.prefix_caching, grammars)
    return Engine(scheduler, runner, cast(EngineInfo, None), 0), runner


def expected(submit: Submit, max_model_len: int) -> tuple[list[int], FinishReason, int | None]:
    params, output = submit.params, list[int]()
    eos = [] if params.ignore_eos else submit.eos_token_ids
    longest = max_model_len - len(submit.prompt_token_ids)
    longest = longest if params.max_tokens is None else min(longest, params.max_tokens)
    while len(output) < longest:
        known = submit.prompt_token_ids + output
        token_id = following(known, len(submit.prompt_token_ids), eos + params.stop_token_ids, params.min_tokens)
        output.append(token_id)
        if token_id in eos:
            return output, FinishReason.STOP, None
        if token_id in params.stop_token_ids:
            return output, FinishReason.STOP, token_id
    return output, FinishReason.LENGTH, None


def random_submit(rng: random.Random, number: int, max_model_len: int) -> Submit:
    """Prompts start alike in one of two ways, so that prefixes are shared; some end within a block, some span many."""
    length = rng.choice([1, 2, 3, 8, rng.randrange(1, max_model_len)])
    shared = random.Random(rng.randrange(2)).choices(range(VOCABULARY), k=max_model_len)
    same = rng.randrange(length + 1)
    most = rng.choice([None, 1, 2, 5, 20])
    params = SamplingParams(
        max_tokens=most,
        min_tokens=rng.choice([0, 0, 1 if most is None else most]),
        ignore_eos=rng.random() < 0.5,
        stop_token_ids=rng.choice([[], [STOP]]),
        prompt_logprobs=rng.choice([None, None, None, 0]),
    )
    prompt = shared[:same] + rng.choices(range(VOCABULARY), k=length - same)
    salt = rng.choice([None, None, "salt"])
    return Submit(f"r{number}", prompt, params, [EOS], [], rng.randrange(3), salt)


STORMS = [
    Case(),
    Case(prefix_caching=False),
    Case(budget=1, max_num_seqs=1),
    Case(budget=1, steps_in_flight=2),
    Case(budget=16, steps_in_flight=2),
    Case(budget=16, steps_in_flight=2, prefix_caching=False, block_size=1),
    Case(budget=1000, spare_blocks=100, steps_in_flight=2, max_num_seqs=16),
    Case(budget=1000, steps_in_flight=2, block_size=16, spare_blocks=2),
    Case(budget=48, chunked_prefill=False, steps_in_flight=2),
    Case(threshold=3, steps_in_flight=2, by_priority=True),
    Case(windows=(5, None), steps_in_flight=2),
    Case(windows=(4, None, 9), budget=5, by_priority=True, spare_blocks=5),
    Case(windows=(1,), budget=7, steps_in_flight=2),
    Case(windows=(6,), budget=1000, steps_in_flight=2, spare_blocks=30, max_num_seqs=8),
    Case(windows=(3, 3), block_size=1, budget=4, steps_in_flight=2, prefix_caching=False),
]


@pytest.mark.parametrize("case", STORMS, ids=range(len(STORMS)))
@pytest.mark.parametrize("seed", range(4))
def test_storm(case: Case, seed: int) -> None:
    """Random arrivals and aborts: each request gets the model's tokens, and nothing is held at the end."""
    rng = random.Random(seed)
    engine, _ = build(case)
    scheduler = engine.scheduler
    coming = [random_submit(rng, number, case.max_model_len) for number in range(40)]
    submits = {submit.request_id: submit for submit in coming}
    outputs: dict[str, list[int]] = {request_id: [] for request_id in submits}
    ends: dict[str, TokenDelta] = {}
    firsts: dict[str, TokenDelta] = {}
    aborted = set()
    for _ in range(20_000):
        if not coming and not engine.has_work:
            break
        if coming and rng.random() < 0.3:
            for _ in range(min(len(coming), rng.randrange(1, 6))):
                engine.submit(coming.pop())
        if rng.random() < 0.02 and scheduler.requests:
            request_id = rng.choice(list(scheduler.requests))
            engine.abort([request_id, "unknown"])
            aborted.add(request_id)
        if rng.random() < 0.02:
            engine.reset_prefix_cache(running=rng.random() < 0.5)
        for delta in engine.step():
            assert delta.request_id not in aborted and delta.request_id not in ends
            if delta.token_ids:
                firsts.setdefault(delta.request_id, delta)
            outputs[delta.request_id].extend(delta.token_ids)
            if delta.finish_reason is not None:
                ends[delta.request_id] = delta
        scheduler.check_integrity()
    assert not coming and not engine.has_work
    assert scheduler.kv.pool.num_free == scheduler.kv.pool.num_blocks - 1
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_cache_usage) == (0, 0, 0.0)
    for request_id, submit in submits.items():
        tokens, reason, stop = expected(submit, case.max_model_len)
        if request_id in aborted:
            assert outputs[request_id] == tokens[: len(outputs[request_id])]
            continue
        end = ends[request_id]
        assert (outputs[request_id], end.finish_reason, end.stop_reason) == (tokens, reason, stop)
        if submit.params.prompt_logprobs is not None:
            prompt = submit.prompt_token_ids
            found = firsts[request_id].prompt_logprobs
            assert found == [None, *({prompt[p]: Logprob(-float(p))} for p in range(1, len(prompt)))]


class Letters:
    """A vocabulary for llguidance: token 0 ends the output, the others are letters."""

    eos_token_id, bos_token_id, special_token_ids = EOS, None, [EOS]
    tokens = [b"<end>", *(bytes([97 + i]) for i in range(VOCABULARY - 1))]

    def __call__(self, text: str | bytes) -> list[int]:
        return [byte - 96 for byte in (text.encode() if isinstance(text, str) else text)]


GRAMMARS = ["(ab){2,5}", "[a-d]{7}", "(a|bc)*d", "c"]


@pytest.mark.parametrize("case", STORMS, ids=range(len(STORMS)))
def test_storm_with_grammars(case: Case) -> None:
    """Half of the requests are constrained: each keeps to its grammar up to its end, and the others don't notice."""
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    vocabulary = LLTokenizer(TokenizerWrapper(Letters()), n_vocab=VOCABULARY)
    engine, runner = build(case, vocabulary)
    scheduler, rng = engine.scheduler, random.Random(1)
    coming = [random_submit(rng, number, case.max_model_len - 20) for number in range(40)]
    submits = {submit.request_id: submit for submit in coming}
    for number, one in enumerate(coming):
        one.params = one.params.clone(min_tokens=0, max_tokens=rng.choice([3, 12]), stop_token_ids=[])
        if number % 2:
            one.grammar = LLMatcher.grammar_from_regex(rng.choice(GRAMMARS))
    coming.append(Submit("bad", [1], SamplingParams(), grammar="{"))
    outputs: dict[str, list[int]] = {one.request_id: [] for one in coming}
    ends: dict[str, TokenDelta] = {}
    while coming or engine.has_work:
        for _ in range(min(len(coming), rng.randrange(4))):
            engine.submit(coming.pop())
        for delta in engine.step():
            outputs[delta.request_id].extend(delta.token_ids)
            if delta.finish_reason is not None:
                ends[delta.request_id] = delta
        scheduler.check_integrity()
    assert ends["bad"].finish_reason is FinishReason.ERROR and ends["bad"].error
    assert any(plan.masked for plan in runner.plans) and scheduler.kv.pool.num_free == scheduler.kv.pool.num_blocks - 1
    for request_id, one in submits.items():
        reason = ends[request_id].finish_reason
        if one.grammar is None:
            assert (outputs[request_id], reason) == expected(one, case.max_model_len)[:2]
            continue
        matcher = LLMatcher(vocabulary, one.grammar)
        assert matcher.consume_tokens(outputs[request_id]), matcher.get_error()
        assert reason is (FinishReason.STOP if matcher.is_stopped() else FinishReason.LENGTH)


def submit(request_id: str, prompt: list[int], max_tokens: int = 4, priority: int = 0) -> Submit:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Submit(request_id, prompt, params, priority=priority)


def run(engine: Engine) -> list[TokenDelta]:
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    return deltas


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_tight_cache_preempts_the_last_and_loses_nothing(steps_in_flight: int) -> None:
    engine, _ = build(Case(prefix_caching=False, steps_in_flight=steps_in_flight))
    wanted = [submit(name, [place] * 8, 30) for place, name in enumerate("abc")]
    for one in wanted:
        engine.submit(one)
    deltas = run(engine)
    preempted = Counter(d.request_id for d in deltas for _ in range(d.num_preemptions))
    assert preempted["a"] == 0 and preempted["c"] > 0
    stats = engine.scheduler.stats()
    assert (stats.num_preemptions, stats.prompt_tokens) == (preempted.total(), 24)
    for one in wanted:
        tokens = [t for d in deltas if d.request_id == one.request_id for t in d.token_ids]
        assert tokens == expected(one, 48)[0]


def test_decodes_go_on_beside_a_long_prompt_in_chunks() -> None:
    engine, runner = build(Case(budget=8, spare_blocks=50))
    engine.submit(submit("short", [1], 20))
    engine.step()
    engine.submit(submit("long", [2] * 40, 2))
    run(engine)
    chunks = [plan for plan in runner.plans if max(plan.counts) > 1]
    assert [sum(plan.counts) for plan in chunks] == [8] * 5 + [6]
    assert all(plan.counts[0] == 1 and plan.sampled[0] == 0 for plan in chunks)


def test_a_decoding_request_is_looked_at_only_where_a_block_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = build(Case(spare_blocks=50, max_num_seqs=3, steps_in_flight=2))
    scheduler, asked = engine.scheduler, []
    extend = scheduler.kv.extend
    monkeypatch.setattr(scheduler.kv, "extend", lambda request, count: asked.append(request) or extend(request, count))
    for name, length in (("a", 3), ("b", 5), ("c", 4)):
        engine.submit(submit(name, [1] * length, 20))
    run(engine)
    decodes = [list(zip(plan.rows, plan.starts, plan.counts, strict=True)) for plan in runner.plans[1:]]
    assert decodes == [[(0, 3 + n, 1), (1, 5 + n, 1), (2, 4 + n, 1)] for n in range(19)]
    assert len(asked) == 6 + 5 + 6  # once as each begins, and at every block of four tokens after its prompt's


def test_a_long_prompt_may_take_no_more_than_the_threshold() -> None:
    engine, runner = build(Case(budget=48, threshold=10))
    engine.submit(submit("a", [2] * 35, 1))
    run(engine)
    assert [plan.counts for plan in runner.plans] == [[10], [10], [10], [5]]


def test_without_chunked_prefill_prompts_wait_until_they_fit_whole() -> None:
    engine, runner = build(Case(budget=48, chunked_prefill=False, spare_blocks=50, prefix_caching=False))
    engine.submit(submit("a", [1] * 30, 1))
    engine.submit(submit("b", [2] * 30, 1))
    run(engine)
    assert [plan.counts for plan in runner.plans] == [[30], [30]]


def test_a_long_pooled_prompt_takes_one_step_from_others_and_waits_for_one() -> None:
    engine, runner = build(Case(budget=48, chunked_prefill=False, spare_blocks=80, prefix_caching=False))
    for name, length in (("a", 20), ("long", 47), ("b", 20), ("c", 8), ("d", 40)):
        engine.submit(replace(submit(name, [1] * length, 1), pooling=PoolingParams()))
    run(engine)
    assert [plan.counts for plan in runner.plans] == [[20, 20, 8], [47], [40]]


@pytest.mark.parametrize(("by_priority", "order"), [(True, ["c", "b", "d", "a"]), (False, ["a", "b", "c", "d"])])
def test_order_of_service(by_priority: bool, order: list[str]) -> None:
    engine, _ = build(Case(max_num_seqs=1, by_priority=by_priority))
    for name, priority in (("a", 5), ("b", 0), ("c", -1), ("d", 0)):
        engine.submit(submit(name, [1, 2], 3, priority))
    assert [delta.request_id for delta in run(engine) if delta.finish_reason] == order


def test_stats_count_what_was_computed_and_what_was_found() -> None:
    engine, _ = build(Case(spare_blocks=10))
    engine.submit(submit("a", list(range(10)), 3))
    run(engine)
    engine.submit(submit("b", list(range(10)), 3))
    deltas = run(engine)
    assert deltas[0].num_cached_tokens == 8 and deltas[0].scheduled_time is not None
    stats = engine.scheduler.stats()
    assert (stats.prompt_tokens, stats.generation_tokens, stats.num_steps) == (12, 6, 6)
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (20, 8)
    assert engine.scheduler.stats().prompt_tokens == 0


def test_an_id_in_use_is_refused() -> None:
    engine, _ = build(Case())
    engine.submit(submit("a", [1]))
    with pytest.raises(ValueError, match="a is in use"):
        engine.submit(submit("a", [1]))
