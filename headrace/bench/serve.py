"""A load on a server, from arrivals to outcomes: client processes, the terminal's progress, requests before it.

Knows no flags, no figures and no files.
"""

import asyncio
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from time import perf_counter, sleep

import msgspec
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from headrace.bench.api import BadReply, Reply
from headrace.bench.client import Client, Lost, Target
from headrace.bench.load import PROGRAM, Outcome, Outcomes, Request, Share, Tally, chains, framed, outcome_of, receive
from headrace.errors import HeadraceError

LEAD_SECONDS = 0.05  # from telling the processes when to begin until then
SHOW_SECONDS = 0.25
RETRY_SECONDS = 1.0
MESSAGES = msgspec.msgpack.Decoder(Tally | Outcomes)


def arrivals(rates: np.ndarray, burstiness: float, seed: int) -> list[float]:
    """When each request is due, in seconds after the start; ``rates``: at which each comes, in requests per second.

    Intervals are of a gamma distribution of shape ``burstiness``: 1 makes a Poisson process, more is more even,
    infinity exactly even. Their sum is exact, so the last of a constant rate comes at ``count / rate``.
    """
    means = 1 / rates
    if not means.any():
        return [0.0] * len(rates)
    even = np.isinf(burstiness)
    times = np.cumsum(means if even else np.random.default_rng(seed).gamma(burstiness, means / burstiness))
    last = times[-1] or 1.0  # 0 where bursts are so large that all is one
    due: list[float] = (times * (means.sum() / last)).tolist()
    return due


@dataclass(frozen=True)
class Plan:
    """A load: ``slots`` bounds the requests on their way at once, over all ``processes``; ``show`` draws progress."""

    target: Target
    requests: list[Request]
    slots: int | None = None
    processes: int = 1
    show: bool = False

    def shares(self) -> list[Share]:
        """One for every process that has something to do; conversations stay whole."""
        every = chains(self.requests)
        number = min(self.processes, len(every), self.slots or len(every))
        return [
            Share(self.target, list(chain(*every[one::number])), self.slots and len(range(one, self.slots, number)))
            for one in range(number)
        ]


@dataclass
class Run:
    """What became of a plan. ``begin`` is a moment by ``perf_counter``, as those of the outcomes are.

    ``busy``: the part of the time that the busiest of the client ``processes`` computed.
    """

    outcomes: list[Outcome]
    begin: float
    interrupted: bool
    processes: int
    busy: float

    @property
    def duration(self) -> float:
        """Seconds from the start to the end of the last answer."""
        return max((outcome.end for outcome in self.outcomes), default=perf_counter()) - self.begin


@dataclass
class Child:
    """A client process and what it has told."""

    process: asyncio.subprocess.Process
    share: Share
    tally: Tally = field(default_factory=Tally)
    outcomes: list[Outcome] | None = None
    busy: float = 0.0

    @classmethod
    async def start(cls, share: Share) -> "Child":
        pipe = asyncio.subprocess.PIPE
        # A session of its own: Ctrl-C in the terminal is for the parent, which then asks for what there is.
        process = await asyncio.create_subprocess_exec(
            sys.executable, *PROGRAM, stdin=pipe, stdout=pipe, start_new_session=True
        )
        child = cls(process, share)
        await child.tell(share)
        return child

    async def tell(self, message: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(framed(message))
        await self.process.stdin.drain()

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    async def listen(self) -> bool:
        """Take in one message. False at the end of the process."""
        assert self.process.stdout is not None
        try:
            message = MESSAGES.decode(await receive(self.process.stdout))
        except asyncio.IncompleteReadError:
            await self.process.wait()
            return False
        if isinstance(message, Tally):
            self.tally = message
        else:
            self.outcomes, self.busy = message.outcomes, message.busy
        return True

    async def follow(self, begin: float) -> list[Outcome]:
        while await self.listen():
            pass
        if self.outcomes is not None:
            return self.outcomes
        reason = f"the client process ended with exit code {self.process.returncode}"
        return [
            outcome_of(request, Reply(), begin + request.at, 0.0, begin + request.at, reason)
            for request in self.share.requests
        ]


def run(plan: Plan) -> Run:
    """Put the load on the server. SIGINT and SIGTERM end it early, and what was on its way has failed then."""
    return asyncio.run(drive(plan))


async def drive(plan: Plan) -> Run:
    children: list[Child] = []
    try:
        children += [await Child.start(share) for share in plan.shares()]
        for child in children:
            if not await child.listen():
                raise HeadraceError(f"a client process ended at once, with exit code {child.process.returncode}.")
        begin, interrupted = perf_counter() + LEAD_SECONDS, asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupt, children, interrupted)
        show = asyncio.create_task(draw_progress(children, len(plan.requests), begin, plan.show))
        for child in children:
            await child.tell(begin)
        parts = await asyncio.gather(*(child.follow(begin) for child in children))
        show.cancel()
        await asyncio.wait({show})
    finally:
        for child in children:
            if child.process.returncode is None:
                child.process.kill()
                await child.process.wait()
    outcomes = sorted((outcome for part in parts for outcome in part), key=lambda outcome: outcome.index)
    return Run(outcomes, begin, interrupted.is_set(), len(children), max(child.busy for child in children))


