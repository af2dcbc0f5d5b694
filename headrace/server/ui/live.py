"""The recent past of the engine, for the dashboard: a sample a second and an entry a step, both bounded.

Owns the records and their bounds; does not know HTTP.
"""

import time
from collections import deque
from collections.abc import Callable

import msgspec

from headrace.frontend.observer import Observer, added_up
from headrace.types import Stats

SAMPLE_SECONDS = 1.0  # a sample covers at least
MAX_SAMPLES = 300
MAX_STEPS = 240


class Sample(msgspec.Struct, frozen=True):
    """The gauges at ``time`` (time.monotonic() seconds) and what was counted in the ``seconds`` before; in tokens."""

    time: float
    seconds: float
    running: int
    waiting: int
    kv_cache_usage: float  # 0-1
    prompt_tokens: int  # computed
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    preemptions: int


class Step(msgspec.Struct, frozen=True, array_like=True):
    """One report of the engine about ``num_steps`` steps (nearly always one). ``seconds`` since the report before.

    After a pause nobody knows when the step began: ``seconds`` is None.
    """

    seconds: float | None
    num_steps: int
    prompt_tokens: int
    generation_tokens: int
    running: int


class Report(msgspec.Struct):
    """What is new since a report before; ``last_*`` number the newest ones ever seen."""

    now: float
    last_sample: int
    last_step: int
    samples: list[Sample]
    steps: list[Step]


class Live(Observer):
    """Observer that keeps the last minutes. ``clock`` gives time.monotonic() seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._steps: deque[Step] = deque(maxlen=MAX_STEPS)
        self._num_samples = self._num_steps = 0
        self._since = self._heard = clock()
        self._busy = False
        self._sum = Stats()  # of the sample that is being collected

    def report(self, seen_samples: int = 0, seen_steps: int = 0) -> Report:
        """What came after the first ``seen_samples`` samples and ``seen_steps`` steps, as far as it is kept."""
        samples, steps = self._num_samples - seen_samples, self._num_steps - seen_steps
        return Report(
            self._clock(),
            self._num_samples,
            self._num_steps,
            list(self._samples)[-samples:] if samples else [],
            list(self._steps)[-steps:] if steps else [],
        )

    def on_stats(self, stats: Stats) -> None:
        now = self._clock()
        if stats.num_steps:
            seconds = now - self._heard if self._busy else None
            self._steps.append(
                Step(seconds, stats.num_steps, stats.prompt_tokens, stats.generation_tokens, stats.num_running)
            )
            self._num_steps += 1
        self._heard, self._busy = now, stats.num_running + stats.num_waiting > 0
        self._sum = added_up(self._sum, stats)
        if now - self._since >= SAMPLE_SECONDS:
            self._close_sample(now)

    def _close_sample(self, now: float) -> None:
        total, self._sum = self._sum, Stats()
        sample = Sample(
            now,
            now - self._since,
            total.num_running,
            total.num_waiting,
            total.kv_cache_usage,
            total.prompt_tokens,
            total.generation_tokens,
            total.prefix_cache_queries,
            total.prefix_cache_hits,
            total.num_preemptions,
        )
        self._samples.append(sample)
        self._num_samples += 1
        self._since = now
