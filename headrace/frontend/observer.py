"""What the async handle on the engine tells whoever watches it: statistics, token times and finished requests.

Owns the records and what is told when; does not know Prometheus, logs or HTTP. Observers are called on the event loop,
from the hot path: they must not block, await or raise.
"""

import msgspec

from headrace.types import Stats


class FinishedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One finished request (all its ``n`` sequences together); times are durations in seconds.

    A duration is None where the request never came so far: an abort in the queue has no prefill, and a single
    generated token has no time per output token.
    """

    request_id: str
    finish_reasons: list[str]  # of each sequence: stop, length, abort or error
    prompt_tokens: int
    generation_tokens: int  # of all sequences
    max_generation_tokens: int  # of the longest sequence
    cached_tokens: int = 0  # prompt tokens found in the prefix cache
    n: int = 1
    max_tokens: int | None = None  # as asked for; None = up to the model length
    e2e_seconds: float  # arrival to last token
    queue_seconds: float | None = None  # arrival to first scheduled
    prefill_seconds: float | None = None  # first scheduled to first token
    decode_seconds: float | None = None  # first token to last token
    inference_seconds: float | None = None  # first scheduled to last token
    time_per_output_token: float | None = None  # decode time over the tokens after the first
    preemptions: int = 0


COUNTERS = set(Stats.__struct_fields__) - {"num_running", "num_waiting", "kv_cache_usage"}


def added_up(total: Stats, latest: Stats) -> Stats:
    """The latest gauges, and what both counted."""
    return msgspec.structs.replace(latest, **{name: getattr(total, name) + getattr(latest, name) for name in COUNTERS})


class Observer:
    """A listener on one AsyncLLM; who inherits from it may leave out what doesn't concern it."""

    def on_stats(self, stats: Stats) -> None:
        """The engine reported its gauges, and its counters since the report before."""

    def on_first_token(self, ttft_seconds: float) -> None:
        """A sequence produced its first token, ``ttft_seconds`` after its request arrived."""

    def on_tokens(self, num_tokens: int, inter_token_seconds: float) -> None:
        """A sequence produced ``num_tokens`` (>= 1) more, ``inter_token_seconds`` after the ones before."""

    def on_finished(self, request: FinishedRequest) -> None:
        """A request ended, for whatever reason."""

    def on_rejected(self, reason: str) -> None:
        """A request was turned away; ``reason`` names the limit, as its option: max_num_queued_reqs, for example."""