def interrupt(children: Iterable[Child], interrupted: asyncio.Event) -> None:
    interrupted.set()
    for child in children:
        child.stop()


async def draw_progress(children: list[Child], total: int, begin: float, show: bool) -> None:
    """On a terminal, until cancelled: how many requests are where, and the figures so far."""
    console = Console(stderr=True)
    columns = (BarColumn(30), MofNCompleteColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not (show and console.is_terminal), auto_refresh=False) as bars:
        bar = bars.add_task("", total=total, state="")

        def update() -> None:
            tally = reduce(Tally.plus, (child.tally for child in children))
            state = describe(tally, max(perf_counter() - begin, SHOW_SECONDS))
            bars.update(bar, completed=tally.done + tally.failed, state=state, refresh=True)

        try:
            while True:
                await asyncio.sleep(SHOW_SECONDS)
                update()
        finally:
            update()


def describe(tally: Tally, seconds: float) -> str:
    parts = [
        f"{tally.done} done",
        f"{tally.running} running",
        f"[red]{tally.failed} failed[/red]" if tally.failed else "0 failed",
        f"{tally.pieces / seconds:,.0f} tok/s",
    ]
    if tally.begun:
        parts.append(f"TTFT {1000 * tally.first / tally.begun:.1f} ms")
    if tally.pieces > tally.begun:
        parts.append(f"ITL {1000 * tally.between / (tally.pieces - tally.begun):.2f} ms")
    return " · ".join(parts)


# -- before the load ------------------------------------------------------------------------------------------------


def wait_ready(target: Target, request: Request, seconds: float) -> None:
    """Send one request until it succeeds. Raises HeadraceError if none does within ``seconds``."""
    deadline = perf_counter() + seconds
    while reasons := asyncio.run(try_out(target, [request])):
        if perf_counter() >= deadline:
            raise HeadraceError(f"{target.url} was not ready within {seconds:g} s: {reasons[0].rstrip('.')}.")
        sleep(RETRY_SECONDS)


def warm_up(target: Target, request: Request, count: int) -> None:
    """Send a request ``count`` times at once, unmeasured. Raises HeadraceError if one fails."""
    if reasons := asyncio.run(try_out(target, [request] * count)):
        raise HeadraceError(f"{len(reasons)} of {count} warm-up requests failed: {reasons[0].rstrip('.')}.")


async def try_out(target: Target, requests: list[Request]) -> list[str]:
    """Why those of ``requests`` failed that did."""
    async with Client(target) as client:
        sent = (client.send(request.body, Reply()) for request in requests)
        results = await asyncio.gather(*sent, return_exceptions=True)
    for result in results:
        if result is not None and not isinstance(result, BadReply | Lost):
            raise result
    return [str(result) for result in results if result is not None]
