"""One HTTP connection: uvicorn's over httptools, with limits on a request's head and on its arrival. Knows no route."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536  # of a request line and its headers, about; as uvicorn allows over h11
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Connection(HttpToolsProtocol):
    """httptools parses at a fraction of h11's cost, but takes a head of any length and waits for ever: this ends such
    a connection. ``arrival_seconds``: what a request may take to arrive, from the connection or its first byte on.
    """

    _head_bytes: int | None = None  # of the head that is being read, if one is
    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *, arrival_seconds: float, **settings: Any):
        super().__init__(**settings)
        self._arrival_seconds = arrival_seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lift_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._set_deadline()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_bytes is not None:  # else it is a trailer, of which nothing is made and there is no end
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head_bytes = None

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._lift_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's head is too large.")

    def _set_deadline(self) -> None:
        self._lift_deadline()
        self._deadline = self.loop.call_later(self._arrival_seconds, self._end_slow_request)

    def _lift_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_slow_request(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.pipeline or (answering and not self.cycle.more_body):
            self._set_deadline()  # an earlier request of this connection is being answered, and this one has to wait
            return
        if not self.transport.is_closing():
            if self.cycle is None or answering or self._head_bytes is not None:
                self.transport.write(TOO_SLOW)
            self.transport.close()
