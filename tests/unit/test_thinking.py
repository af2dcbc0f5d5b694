"""Reasoning in the engine: budgets are kept to the token, and grammars hold from its end on, in storms of requests."""

import random
from typing import Any

import pytest

from headrace.engine.thinking import SLACK, Thinker
from headrace.types import FinishReason, SamplingParams, StructuredOutputsParams, Submit, Thinking

from .test_scheduler import EOS, GRAMMARS, STORMS, VOCABULARY, Case, Letters, build, following, random_submit

MARKS = [([2], [4]), ([2, 3], [4, 5]), ([7], [9, 9])]  # how reasoning starts and ends


def num_thought(output: list[int], thinking: Thinking) -> int | None:
    """How many tokens of reasoning ``output`` has if it goes on, found by looking at all of it; else None."""
    (start,), (end,) = thinking.starts, thinking.ends
    first = 0 if thinking.inside else None
    for place in range(len(output)):
        if first is None and output[place : place + len(start)] == start:
            if place + len(start) <= max(len(start), len(end)) + SLACK:
                first = place + len(start)
        elif first is not None and place >= first and output[place : place + len(end)] == end:
            return None
    return None if first is None or len(output) < first else len(output) - first


def expected(submit: Submit, max_model_len: int) -> tuple[list[int], FinishReason]:
    """What the model says, the end of its reasoning being put in where the budget is spent."""
    params, thinking, output, forced = submit.params, submit.thinking, list[int](), list[int]()
    assert thinking is not None
    room = max_model_len - len(submit.prompt_token_ids)
    while len(output) < min(room, params.max_tokens or room):
        thought = num_thought(output, thinking)
        if thought is None:
            forced = []
        elif thought == thinking.budget:
            forced = list(thinking.closing)
        known = submit.prompt_token_ids + output
        output.append(forced.pop(0) if forced else following(known, len(submit.prompt_token_ids), [], 0))
        if output[-1] == EOS and not params.ignore_eos:
            return output, FinishReason.STOP
    return output, FinishReason.LENGTH


def run_storm(case: Case, submits: list[Submit], vocabulary: Any) -> dict[str, tuple[list[int], FinishReason]]:
    """Every request's tokens and end."""
    engine, _ = build(case, vocabulary)
    scheduler, rng = engine.scheduler, random.Random(2)
    coming, outputs, reasons = list(submits), {one.request_id: list[int]() for one in submits}, {}
    while coming or engine.has_work:
        for _ in range(min(len(coming), rng.randrange(4))):
            engine.submit(coming.pop())
        for delta in engine.step():
            assert delta.error is None
            outputs[delta.request_id].extend(delta.token_ids)
            if delta.finish_reason is not None:
                reasons[delta.request_id] = delta.finish_reason
        scheduler.check_integrity()
    assert scheduler.kv.pool.num_free == scheduler.kv.pool.num_blocks - 1
    return {name: (outputs[name], reasons[name]) for name in outputs}


def thinking_submits(case: Case, rng: random.Random) -> list[Submit]:
    submits = [random_submit(rng, number, case.max_model_len - 20) for number in range(60)]
    for one in submits:
        start, end = rng.choice(MARKS)
        one.thinking = Thinking([start], [end], [], end, rng.random() < 0.6, rng.choice([None, 0, 1, 2, 5, 9]))
        one.params = one.params.clone(min_tokens=0, max_tokens=rng.choice([3, 18]), stop_token_ids=[])
    return submits


@pytest.mark.parametrize("case", STORMS, ids=range(len(STORMS)))
def test_budgets_are_kept_to_the_token(case: Case) -> None:
    submits = thinking_submits(case, random.Random(1))
    found = run_storm(case, submits, None)
    assert found == {one.request_id: expected(one, case.max_model_len) for one in submits}
    assert any(one.thinking and one.thinking.budget == len(found[one.request_id][0]) - 2 for one in submits)


@pytest.mark.parametrize("case", STORMS, ids=range(len(STORMS)))
def test_grammars_hold_after_reasoning_or_from_the_start(case: Case) -> None:
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    rng = random.Random(3)
    vocabulary = LLTokenizer(TokenizerWrapper(Letters()), n_vocab=VOCABULARY)
    submits = thinking_submits(case, rng)
    for one in submits:
        one.grammar = LLMatcher.grammar_from_regex(rng.choice(GRAMMARS))
    ways = set()
    for name, (output, reason) in run_storm(case, submits, vocabulary).items():
        one = next(one for one in submits if one.request_id == name)
        assert one.thinking is not None and one.grammar is not None
        thinker, answer, matcher = Thinker(one.thinking), list(output), LLMatcher(vocabulary, one.grammar)
        start, end = one.thinking.starts[0], one.thinking.ends[0]
        begun = one.thinking.inside or (output[:1] == start[:1] and not matcher.deep_copy().consume_token(start[0]))
        if begun:
            while answer and not thinker.answering:
                thinker.accept(answer.pop(0))
            assert thinker.num_tokens <= (one.thinking.budget or 99) + len(end) and EOS not in output[: -len(answer)]
        ways.add((begun, thinker.answering, reason))
        assert not answer or matcher.consume_tokens(answer), matcher.get_error()
        assert reason is (FinishReason.STOP if answer and matcher.is_stopped() else FinishReason.LENGTH)
    assert {(True, True, FinishReason.STOP), (False, False, FinishReason.STOP)} <= ways


def test_a_gate_leads_to_the_answer_where_reasoning_has_several_spans() -> None:
    thinker = Thinker(Thinking(starts=[[1, 2]], ends=[[3]], gates=[[4, 5], [4, 6, 5]], closing=[3, 4, 5], budget=4))
    said = []
    for token in [1, 2, 9, 9, 3, 1, 2, 9, 9, 3, 4, 5]:
        assert thinker.forced[:1] in ([], [token])
        thinker.accept(token)
        said.append((thinker.inside, thinker.num_tokens, thinker.answering, bool(thinker.forced)))
    assert said[3:6] == [(True, 2, False, False), (False, 2, False, False), (False, 2, False, False)]
    assert said[-4:] == [
        (True, 4, False, True),
        (False, 4, False, True),
        (False, 4, False, True),
        (False, 4, True, False),
    ]


def test_two_names_of_one_parameter_exclude_each_other() -> None:
    form = StructuredOutputsParams(regex="a")
    with pytest.raises(ValueError, match="two names of one thing"):
        SamplingParams(structured_outputs=form, guided_decoding=form)
