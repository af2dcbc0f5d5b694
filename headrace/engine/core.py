"""The step loop: plan, run, commit. Owns the overlap of steps; knows neither tensors nor processes nor text."""

import random
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from headrace.engine.scheduler import Scheduler, Step
from headrace.types import EngineInfo, Outputs, Plan, Profiled, Sampled, Submit, TokenDelta

GRAMMAR_WAIT = 0.005  # seconds spent at most, if all requests wait for theirs, before messages are looked at again
STATS_INTERVAL = 1.0  # seconds between two Stats when nothing else is sent


class Runner(Protocol):
    """What the engine needs of whatever executes plans."""

    steps_in_flight: int  # how many steps may be launched before the first is waited for

    def execute(self, plan: Plan) -> Callable[[], Sampled]:
        """Launch a step; the returned call waits for it and gives what it sampled."""
        ...

    def prepare(self) -> bool:
        """Do a little of what makes later steps faster, in an idle moment; False if nothing is left to do."""
        ...


class Profiler(Protocol):
    """What the engine needs of whatever records its steps."""

    @property
    def active(self) -> bool: ...

    def start(self) -> None: ...

    def stop(self) -> list[str]:
        """End the recording, if one is under way; the files of the last one. Raises OSError."""
        ...

    def step(self, plan: Plan) -> AbstractContextManager[None]:
        """Around the launch of a step."""
        ...


class Engine:
    """Requests in, token deltas out. Single-threaded: the owner calls ``submit``, ``abort`` and ``step`` in turn."""

    def __init__(
        self, scheduler: Scheduler, runner: Runner, info: EngineInfo, seed: int, profiler: Profiler | None = None
    ):
        self.scheduler = scheduler
        self.runner = runner
        self.info = info
        self.profiler = profiler
        self._random = random.Random(seed)
        self._in_flight: deque[tuple[Step, Callable[[], Sampled]]] = deque()
        self._stats_sent = 0.0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._in_flight)

    def submit(self, submit: Submit) -> None:
        seed = submit.params.seed
        self.scheduler.submit(submit, self._random.getrandbits(63) if seed is None else seed)

    def abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.scheduler.abort(request_id)

    def step(self) -> list[TokenDelta]:
        """Launch the next step while earlier ones run, and commit the oldest once enough are under way."""
        step = self.scheduler.plan()
        if step is not None:
            with nullcontext() if self.profiler is None else self.profiler.step(step.plan):
                self._in_flight.append((step, self.runner.execute(step.plan)))
        news = self.scheduler.take_news()
        if self._in_flight and (step is None or len(self._in_flight) >= self.runner.steps_in_flight):
            oldest, wait = self._in_flight.popleft()
            return news + self.scheduler.commit(oldest, wait())
        if step is None and not news:
            self.scheduler.await_grammars(GRAMMAR_WAIT)
        return news

    def outputs(self, deltas: list[TokenDelta]) -> Outputs | None:
        """The message for what a step gave: None if there is nothing to tell and the last word is recent."""
        now = time.monotonic()
        if not deltas and now - self._stats_sent < STATS_INTERVAL:
            return None
        self._stats_sent = now
        return Outputs(now, deltas, self.scheduler.stats())

    def profile(self, start: bool) -> Profiled:
        """Begin to record a profile, or end it: then the steps in flight are waited for and the files written."""
        if self.profiler is None:
            return Profiled(error="No profiler is configured; --profiler-config names one.")
        if not start:
            try:
                return Profiled(self.profiler.stop())
            except (OSError, RuntimeError) as error:  # the latter is what torch makes of a file it can't write
                return Profiled(error=f"The profile could not be written: {error}.")
        if self.profiler.active:
            return Profiled(error="A profile is being recorded already; stop that one first.", was_active=True)
        self.profiler.start()
        return Profiled()

    def reset_prefix_cache(self, running: bool = False) -> None:
        """Forget which blocks hold which prompts; with ``running`` what runs starts again, reusing nothing either."""
        self.scheduler.reset_prefix_cache(running)
