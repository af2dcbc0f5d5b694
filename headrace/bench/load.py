"""A client process: sends its share of the requests, each at its time, and tells its parent what became of them.

Talks to its parent over stdin and stdout in msgpack, each message after its length. The end of stdin ends the load,
so nothing of it outlives its parent. Knows no dataset, no figure and no terminal.
"""

import asyncio
import contextlib
import gc
import resource
import struct
import sys
from contextlib import AbstractAsyncContextManager
from itertools import pairwise
from time import perf_counter, process_time  # the first is the same clock in all processes of one machine
from typing import Any

import msgspec

from headrace.bench.api import BadReply, Reply
from headrace.bench.client import Client, Lost, Target

PROGRAM = ("-m", "headrace.bench.load")
LENGTH = struct.Struct("<Q")
TALLY_SECONDS = 0.25
NO_CYCLES = 100_000  # new objects between collections: what a run keeps has few cycles
INTERRUPTED = "interrupted"
NO_TURN = "not sent: the conversation's turn before it failed"
CONTENT = {"messages", "input", "prompt"}  # the key of a body that holds what is said

Body = dict[str, Any]


class Request(msgspec.Struct, frozen=True):
    """``at``: seconds after the start. Requests of one ``conversation`` follow each other, replies between them."""

    index: int
    body: Body
    prompt_len: int
    at: float = 0.0
    conversation: int | None = None


class Share(msgspec.Struct, frozen=True):
    """What one process does. ``slots``: how many requests may be on their way at once; None is any number."""

    target: Target
    requests: list[Request]
    slots: int | None


class Outcome(msgspec.Struct, kw_only=True):
    """One request that was sent; times in seconds, moments by ``perf_counter``. ``error`` is empty if it succeeded."""

    index: int
    prompt_len: int
    output_len: int | None  # None: the server didn't say
    due: float  # when it should have left
    late: float  # how far behind that the client was, waiting for a slot apart
    start: float  # when it left
    end: float
    ttft: float = 0.0
    itls: list[float] = []
    latency: float = 0.0
    text: str = ""
    error: str = ""


