"""Server-sent events: the framing of a stream, its keep-alive comments, its errors and its early end.

Does not know what an event says.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headrace.server.context import context_of
from headrace.server.errors import ClientDisconnected, describe, error_body

logger = logging.getLogger(__name__)
T = TypeVar("T")
StreamFailure = Callable[[int, str, str | None], bytes]  # frames an error's HTTP status, message and field

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_encoder = msgspec.json.Encoder()


def event(body: object, name: str = "") -> bytes:
    """One framed event of a struct."""
    return (b"event: %b\n" % name.encode() if name else b"") + b"data: %b\n\n" % _encoder.encode(body)


def openai_failure(status: int, message: str, param: str | None) -> bytes:
    """The event that an error becomes."""
    return event(error_body(status, message, param))


class EventStream(Response):
    """Streams framed events and then ``end``; an exception of ``events`` becomes the last event before it.

    When the client leaves, ``events`` is closed at once. Silence is broken by comments as --sse-keep-alive-interval
    asks for.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], *, failure: StreamFailure = openai_failure, end: bytes = DONE
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events, self.failure, self.end = events, failure, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnected):  # nobody is left to tell
            silence = context_of(HTTPConnection(scope)).config.server.sse_keep_alive_interval
            await until_disconnected(receive, self.send_events(send, silence))

    async def send_events(self, send: Send, silence: float) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        beats = with_keep_alive(self.events, silence) if silence > 0 else self.events
        try:
            async for data in beats:
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            status, message, param = describe(error)
            if status == 500:
                logger.error("A stream failed.", exc_info=error)
            last = self.failure(status, message, param)
            await send({"type": "http.response.body", "body": last, "more_body": True})
        finally:
            await beats.aclose()
            await self.events.aclose()
        await send({"type": "http.response.body", "body": self.end, "more_body": False})


async def with_keep_alive(events: AsyncGenerator[bytes, None], interval: float) -> AsyncGenerator[bytes, None]:
    """``events``, with a comment after every ``interval`` seconds of silence."""
    pending = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=interval)
            if not done:
                yield KEEP_ALIVE
                continue
            data = pending.result()
            if data is None:
                return
            yield data
            pending = asyncio.ensure_future(anext(events, None))
    finally:
        await cancelled(pending)


async def until_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``; it is cancelled, and ClientDisconnected raised, if the client leaves before.

    Runs in the caller's own task, as thousands of streams may be waiting and a task takes 3 kB.
    """
    caller = asyncio.current_task()
    assert caller is not None

    async def disconnected() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        caller.cancel()

    gone = asyncio.ensure_future(disconnected())
    try:
        return await work
    except asyncio.CancelledError:
        if not gone.done():
            raise  # somebody else cancels the caller
        caller.uncancel()
        raise ClientDisconnected("The client left.") from None
    finally:
        await cancelled(gone)


async def gathered(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; should one fail, the others are cancelled and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def cancelled(task: "asyncio.Future[Any]") -> None:
    """Cancel a task if it still runs, and wait for its end; how it ends does not matter."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # seen: asyncio need not report it
