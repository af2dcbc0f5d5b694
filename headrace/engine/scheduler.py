"""The token-budget scheduler: decides which requests advance in the next step, and by how much.

There are no phases. Each request has tokens, some of them planned already; every step lets requests catch up within
one budget, the oldest (or most urgent) first. Chunked prefill, prefix hits and decoding are all that one idea. Owns
requests, rows and the KV bookkeeping; does not know tensors or text.
"""

import time
from bisect import bisect_left, insort
from dataclasses import dataclass, field

from headrace.engine.kv_cache import KVCache
from headrace.engine.request import Request, State
from headrace.types import (
    KVCacheLayout,
    NewBlocks,
    NewRow,
    Plan,
    PositionLogprobs,
    Sampled,
    Stats,
    Submit,
    TokenDelta,
)


@dataclass(frozen=True)
class Limits:
    """What one step, and the whole engine, may hold."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    long_prefill_token_threshold: int = 0  # most tokens of one prompt in a step; 0 = the whole budget
    chunked_prefill: bool = True
    by_priority: bool = False


@dataclass
class Step:
    """A plan handed to the runner, and the requests its results belong to."""

    plan: Plan
    sampled: list[Request] = field(default_factory=list)  # parallel to plan.sampled
    by_row: dict[int, tuple[Request, int]] = field(default_factory=dict)  # and the position its part starts at


def _key(request: Request) -> tuple[int, int]:
    return request.key


class Scheduler:
    """Plans steps and takes their results; ``plan`` may run ahead of ``commit`` by any number of steps."""

    def __init__(self, limits: Limits, layout: KVCacheLayout, enable_prefix_caching: bool):
        self.limits = limits
        self.kv = KVCache(layout, enable_prefix_caching)
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []  # both lists are sorted by key, first to be served first
        self.running: list[Request] = []
        self._free_rows = list(range(limits.max_num_seqs - 1, -1, -1))
        self._freed_rows: list[int] = []  # since the last plan
        self._num_arrivals = 0
        self._num_steps = 0
        self._stats = Stats()

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def submit(self, submit: Submit, seed: int) -> None:
        """Queue a new request. Its token ids and parameters have been validated by the frontend."""
        if submit.request_id in self.requests:
            raise ValueError(f"request id {submit.request_id} is in use")
        priority = submit.priority if self.limits.by_priority else 0
        key = (priority, self._num_arrivals)
        self._num_arrivals += 1
        request = Request(submit, key, seed, self.limits.max_model_len, len(self.kv.windows))
        self.requests[submit.request_id] = request
        insort(self.waiting, request, key=_key)

    def abort(self, request_id: str) -> None:
        """End a request at any moment; unknown or finished ids are ignored, since an end and an abort may cross."""
        if request := self.requests.get(request_id):
            self._finish(request)

    # -- planning ---------------------------------------------------------------------------------------------------

    def plan(self) -> Step | None:
        """The next step, or None if no request can advance."""
        step = Step(Plan(self._num_steps, [], [], [], []))
        budget = self.limits.max_num_batched_tokens
        num_running = len(self.running)
        limit = self.limits.long_prefill_token_threshold or budget
        ready = [(request, pending) for request in self.running if (pending := self._num_pending(request))]
        ready.sort(key=lambda item: item[1] > 1)  # decodes first: a long prompt never starves them
        for request, pending in ready:
            if not budget or request.state is not State.RUNNING:  # preempted for one before it
                continue
            count = min(pending, budget, limit)
            if (blocks := self._make_room(step, request, count)) is not None:
                self._advance(step, request, count, blocks)
                budget -= count
        if len(self.running) == num_running:  # after a preemption, new requests would only be preempted in turn
            self._admit(step, budget)
        if not step.plan.rows:
            return None
        step.plan.freed_rows, self._freed_rows = self._freed_rows, []
        self._num_steps += 1
        self._stats.num_steps += 1
        _put_decodes_first(step.plan)
        return step

    def _num_pending(self, request: Request) -> int:
        """Tokens ``request`` could compute now; 0 if all are planned, or if its last token is in flight."""
        num_tokens = request.num_tokens
        return 0 if num_tokens >= request.max_total_tokens else num_tokens - request.num_planned

    def _make_room(self, step: Step, request: Request, count: int) -> list[NewBlocks] | None:
        """Blocks for ``count`` more tokens, preempting the last in order for them; None if ``request`` must wait."""
        while (blocks := self.kv.extend(request, count)) is None:
            victim = self.running[-1]
            if victim.row in step.by_row:
                return None  # it runs in this step already: its blocks are free again soon enough
            self._preempt(victim)
            if victim is request:
                return None
        return blocks

    def _admit(self, step: Step, budget: int) -> None:
        while self.waiting and budget and self._free_rows:
            request = self.waiting[0]
            if request.num_in_flight:
                return  # preempted with a token under way: its value is needed to start again
            prefix = self.kv.find_prefix(request)
            remaining = len(request.token_ids) - len(prefix[0]) * self.kv.block_size
            count = min(remaining, budget, self.limits.long_prefill_token_threshold or budget)
            if count < remaining and not self.limits.chunked_prefill:
                return
            request.row = self._free_rows[-1]
            blocks = self.kv.admit(request, prefix, count)
            if blocks is None:
                return
            self._free_rows.pop()
            self.waiting.pop(0)
            self._start(step, request)
            self._advance(step, request, count, blocks)
            budget -= count

    def _start(self, step: Step, request: Request) -> None:
        request.enter(State.RUNNING)
        insort(self.running, request, key=_key)
        if request.scheduled_time is None:
            request.scheduled_time = time.monotonic()
        submit = request.submit
        step.plan.new_rows.append(
            NewRow(
                row=request.row,
                request_id=request.request_id,
                token_ids=list(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                params=submit.params,
                seed=request.seed,
                stop_token_ids=sorted(request.eos_token_ids | request.stop_token_ids),
                bad_word_ids=submit.bad_word_ids,
            )
        )

    def _advance(self, step: Step, request: Request, count: int, blocks: list[NewBlocks]) -> None:
        plan = step.plan
        if request.num_planned < request.num_prompt_tokens:
            self._stats.prompt_tokens += min(count, request.num_prompt_tokens - request.num_planned)
        step.by_row[request.row] = (request, request.num_planned)
        plan.new_blocks.extend(blocks)
        plan.starts.append(request.num_planned)
        request.num_planned += count
        if request.num_planned == request.num_tokens:
            request.num_in_flight += 1
            plan.sampled.append(len(plan.rows))
            step.sampled.append(request)
        plan.rows.append(request.row)
        plan.counts.append(count)
        self.kv.register_full_blocks(request)

    # -- results ----------------------------------------------------------------------------------------------------

    def commit(self, step: Step, sampled: Sampled) -> list[TokenDelta]:
        """Apply a step's sampled tokens; returns what each request gained. Steps commit in the order of their plans."""
        for row, positions in sampled.prompt_logprobs.items():
            request, start = step.by_row[row]
            known = request.prompt_logprobs
            if known is not None:  # a preempted prompt is computed again: keep only what is new
                known.extend(positions[max(0, len(known) - start - 1) :])
        logprobs = sampled.logprobs or [None] * len(step.sampled)
        deltas = []
        for request, token_id, position in zip(step.sampled, sampled.token_ids, logprobs, strict=True):
            if request.state is State.FINISHED:
                continue  # aborted, or it ended while this step was under way
            deltas.append(self._take(request, token_id, position))
        self._stats.generation_tokens += len(deltas)
        return deltas

    def _take(self, request: Request, token_id: int, logprobs: PositionLogprobs | None) -> TokenDelta:
        reason, stop = request.append(token_id)
        delta = TokenDelta(request.request_id, [token_id], finish_reason=reason, stop_reason=stop)
        delta.logprobs = None if logprobs is None else [logprobs]
        if not request.started:
            request.started = True
            delta.prompt_logprobs = request.prompt_logprobs
            delta.num_cached_tokens = request.num_cached_tokens
            delta.scheduled_time = request.scheduled_time
        if reason is not None:
            delta.num_preemptions = request.num_preemptions
            self._finish(request)
        return delta

    def stats(self) -> Stats:
        """Gauges now, and counters since the last call."""
        stats, self._stats = self._stats, Stats()
        stats.num_running = len(self.running)
        stats.num_waiting = len(self.waiting)
        stats.kv_cache_usage = self.kv.pool.usage
        stats.prefix_cache_queries, self.kv.num_queried_tokens = self.kv.num_queried_tokens, 0
        stats.prefix_cache_hits, self.kv.num_hit_tokens = self.kv.num_hit_tokens, 0
        return stats

    def check_integrity(self) -> None:
        """Raise if rows, blocks and requests disagree. For tests, and cheap enough to run whenever idle."""
        held = [block for request in self.running for blocks in request.blocks for block in blocks if block]
        self.kv.pool.check_integrity(held)
        rows = [request.row for request in self.running]
        if sorted(rows + self._free_rows) != list(range(self.limits.max_num_seqs)):
            raise RuntimeError(f"rows in use {rows} and free rows {self._free_rows} don't make up all rows")
        if len(self.requests) != len(self.waiting) + len(self.running):
            raise RuntimeError("a request is neither waiting nor running")

    # -- ends and preemption ----------------------------------------------------------------------------------------

    def _preempt(self, request: Request) -> None:
        """Take a running request's row and blocks; it waits again in its old place and recomputes its tokens later."""
        self._release(request)
        request.enter(State.WAITING)
        request.num_planned = 0
        request.num_preemptions += 1
        self._stats.num_preemptions += 1
        insort(self.waiting, request, key=_key)

    def _finish(self, request: Request) -> None:
        if request.state is State.RUNNING:
            self._release(request)
        else:
            del self.waiting[bisect_left(self.waiting, request.key, key=_key)]
        request.enter(State.FINISHED)
        del self.requests[request.request_id]

    def _release(self, request: Request) -> None:
        # Steps still under way may touch the row and the blocks, but whoever gets them next runs after those steps.
        del self.running[bisect_left(self.running, request.key, key=_key)]
        self.kv.register_full_blocks(request)
        self.kv.free(request)
        self._free_rows.append(request.row)
        self._freed_rows.append(request.row)
        request.row = -1


def _put_decodes_first(plan: Plan) -> None:
    """Reorder rows so that those with one token lead, as attention expects; mostly they do already."""
    multiple = [count > 1 for count in plan.counts]
    if multiple == sorted(multiple):
        return
    order = sorted(range(len(plan.rows)), key=multiple.__getitem__)
    place = {old: new for new, old in enumerate(order)}
    plan.rows = [plan.rows[i] for i in order]
    plan.starts = [plan.starts[i] for i in order]
    plan.counts = [plan.counts[i] for i in order]
    plan.sampled = [place[i] for i in plan.sampled]
