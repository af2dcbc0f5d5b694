"""The life cycle of one sequence inside the engine. Owns its states; does not know blocks, rows or other requests."""

import enum
from array import array
from operator import attrgetter

from headrace.engine.constraint import Constraint
from headrace.types import FinishReason, PositionLogprobs, Submit


class State(enum.Enum):
    PREPARING = "preparing"  # its grammar is being compiled
    WAITING = "waiting"  # in the queue, for the first time or again after a preemption; holds no row and no block
    RUNNING = "running"  # holds a device row and KV blocks
    FINISHED = "finished"


_LEGAL = {
    State.PREPARING: {State.WAITING, State.FINISHED},
    State.WAITING: {State.RUNNING, State.FINISHED},
    State.RUNNING: {State.WAITING, State.FINISHED},
    State.FINISHED: set(),
}
by_key = attrgetter("key")  # sorts requests, first to be served first


class Request:
    """One sequence: its known tokens, how far they are planned, and what it holds.

    Steps overlap, so a sampled token may exist on the device before the host knows it: ``num_tokens`` has those, too.
    ``num_planned`` counts the tokens whose computation has been handed to the runner. While a request decodes, both
    follow from the step's number, and are written down only when somebody asks (see ``DecodeRows``).
    """

    def __init__(
        self,
        submit: Submit,
        key: tuple[int, int],
        seed: int,
        max_model_len: int,
        num_groups: int,
        constraint: Constraint | None = None,
    ):
        params = submit.params
        self.request_id = submit.request_id
        self.params = params
        self.pooling = submit.pooling
        self.embeds = submit.embeds
        self.cache_salt = submit.cache_salt
        self.bad_word_ids = submit.bad_word_ids
        self.key = key  # order of service: (priority, arrival number)
        self.seed = seed
        self.token_ids = array("i", submit.prompt_token_ids)  # int32, as on the device: a waiting prompt stays small
        self.num_prompt_tokens = self.num_tokens = len(self.token_ids)
        limit = max_model_len if params.max_tokens is None else self.num_prompt_tokens + params.max_tokens
        # Pooled values count as one token more, the last; they need no place in the context.
        self.max_total_tokens = self.num_prompt_tokens + 1 if submit.pooling else min(limit, max_model_len)
        self.eos_token_ids = frozenset(() if params.ignore_eos else submit.eos_token_ids)
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.num_planned = 0
        self.num_cached_tokens: int | None = None  # prompt tokens found in the prefix cache at first admission
        self.num_counted = 0  # prompt tokens in the statistics: none twice, though computed again after a preemption
        self.scheduled_time: float | None = None
        self.started = False  # its first delta has been sent
        self.row = -1
        self.lead = self.due = 0  # while it decodes: see DecodeRows
        self.blocks: list[list[int]] = [[] for _ in range(num_groups)]  # block ids a KV group; 0 = freed or never held
        self.hashes: list[bytes] = []  # of its full blocks, as far as computed
        self.num_registered = 0  # leading full blocks already offered to the prefix cache
        self.prompt_logprobs: list[PositionLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        self.constraint = constraint
        self.state = State.PREPARING if constraint else State.WAITING

    def enter(self, state: State) -> None:
        """Move to ``state``; an illegal transition is a bug and raises."""
        if state not in _LEGAL[self.state]:
            raise RuntimeError(f"request {self.request_id} can't go from {self.state.value} to {state.value}")
        self.state = state

    def append(self, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Take a sampled token; returns why the request ends with it, if it does, and the stop id if it was one."""
        self.token_ids.append(token_id)
        num_tokens = len(self.token_ids)
        ends = token_id in self.eos_token_ids or token_id in self.stop_token_ids
        if ends and num_tokens - self.num_prompt_tokens >= self.params.min_tokens:
            return FinishReason.STOP, None if token_id in self.eos_token_ids else token_id
        if num_tokens >= self.max_total_tokens:
            return FinishReason.LENGTH, None
        return None, None

    @property
    def free_length(self) -> int:
        """How many tokens it may grow to without a look at each before the next."""
        if self.constraint is None:
            return self.max_total_tokens
        return min(self.num_prompt_tokens + self.constraint.num_free, self.max_total_tokens)

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether none of the prompt may come from the prefix cache, as where something of every token is wanted."""
        pooling, params = self.pooling, self.params
        if pooling is not None:
            return (pooling.task or "").startswith("token") or bool(pooling.skip_reading_prefix_cache)
        return params.prompt_logprobs is not None or bool(params.skip_reading_prefix_cache)
