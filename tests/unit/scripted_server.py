"""An HTTP server whose answers a test writes itself, byte by byte, and that notes when each part left."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from time import perf_counter
from types import TracebackType
from typing import Any

HEAD = b"HTTP/1.1 %d Scripted\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Call:
    """One request. ``body`` is what came; ``times`` are when each event left."""

    def __init__(self, path: str, body: Any, writer: asyncio.StreamWriter):
        self.path, self.body, self.writer = path, body, writer
        self.times: list[float] = []

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def begin(self, status: int = 200) -> None:
        await self.raw(HEAD % status)

    async def part(self, data: bytes) -> None:
        self.times.append(perf_counter())
        await self.raw(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, event: Any) -> None:
        await self.part(b"data: %b\n\n" % json.dumps(event).encode())

    async def text(self, text: str, finish_reason: str | None = None) -> None:
        await self.event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})

    async def usage(self, prompt: int, output: int) -> None:
        await self.part(
            b'data: {"choices": [], "usage": {"prompt_tokens": %d, "completion_tokens": %d}}\n\n' % (prompt, output)
        )
        self.times.pop()  # not a piece of text

    async def end(self) -> None:
        await self.raw(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    async def answer(self, status: int, body: bytes) -> None:
        await self.raw(b"HTTP/1.1 %d Scripted\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    def break_off(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Call], Awaitable[None]]


class ScriptedServer:
    """``with ScriptedServer(script) as server``: answers every POST by ``script`` in a thread of its own."""

    def __init__(self, script: Script):
        self.calls: list[Call] = []
        self.connections = 0
        self._script = script

    def __enter__(self) -> "ScriptedServer":
        ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._serve(ready),))
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def die(self) -> None:
        """Close the port and break all connections; in the server's own thread."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        self.die()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._connection(reader, writer)))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                call = Call(path, json.loads(body) if body else None, writer)
                if method == "GET":
                    await call.answer(404, b"")
                    continue
                self.calls.append(call)
                await self._script(call)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
