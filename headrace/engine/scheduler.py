"""The token-budget scheduler: decides which requests advance in the next step, and by how much.

There are no phases. Each request has tokens, some of them planned already; every step lets requests catch up within
one budget, the oldest (or most urgent) first. Chunked prefill, prefix hits and decoding are all that one idea. Owns
requests, rows and the KV bookkeeping; does not know tensors or text.
"""

import time
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.engine.constraint import Constraint
from headrace.engine.decode_rows import Columns, DecodeRows
from headrace.engine.grammar import Grammars
from headrace.engine.kv_cache import KVCache
from headrace.engine.request import Request, State, by_key
from headrace.types import (
    FinishReason,
    KVCacheLayout,
    NewBlocks,
    NewRow,
    Plan,
    Pooled,
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


class Part(NamedTuple):
    """What a request that does not merely decode does in a step: computes ``length`` tokens from ``start`` on."""

    request: Request
    start: int
    length: int
    sampled: bool  # they are its last known ones, so another is sampled


@dataclass
class Step:
    """A plan handed to the runner, and the requests its results belong to."""

    plan: Plan
    decodes: Columns = field(default_factory=Columns)
    parts: dict[int, Part] = field(default_factory=dict)  # by row
    sampled: list[Request] = field(default_factory=list)  # parallel to plan.sampled

    def __contains__(self, request: Request) -> bool:
        return request.row in self.parts or request.row in self.decodes.rows

    def fill(self) -> None:
        """Write the plan's rows; those with one token lead, as attention expects."""
        plan, decodes = self.plan, self.decodes
        parts = sorted(self.parts.items(), key=lambda item: item[1].length > 1)
        first = len(decodes.rows)
        plan.rows = decodes.rows + [row for row, _ in parts]
        plan.starts = [lead + plan.step for lead in decodes.leads] + [part.start for _, part in parts]
        plan.counts = decodes.counts + [part.length for _, part in parts]
        plan.sampled = decodes.places + [place for place, (_, part) in enumerate(parts, first) if part.sampled]
        self.sampled = decodes.requests + [part.request for _, part in parts if part.sampled]
        masks = [(place, r.constraint.take()) for place, r in enumerate(self.sampled[first:], first) if r.constraint]
        plan.masked = [place for place, mask in masks if mask is not None]
        plan.masks = b"".join(mask.tobytes() for _, mask in masks if mask is not None)


class Scheduler:
    """Plans steps and takes their results; ``plan`` may run ahead of ``commit`` by any number of steps."""

    def __init__(self, limits: Limits, layout: KVCacheLayout, enable_prefix_caching: bool, grammars: Grammars):
        self.limits = limits
        self.grammars = grammars
        self.kv = KVCache(layout, enable_prefix_caching)
        self.requests: dict[str, Request] = {}
        self.preparing: list[Request] = []
        self._news: list[TokenDelta] = []  # preemptions, and the ends of requests that can't go on
        self.waiting: list[Request] = []  # these lists are sorted by key, first to be served first
        self.running: list[Request] = []
        self._behind: list[Request] = []  # of the running: who has more than its last token to compute
        self._decoding = DecodeRows()  # of the running: who computes its last token in every step
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
        constraint = Constraint.of(submit, self.grammars)
        request = Request(submit, key, seed, self.limits.max_model_len, len(self.kv.windows), constraint)
        self.requests[submit.request_id] = request
        if constraint is None:
            insort(self.waiting, request, key=by_key)
        else:
            self.preparing.append(request)

    def abort(self, request_id: str) -> None:
        """End a request at any moment; unknown or finished ids are ignored, since an end and an abort may cross."""
        if request := self.requests.get(request_id):
            self._finish(request)

    # -- planning ---------------------------------------------------------------------------------------------------

    def plan(self) -> Step | None:
        """The next step, or None if no request can advance."""
        self._settle_constraints()
        step = Step(Plan(self._num_steps, [], [], [], []))
        num_running = len(self.running)
        for request in self._decoding.due(self._num_steps):
            self._go_on(step, request)
        step.decodes = self._decoding.columns()
        budget = self.limits.max_num_batched_tokens - len(step.decodes.rows)
        limit = self.limits.long_prefill_token_threshold or budget
        for request in sorted(self._behind, key=_has_many):  # a long prompt never starves decodes
            if not budget or request.state is not State.RUNNING or self._must_wait(request):
                continue  # the state: preempted for one before it
            count = min(request.num_tokens - request.num_planned, budget, limit)
            if (blocks := self._make_room(step, request, count)) is not None:
                self._advance(step, request, count, blocks)
                budget -= count
        if len(self.running) == num_running:  # after a preemption, new requests would only be preempted in turn
            self._admit(step, budget)
        step.fill()
        if not step.plan.rows:
            return None
        step.plan.freed_rows, self._freed_rows = self._freed_rows, []
        self._num_steps += 1
        self._stats.num_steps += 1
        return step

    def _go_on(self, step: Step, request: Request) -> None:
        """Let a decoding request have its next block, or stop where its last (or last free) token is under way."""
        if request.num_tokens >= request.free_length:
            self._decoding.leave(request, step.plan.step)
            if request.num_tokens < request.max_total_tokens:
                insort(self._behind, request, key=by_key)
        elif (blocks := self._make_room(step, request, 1)) is not None:
            step.plan.new_blocks.extend(blocks)
            self.kv.register_full_blocks(request)
            self._decoding.call_at(request, self._next_change(request))

    def _next_change(self, request: Request) -> int:
        """The first position for which a decoding request has no block, or which it must not compute."""
        return min(len(request.blocks[0]) * self.kv.block_size, request.free_length - 1)

    def _make_room(self, step: Step, request: Request, count: int) -> list[NewBlocks] | None:
        """Blocks for ``count`` more tokens, preempting the last in order for them; None if ``request`` must wait."""
        while (blocks := self.kv.extend(request, count)) is None:
            victim = self.running[-1]
            if victim in step:
                return None  # it runs in this step already: its blocks are free again soon enough
            self._preempt(victim)
            if victim is request:
                return None
        return blocks

    def _admit(self, step: Step, budget: int) -> None:
        place = 0
        while len(self.waiting) > place and budget and self._free_rows:
            request = self.waiting[place]
            if request.num_tokens > len(request.token_ids):
                return  # preempted with a token under way: its value is needed to start again
            if self._must_wait(request):
                return  # the same a moment later
            prefix = self.kv.find_prefix(request)
            remaining = len(request.token_ids) - len(prefix[0]) * self.kv.block_size
            count = min(remaining, budget, self.limits.long_prefill_token_threshold or budget)
            if count < remaining and not self.limits.chunked_prefill:
                if place or request.pooling is None:
                    return
                place = 1  # it comes first in the next step, which nothing decodes in: so shorter ones may pass now
                continue
            request.row = self._free_rows[-1]
            blocks = self.kv.admit(request, prefix, count)
            if blocks is None:
                return
            self._free_rows.pop()
            self.waiting.pop(place)
            self._start(step, request)
            self._advance(step, request, count, blocks)
            budget -= count

    def _start(self, step: Step, request: Request) -> None:
        request.enter(State.RUNNING)
        insort(self.running, request, key=by_key)
        insort(self._behind, request, key=by_key)
        if request.scheduled_time is None:
            request.scheduled_time = time.monotonic()
        step.plan.new_rows.append(
            NewRow(
                row=request.row,
                request_id=request.request_id,
                token_ids=request.token_ids.tolist(),
                num_prompt_tokens=request.num_prompt_tokens,
                params=request.params,
                seed=request.seed,
                stop_token_ids=sorted(request.eos_token_ids | request.stop_token_ids),
                bad_word_ids=request.bad_word_ids,
                pooling=request.pooling,
                embeds=request.embeds.data if request.embeds else None,
            )
        )

    def _advance(self, step: Step, request: Request, count: int, blocks: list[NewBlocks]) -> None:
        start = request.num_planned
        step.plan.new_blocks.extend(blocks)
        request.num_planned += count
        known = min(request.num_planned, request.num_prompt_tokens)
        if known > request.num_counted:
            self._stats.prompt_tokens += known - request.num_counted
            request.num_counted = known
        reached = request.num_planned == request.num_tokens
        step.parts[request.row] = Part(request, start, count, reached)
        self.kv.register_full_blocks(request)
        if not reached:
            return
        request.num_tokens += 1
        ended = request.num_tokens == request.max_total_tokens
        if request.num_tokens >= request.free_length and not ended:
            return  # it can't decode by itself: each token depends on the one before
        if ended or len(self._decoding) < self.limits.max_num_batched_tokens:
            _remove(self._behind, request)
            if not ended:
                self._decoding.join(request, step.plan.step + 1, self._next_change(request))

    # -- results ----------------------------------------------------------------------------------------------------

    def commit(self, step: Step, sampled: Sampled) -> list[TokenDelta]:
        """Apply a step's sampled tokens; returns what each request gained. Steps commit in the order of their plans."""
        if sampled.pooled is not None:
            return self._commit_pooled(step, sampled.pooled)
        for row, positions in sampled.prompt_logprobs.items():
            part = step.parts[row]
            known = part.request.prompt_logprobs
            if known is not None:  # a preempted prompt is computed again: keep only what is new
                known.extend(positions[max(0, len(known) - part.start - 1) :])
        logprobs = sampled.logprobs or [None] * len(step.sampled)
        deltas, advanced, finished = [], [], State.FINISHED
        for request, token_id, position in zip(step.sampled, sampled.token_ids, logprobs, strict=True):
            if request.state is finished:
                continue  # aborted, or it ended while this step was under way
            delta = TokenDelta(request.request_id, [token_id])
            deltas.append(delta)
            reason, stop = request.append(token_id)
            if request.constraint and reason is not FinishReason.STOP:
                if request.constraint.accept(token_id):
                    reason, delta.complete = FinishReason.STOP, True
                elif request.constraint.error:
                    reason, delta.error = FinishReason.ERROR, request.constraint.error
                elif reason is None:
                    advanced.append(request)
            if position is not None:
                delta.logprobs = [position]
            if reason is not None or not request.started:
                delta.finish_reason, delta.stop_reason = reason, stop
                self._complete(request, delta)
        self._stats.generation_tokens += len(deltas)
        self._move_on(advanced)
        return deltas

    def _move_on(self, requests: list[Request]) -> None:
        """After their tokens: have the next masks made, and let those requests be that nothing binds any more."""
        late = [grammar for r in requests if r.constraint and (grammar := r.constraint.late)]
        if late:
            self.grammars.advance(late)
        for request in requests:
            if request.constraint and request.constraint.over:
                request.constraint = None
                if request in self._decoding:
                    self._decoding.call_at(request, self._next_change(request))

    def take_news(self) -> list[TokenDelta]:
        """What happened to requests since the last call, apart from what steps gave."""
        news, self._news = self._news, []
        return news

    def await_grammars(self, timeout: float) -> None:
        """Wait until a grammar is further, for at most so many seconds: for when nothing else can advance."""
        constraints = [request.constraint for request in self.preparing]
        self.grammars.await_any([c.grammar for c in constraints if c and c.grammar], timeout)

    def _settle_constraints(self) -> None:
        """Queue the requests whose grammars have been compiled, and end those that can't go on with theirs."""
        self.grammars.await_masks()
        for request in list(self.preparing):
            if request.constraint and request.constraint.settle():
                self.preparing.remove(request)
                request.enter(State.WAITING)
                insort(self.waiting, request, key=by_key)
                self._must_wait(request)

    def _must_wait(self, request: Request) -> bool:
        """Whether its last token, or what may follow it, must be known and isn't yet. One that can't go on ends."""
        constraint = request.constraint
        if constraint is None:
            return False
        if (error := constraint.error) is not None:
            self._news.append(TokenDelta(request.request_id, finish_reason=FinishReason.ERROR, error=error))
            self._finish(request)
            return True
        return request.num_tokens > len(request.token_ids) or constraint.late is not None

    def _commit_pooled(self, step: Step, pooled: list[Pooled]) -> list[TokenDelta]:
        """Hand out what the prompts that ended in this step were made into; it ends their requests."""
        deltas = []
        for request, values in zip(step.sampled, pooled, strict=True):
            if request.state is State.FINISHED:
                continue
            deltas.append(TokenDelta(request.request_id, pooled=values, finish_reason=FinishReason.STOP))
            self._complete(request, deltas[-1])
        return deltas

    def _complete(self, request: Request, delta: TokenDelta) -> None:
        """Add what belongs to a request's first delta, and to its last, which ends it."""
        if not request.started:
            request.started = True
            delta.prompt_logprobs = request.prompt_logprobs
            delta.num_cached_tokens = request.num_cached_tokens
            delta.scheduled_time = request.scheduled_time
        if delta.finish_reason is not None:
            self._finish(request)

    def stats(self) -> Stats:
        """Gauges now, and counters since the last call."""
        stats, self._stats = self._stats, Stats()
        stats.num_running = len(self.running)
        stats.num_waiting = len(self.waiting) + len(self.preparing)
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
        if len(self.requests) != len(self.preparing) + len(self.waiting) + len(self.running):
            raise RuntimeError("a request is neither preparing nor waiting nor running")
        if any(request in self._decoding for request in self._behind):
            raise RuntimeError("a request decodes and is behind at once")
        for request in self._decoding:
            if not self._num_steps <= request.due == self._next_change(request) - request.lead:
                raise RuntimeError(f"request {request.request_id} is not called up in time")

    # -- ends and preemption ----------------------------------------------------------------------------------------

    def _preempt(self, request: Request) -> None:
        """Take a running request's row and blocks; it waits again in its old place and recomputes its tokens later."""
        self._release(request)
        request.enter(State.WAITING)
        request.num_planned = 0
        self._news.append(TokenDelta(request.request_id, num_preemptions=1))  # now: a stop string may end it there
        self._stats.num_preemptions += 1
        insort(self.waiting, request, key=by_key)

    def reset_prefix_cache(self, running: bool) -> None:
        for request in list(self.running) if running else ():
            self._preempt(request)
        self.kv.pool.forget_prefixes()

    def _finish(self, request: Request) -> None:
        if request.state is State.RUNNING:
            self._release(request)
        elif request.state is State.PREPARING:
            self.preparing.remove(request)
        else:
            _remove(self.waiting, request)
        request.enter(State.FINISHED)
        del self.requests[request.request_id]

    def _release(self, request: Request) -> None:
        # Steps still under way may touch the row and the blocks, but whoever gets them next runs after those steps.
        _remove(self.running, request)
        _remove(self._behind, request)
        if request in self._decoding:
            self._decoding.leave(request, self._num_steps)
        self.kv.register_full_blocks(request)
        self.kv.free(request)
        self._free_rows.append(request.row)
        self._freed_rows.append(request.row)
        request.row = -1


def _has_many(request: Request) -> bool:
    return request.num_tokens - request.num_planned > 1


def _remove(requests: list[Request], request: Request) -> None:
    """Take ``request`` out of a sorted list, if it is in there."""
    place = bisect_left(requests, request.key, key=by_key)
    if requests[place : place + 1] == [request]:
        del requests[place]
