"""A line of a batch file, and the line that answers it, as OpenAI's Batch API writes them.

Knows the format and nothing of files, routes or the engine. https://platform.openai.com/docs/guides/batch
"""

import hashlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec

from headrace.server.errors import error_body
from headrace.server.generation import new_id

ID_PREFIX = "batch_req_"
NOTHING = msgspec.Raw(b"null")


class Line(msgspec.Struct, frozen=True):
    """One request. ``index`` counts the requests from 0, ``number`` the file's lines from 1. ``fault``: why it can't be
    sent, and the field that is to blame.
    """

    index: int
    number: int
    raw: bytes
    custom_id: str | None = None
    url: str = ""
    body: msgspec.Raw = NOTHING
    fault: tuple[str, str | None] | None = None


class Envelope(msgspec.Struct):
    """What a line holds, before anything is checked."""

    custom_id: Any = None
    method: Any = None
    url: Any = None
    body: msgspec.Raw = NOTHING

    @property
    def name(self) -> str | None:
        """The custom_id, if it is one."""
        return self.custom_id if isinstance(self.custom_id, str) and self.custom_id else None


class BodyStart(msgspec.Struct):
    stream: Any = None
    background: Any = None


class Response(msgspec.Struct):
    """``body``: the route's own answer."""

    status_code: int
    request_id: str
    body: msgspec.Raw


class Answer(msgspec.Struct):
    """The line that answers a request; ``error`` repeats what the body of a failed one says."""

    id: str
    custom_id: str | None
    response: Response
    error: msgspec.Raw | None

    @property
    def failed(self) -> bool:
        return self.error is not None


class ErrorOnly(msgspec.Struct):
    error: msgspec.Raw


def raw_lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of those that aren't blank; of a longer one than ``limit`` bytes only its beginning."""
    number = 0
    while line := file.readline(limit + 1):
        number += 1
        rest = line
        while len(rest) > limit and not rest.endswith(b"\n"):
            rest = file.readline(limit + 1)
        if line := line.removeprefix(b"\xef\xbb\xbf").strip():
            yield number, line


def parsed(index: int, number: int, raw: bytes, urls: frozenset[str], limit: int) -> Line:
    """The request in a line; ``urls``: those that lines may name; ``limit``: the longest line, in bytes."""
    if len(raw) > limit:
        return Line(
            index, number, raw, fault=(f"It is longer than the {limit:,} bytes that --max-request-bytes allows", None)
        )
    try:
        found = msgspec.json.decode(raw, type=Envelope)
    except (msgspec.MsgspecError, UnicodeError):
        return Line(index, number, raw, fault=("It is no JSON object", None))
    except RecursionError:
        return Line(index, number, raw, fault=("It is nested too deeply", None))
    return Line(index, number, raw, found.name, str(found.url), found.body, fault_of(found, urls))


def fault_of(found: Envelope, urls: frozenset[str]) -> tuple[str, str | None] | None:
    if found.name is None:
        return "It needs a custom_id, a text that is not empty", "custom_id"
    if found.method != "POST":
        return "Its method must be POST", "method"
    if not isinstance(found.url, str) or found.url not in urls:
        return f"Its url must be one of {', '.join(sorted(urls))}", "url"
    try:
        start = msgspec.json.decode(found.body, type=BodyStart)
    except msgspec.MsgspecError:
        return "Its body must be a JSON object", "body"
    if start.background:
        return "A batch waits for each answer: leave background out of its body", "background"
    return ("A batch has no streams: leave stream out of its body", "stream") if start.stream else None


def custom_id_of(raw: bytes) -> str | None:
    """The custom_id of a line, if it has one."""
    try:
        return msgspec.json.decode(raw, type=Envelope).name
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def answer_id(raw: bytes, model: str) -> str:
    """The id of a line's answer: the same for the same request to the same model, so that a later run knows it."""
    key = hashlib.sha256(model.encode()).digest()
    return ID_PREFIX + hashlib.blake2b(raw, key=key, digest_size=16).hexdigest()


def answer_of(line: Line, model: str, status: int, body: bytes, request_id: str | None = None) -> Answer:
    """``body``: JSON, as the route wrote it."""
    error = None
    if status >= 400:
        try:
            error = msgspec.json.decode(body, type=ErrorOnly).error
        except msgspec.MsgspecError:
            error = msgspec.Raw(body)
    response = Response(status, request_id or new_id("batch"), msgspec.Raw(body))
    return Answer(answer_id(line.raw, model), line.custom_id, response, error)


def refused(line: Line, model: str, message: str, param: str | None) -> Answer:
    """The answer to a line that no route gets to see."""
    body = msgspec.json.encode(error_body(400, f"Line {line.number} can't be answered. {message}.", param))
    return answer_of(line, model, 400, body)
