"""A server that streams tokens faster than any engine, to measure the client: all answers at one steady rate.

``python -m tests.e2e.flood PORT STREAMS TOKENS RATE`` waits for STREAMS requests at once, then writes each of them
TOKENS tokens, RATE a second over all; and so on for the next STREAMS. Ends with its stdin.
"""

import asyncio
import resource
import sys
from time import perf_counter
from typing import cast

import uvloop

EVENT = b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1,"model":"m","choices":[%b]}\n\n'
CHOICE = b'{"index":0,"text":" word","logprobs":null,"finish_reason":%b,"stop_reason":null}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TICK_SECONDS = 0.001
LONGEST_BURST = 0.05  # seconds' worth of tokens, after a pause that the system made


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKEN = chunk(EVENT % (CHOICE % b"null"))
LAST = chunk(EVENT % (CHOICE % b'"length"'))


class Stream(asyncio.Protocol):
    """A connection; ``waiting`` gets those with a request."""

    def __init__(self, waiting: "list[Stream]"):
        self._waiting = waiting
        self._input = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._input += data
        head, found, body = self._input.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        elif len(body) < int(head.partition(b"Content-Length: ")[2].split()[0]):
            return
        else:
            self._waiting.append(self)
        self._input = b""

    def write(self, data: bytes) -> None:
        self._transport.write(data)


async def answer(streams: list[Stream], tokens: int, rate: float) -> None:
    """Write ``tokens`` tokens to each of ``streams`` in turn, ``rate`` a second together."""
    usage = EVENT.replace(
        b'"choices":[%b]', b'"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}' % tokens
    )
    for stream in streams:
        stream.write(HEAD)
    credit, before = 0.0, perf_counter()
    for number in range(1, tokens + 1):
        data = TOKEN if number < tokens else LAST + chunk(usage) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        for stream in streams:
            while credit < 1:
                await asyncio.sleep(TICK_SECONDS)
                now = perf_counter()
                credit, before = min(credit + (now - before) * rate, LONGEST_BURST * rate), now
            stream.write(data)
            credit -= 1


async def serve(port: int, count: int, tokens: int, rate: float) -> None:
    loop, waiting, ended = asyncio.get_running_loop(), list[Stream](), asyncio.StreamReader()
    server = await loop.create_server(lambda: Stream(waiting), "127.0.0.1", port, backlog=count)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(ended), sys.stdin)
    end = asyncio.create_task(ended.read())
    while not end.done():
        await asyncio.sleep(TICK_SECONDS)
        if len(waiting) >= count:
            streams, waiting[:count] = waiting[:count], []
            await answer(streams, tokens, rate)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
