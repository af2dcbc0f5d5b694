"""One request over HTTP/1.1: sent, its answer's bytes timed as they arrive, connections kept for the next one.

Owns connections. Made for thousands of answers at once in one process, where httpx and aiohttp take several times as
long per part of a stream: bytes go from the socket through httptools into a ``Reply``, with no task in between.
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools
import msgspec

from headrace.bench.api import APIS, GARBAGE, Api, BadReply, Reply, error_text

CHECKS_PER_TIMEOUT = 20
LONGEST_CHECK = 1.0  # seconds
IDLE_SECONDS = 2.0  # for which a connection is kept; servers close theirs after 5, and a POST is not sent twice


@dataclass(frozen=True)
class Target:
    """Where requests go. ``timeout``: seconds without a byte after which a request has failed."""

    url: str
    backend: str
    headers: Mapping[str, str]
    timeout: float
    insecure: bool = False

    @property
    def api(self) -> Api:
        return APIS[self.backend]


class Lost(Exception):
    """The connection could not be made or broke; the message is the reason that the request failed."""


class Connection(asyncio.Protocol):
    """One connection to the server; ``exchange`` runs one request on it at a time."""

    def __init__(self, api: Api):
        self._api = api
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[None] | None = None
        self._body = b""  # of an answer that is no stream
        self.touched = 0.0  # when the last byte came, or the request left
        self.silent = True  # nothing of the answer has come yet
        self.reusable = False

    async def exchange(self, message: bytes, reply: Reply) -> None:
        """Send a request and wait for the end of its answer, which goes to ``reply``. Raises Lost or BadReply."""
        self._reply, self._body = reply, b""
        self.silent, self.reusable = True, False
        self.touched = perf_counter()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        try:
            await self._done
        finally:
            self._done = None
            if not self.reusable:
                self._transport.abort()

    def close(self) -> None:
        self._transport.abort()

    def finish(self, error: Exception | None = None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.touched = perf_counter()
        self.silent = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.finish(BadReply(f"not HTTP: {error}"))
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        begun = "before an answer" if self.silent else "in the middle of an answer"
        self.finish(Lost(f"connection lost {begun}"))

    # -- what httptools calls

    def on_headers_complete(self) -> None:
        self._good = self._parser.get_status_code() == 200
        self._streamed = self._good and self._api.streamed

    def on_body(self, data: bytes) -> None:
        if not self._streamed:
            self._body += data
            return
        try:
            self._reply.feed(data, self.touched, self._api.read)
        except BadReply as error:
            self.finish(error)
            self._transport.abort()

    def on_message_complete(self) -> None:
        self.reusable = self._parser.should_keep_alive() and not self._transport.is_closing()
        try:
            self._check()
        except BadReply as error:
            self.finish(error)
        self.finish()

    def _check(self) -> None:
        if not self._good:
            raise BadReply(f"HTTP {self._parser.get_status_code()}: {reason_of(self._body)}")
        if not self._streamed:
            self._api.read(self._body, self._reply, self.touched)
        if not self._reply.times:
            raise BadReply("an answer without a token")
        if not self._reply.ended:
            raise BadReply("the stream ended early")


class Client:
    """Sends requests to one target over as many connections as are needed at once. An async context manager."""

    def __init__(self, target: Target):
        self._target = target
        parts = urlsplit(target.url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context()
            if target.insecure:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc.rpartition("@")[2], "Accept": "*/*", "Content-Type": "application/json"}
        lines = [f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in (headers | dict(target.headers)).items())]
        self._head = "\r\n".join([*lines, "Content-Length: "]).encode()
        self._addresses: list[str] = []  # of the host, the one that answered last in front
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    async def __aenter__(self) -> "Client":
        self._watch = asyncio.create_task(self._end_stalled())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watch.cancel()
        for connection in self._idle:
            connection.close()

    async def send(self, body: object, reply: Reply) -> None:
        """POST ``body`` as JSON; the answer goes to ``reply``. Raises Lost or BadReply."""
        data = msgspec.json.encode(body)
        message = b"%b%d\r\n\r\n%b" % (self._head, len(data), data)
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.touched > perf_counter() - IDLE_SECONDS:
                return await self._exchange(connection, message, reply)
            connection.close()
        return await self._exchange(await self._connect(), message, reply)

    async def _exchange(self, connection: Connection, message: bytes, reply: Reply) -> None:
        self._busy.add(connection)
        try:
            await connection.exchange(message, reply)
        finally:
            self._busy.discard(connection)
            if connection.reusable:
                self._idle.append(connection)

    async def _connect(self) -> Connection:
        """A connection to the first of the host's addresses that takes one. Raises Lost."""
        try:
            if not self._addresses:
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                self._addresses = [str(address[4][0]) for address in found]
            for address in self._addresses:
                try:
                    connection = await asyncio.wait_for(self._open(address), self._target.timeout)
                except OSError as error:
                    reason = error
                else:
                    self._addresses = [address]
                    return connection
            raise reason
        except ConnectionRefusedError:
            raise Lost("connection refused") from None
        except OSError as error:
            raise Lost(f"no connection: {error.strerror or error or 'timed out'}") from None

    async def _open(self, address: str) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._target.api),
            address,
            self._port,
            ssl=self._tls,
            server_hostname=self._host if self._tls else None,
        )
        return connection

    async def _end_stalled(self) -> None:
        """Fail the requests whose server has said nothing for too long; one check for all, so that none has a timer."""
        timeout = self._target.timeout
        while True:
            await asyncio.sleep(min(timeout / CHECKS_PER_TIMEOUT, LONGEST_CHECK))
            limit = perf_counter() - timeout
            for connection in self._busy:
                if connection.touched < limit:
                    connection.finish(Lost(f"stalled: no byte for {timeout:g} s"))


def reason_of(body: bytes) -> str:
    """What the body of an HTTP error says."""
    try:
        error = msgspec.json.decode(body)
    except GARBAGE:
        return error_text(body.decode("utf-8", "replace"))
    return error_text(error.get("error") or error if isinstance(error, dict) else error)
