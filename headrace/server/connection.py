"""One HTTP connection: uvicorn's over httptools, with a limit on a request's head. Knows no route."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536  # of a request line and its headers, about; as uvicorn allows over h11


class Connection(HttpToolsProtocol):
    """httptools parses at a fraction of h11's cost, but takes a head of any length: this ends such a connection."""

    _head_bytes: int | None = None  # of the head that is being read, if one is

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head_bytes = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's head is too large.")
