"""The life cycle of one sequence inside the engine. Owns its states; does not know blocks, rows or other requests."""

import enum

from headrace.types import FinishReason, PositionLogprobs, Submit


class State(enum.Enum):
    WAITING = "waiting"  # in the queue, for the first time or again after a preemption; holds no row and no block
    RUNNING = "running"  # holds a device row and KV blocks
    FINISHED = "finished"


_LEGAL = {
    State.WAITING: {State.RUNNING, State.FINISHED},
    State.RUNNING: {State.WAITING, State.FINISHED},
    State.FINISHED: set(),
}


class Request:
    """One sequence: its known tokens, how far they are planned, and what it holds.

    Steps overlap, so a sampled token may exist on the device before the host knows it: ``num_in_flight`` counts those.
    ``num_planned`` counts the tokens whose computation has been handed to the runner.
    """

    __slots__ = (
        "_state",
        "blocks",
        "eos_token_ids",
        "hashes",
        "key",
        "max_total_tokens",
        "num_cached_tokens",
        "num_in_flight",
        "num_planned",
        "num_preemptions",
        "num_prompt_tokens",
        "num_registered",
        "prompt_logprobs",
        "row",
        "scheduled_time",
        "seed",
        "started",
        "stop_token_ids",
        "submit",
        "token_ids",
    )

    def __init__(self, submit: Submit, key: tuple[int, int], seed: int, max_model_len: int, num_groups: int):
        params = submit.params
        self.submit = submit
        self.key = key  # order of service: (priority, arrival number)
        self.seed = seed
        self.token_ids = list(submit.prompt_token_ids)
        self.num_prompt_tokens = len(self.token_ids)
        limit = max_model_len if params.max_tokens is None else self.num_prompt_tokens + params.max_tokens
        self.max_total_tokens = min(limit, max_model_len)
        self.eos_token_ids = frozenset(() if params.ignore_eos else submit.eos_token_ids)
        self.stop_token_ids = frozenset(params.stop_token_ids)
        self.num_planned = 0
        self.num_in_flight = 0
        self.num_cached_tokens: int | None = None  # prompt tokens found in the prefix cache at first admission
        self.num_preemptions = 0
        self.scheduled_time: float | None = None
        self.started = False  # its first delta has been sent
        self.row = -1
        self.blocks: list[list[int]] = [[] for _ in range(num_groups)]  # block ids a KV group; 0 = freed or never held
        self.hashes: list[bytes] = []  # of its full blocks, as far as computed
        self.num_registered = 0  # leading full blocks already offered to the prefix cache
        self.prompt_logprobs: list[PositionLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        self._state = State.WAITING

    @property
    def request_id(self) -> str:
        return self.submit.request_id

    @property
    def state(self) -> State:
        return self._state

    def enter(self, state: State) -> None:
        """Move to ``state``; an illegal transition is a bug and raises."""
        if state not in _LEGAL[self._state]:
            raise RuntimeError(f"request {self.request_id} can't go from {self._state.value} to {state.value}")
        self._state = state

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens, those still unknown to the host included."""
        return len(self.token_ids) + self.num_in_flight

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    def append(self, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Take a sampled token; returns why the request ends with it, if it does, and the stop id if it was one."""
        self.num_in_flight -= 1
        self.token_ids.append(token_id)
        if self.num_output_tokens >= self.submit.params.min_tokens:
            if token_id in self.eos_token_ids:
                return FinishReason.STOP, None
            if token_id in self.stop_token_ids:
                return FinishReason.STOP, token_id
        if len(self.token_ids) >= self.max_total_tokens:
            return FinishReason.LENGTH, None
        return None, None