class Tally(msgspec.Struct, kw_only=True, tag="tally"):
    """Where a load stands. Sums in seconds, to be divided by the counts beside them."""

    running: int = 0
    done: int = 0
    failed: int = 0
    pieces: int = 0
    first: float = 0.0  # of the TTFTs of `begun` answers
    begun: int = 0
    between: float = 0.0  # of the ITLs; there are `pieces - begun`

    def add(self, reply: Reply, start: float) -> None:
        if reply.times:
            self.begun += 1
            self.pieces += len(reply.times)
            self.first += reply.times[0] - start
            self.between += reply.times[-1] - reply.times[0]

    def plus(self, other: "Tally") -> "Tally":
        return Tally(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


class Outcomes(msgspec.Struct, tag="outcomes"):
    """The end of a share. ``busy``: the part of the time that the process computed; near 1 it delayed what it timed."""

    outcomes: list[Outcome]
    busy: float


class Load:
    """Sends a share's requests. ``outcomes`` holds those that were sent and have ended."""

    def __init__(self, share: Share, client: Client):
        self._share, self._client = share, client
        self.outcomes: list[Outcome] = []
        self._ended = Tally()
        self._running: dict[int, tuple[float, Reply]] = {}
        self._slots: AbstractAsyncContextManager[object] = (
            contextlib.nullcontext() if share.slots is None else asyncio.Semaphore(share.slots)
        )

    async def run(self, start: float) -> None:
        """Send everything, the first at ``start`` plus its time. If cancelled, what is on its way fails."""
        async with asyncio.TaskGroup() as tasks:
            for turns in chains(self._share.requests):
                await sleep_until(start + turns[0].at)
                tasks.create_task(self._converse(turns, start))

    def tally(self) -> Tally:
        tally = msgspec.structs.replace(self._ended, running=len(self._running))
        for start, reply in self._running.values():
            tally.add(reply, start)
        return tally

    async def _converse(self, turns: list[Request], start: float) -> None:
        """One request, or the turns of a conversation: each with what was said before, and none after a failure."""
        past: tuple[Body, str] | None = None  # the turn before, and its reply
        for number, turn in enumerate(turns, 1):
            due = start + turn.at if past is None else max(start + turn.at, perf_counter())
            await sleep_until(due)
            body = turn.body if past is None else continued(*past, turn.body)
            outcome = await self._send(turn, body, due)
            if outcome.error:
                for unsent in turns[number:]:
                    self._end(outcome_of(unsent, Reply(), outcome.end, 0.0, outcome.end, NO_TURN), Reply())
                return
            past = body, outcome.text

    async def _send(self, request: Request, body: Body, due: float) -> Outcome:
        late, reply, error = perf_counter() - due, Reply(), INTERRUPTED
        async with self._slots:
            start = perf_counter()
            self._running[request.index] = start, reply
            try:
                await self._client.send(body, reply)
                error = ""
            except (Lost, BadReply) as reason:
                error = str(reason)
            finally:
                del self._running[request.index]
                outcome = outcome_of(request, reply, due, late, start, error)
                self._end(outcome, reply)
        return outcome

    def _end(self, outcome: Outcome, reply: Reply) -> None:
        self.outcomes.append(outcome)
        self._ended.add(reply, outcome.start)
        self._ended.failed += bool(outcome.error)
        self._ended.done += not outcome.error


def chains(requests: list[Request]) -> list[list[Request]]:
    """The requests by conversation, those of none alone, in the order of their first one's time."""
    found: dict[object, list[Request]] = {}
    for request in requests:
        alone = request.conversation is None
        found.setdefault(("request", request.index) if alone else request.conversation, []).append(request)
    return sorted(found.values(), key=lambda turns: turns[0].at)


def continued(body: Body, reply: str, following: Body) -> Body:
    """The body of a following turn, with all that was said before in front: messages of chat, or text."""
    (key,) = CONTENT & body.keys()
    said = reply if isinstance(body[key], str) else [{"role": "assistant", "content": reply}]
    return following | {key: body[key] + said + following[key]}


def outcome_of(request: Request, reply: Reply, due: float, late: float, start: float, error: str) -> Outcome:
    """The latency of a success is until its last piece, as vLLM has it; a failure has none."""
    times = reply.times
    return Outcome(
        index=request.index,
        prompt_len=request.prompt_len if reply.prompt_tokens is None else reply.prompt_tokens,
        output_len=0 if error else reply.output_tokens,
        due=due,
        late=max(late, 0.0),
        start=start,
        end=perf_counter(),
        ttft=times[0] - start if times else 0.0,
        itls=[after - before for before, after in pairwise(times)],
        latency=times[-1] - start if times and not error else 0.0,
        text="".join(reply.pieces),
        error=error,
    )


async def sleep_until(moment: float) -> None:
    while (seconds := moment - perf_counter()) > 0:  # a timer may be a millisecond early
        await asyncio.sleep(seconds)


# -- between parent and child ---------------------------------------------------------------------------------------


def framed(message: object) -> bytes:
    data = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(data)) + data


async def receive(stream: asyncio.StreamReader) -> bytes:
    """The next message, undecoded. Raises IncompleteReadError at the end."""
    (length,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
    return await stream.readexactly(length)


async def child() -> None:
    """Receive a share, tell that it is there, receive when to begin; tell how it goes, and at the end the outcomes."""
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    share = msgspec.msgpack.decode(await receive(stdin), type=Share)
    async with Client(share.target) as client:
        load = Load(share, client)
        tell(load.tally())
        begin = msgspec.msgpack.decode(await receive(stdin), type=float)
        gc.collect()
        gc.freeze()
        gc.set_threshold(NO_CYCLES)
        work, began, computed = asyncio.create_task(load.run(begin)), perf_counter(), process_time()
        stop = asyncio.create_task(stdin.read(1))
        while not work.done():
            await asyncio.wait({work, stop}, timeout=TALLY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                work.cancel()
                await asyncio.wait({work})
            tell(load.tally())
        stop.cancel()
        if not work.cancelled():
            work.result()
    tell(Outcomes(load.outcomes, (process_time() - computed) / (perf_counter() - began)))


def tell(message: object) -> None:
    sys.stdout.buffer.write(framed(message))
    sys.stdout.buffer.flush()


def main() -> None:
    import uvloop

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection each for all requests at once
    with contextlib.suppress(BrokenPipeError, asyncio.IncompleteReadError):  # the parent has gone
        uvloop.run(child())


if __name__ == "__main__":
    main()
