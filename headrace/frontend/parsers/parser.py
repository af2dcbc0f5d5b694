"""One answer's text taken apart into reasoning, content and tool calls, as it comes or at once, with the same result.

Knows the formats' descriptions; does not know any family, nor HTTP. A call counts from the moment its name and the
beginning of its arguments are read: from then on arguments are passed on as they are written. What does not fit the
format before that point, or after a call, is content. White space between parts belongs to none of them.
"""

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import regex

from headrace.frontend.parsers.formats import Calls, ReasoningFormat, Span
from headrace.frontend.parsers.reader import Reader, Reading
from headrace.frontend.parsers.values import as_json, escaped, is_string, keywords_as_json, text_of

KEY = r'\s*("(?:[^"\\]|\\.)*")\s*:\s*(?=\S)'
SCALAR = r"([^\s,\[\]{}\"]+)(?=[\s,\]}])"
BRACE, END, NEXT = r"\{", r"\s*\}", r"\s*,(?=\s*\")"
ARGUMENT_KEYS = ("arguments", "parameters")
Kind = Literal["reasoning", "content"] | int  # of a part of an answer; an int is a call's index


@dataclass
class CallPiece:
    """News of the ``index``-th call: its name, with its first piece only, and more of its arguments' JSON text."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass
class Part:
    """More of one part of an answer: of its reasoning, its content or (``kind`` is an index) a call's arguments.

    ``name``: the call's, with its first piece only.
    """

    kind: Kind
    text: str
    name: str | None = None


@dataclass
class Piece:
    """What is new in an answer: its parts, as they came."""

    parts: list[Part] = field(default_factory=list)

    @property
    def reasoning(self) -> str:
        return self._texts("reasoning")

    @property
    def content(self) -> str:
        return self._texts("content")

    @property
    def calls(self) -> list[CallPiece]:
        return [CallPiece(part.kind, part.name, part.text) for part in self.parts if isinstance(part.kind, int)]

    def add(self, kind: Kind, text: str) -> None:
        """More of the part that goes on, or of another one."""
        if self.parts and self.parts[-1].kind == kind:
            self.parts[-1].text += text
        elif text:
            self.parts.append(Part(kind, text))

    def _texts(self, kind: str) -> str:
        return "".join(part.text for part in self.parts if part.kind == kind)


class Parser:
    """``tools``: the JSON schemas of the request's tools, by name. ``inside``: the answer begins with reasoning.

    ``most_calls``: further calls are dropped.
    """

    def __init__(
        self,
        sections: tuple[Calls, ...] = (),
        reasoning: ReasoningFormat | None = None,
        tools: Mapping[str, Any] | None = None,
        *,
        inside: bool = False,
        most_calls: int | None = None,
    ):
        self.num_calls = 0
        self.cut = False  # whether the answer ended within a call's arguments
        self._unmarked = [section for section in sections if not section.marker]
        self._marked = [section for section in sections if section.marker]
        self._reasoning = reasoning
        self._tools = tools or {}
        self._inside = inside
        self._most_calls = most_calls
        self._spans = reasoning.spans if reasoning else ()
        markers = [section.marker for section in self._marked] + [span.marker for span in self._spans]
        self._markers = tuple(dict.fromkeys(markers))
        self._reader = Reader()
        self._piece = Piece()
        self._kinds: set[str] = set()  # of the parts there have been
        self._open = "content"  # the kind of the part that goes on
        self._space = ""  # read, and not given out yet
        self._steps: Generator[None, None, None] = self._read()

    def add(self, text: str, *, last: bool = False) -> Piece:
        """What ``text``, the next piece of the answer, brings."""
        self._reader.add(text, last)
        next(self._steps, None)
        if last and self._open == "content":
            self._piece.add("content", self._space)
        piece, self._piece = self._piece, Piece()
        return piece

    # -- the answer -------------------------------------------------------------------------------------------------

    def _read(self) -> Reading[None]:
        reader = self._reader
        if self._reasoning is not None and not self._spans:
            yield from self._first_reasoning(self._reasoning)
        for section in self._unmarked:
            if (yield from self._section(section)):
                break
        while marker := (yield from reader.until(self._markers, partial(self._say, "content"))):
            if not (yield from self._part(marker)):
                self._say("content", reader.text[reader.at])
                reader.at += 1

    def _first_reasoning(self, format: ReasoningFormat) -> Reading[None]:
        starts = "|".join(map(regex.escape, format.starts))
        started = yield from self._reader.match(rf"\s*(?:{starts})")
        if started or self._inside:
            self._border()
            end = yield from self._reader.until(format.ends, partial(self._say, "reasoning"))
            self._reader.at += len(end)
            self._border()

    def _part(self, marker: str) -> Reading[bool]:
        """Read the part that begins with ``marker`` here; False, and nothing is read, if none does."""
        for section in self._marked:
            if section.marker == marker and (yield from self._section(section)):
                return True
        for span in self._spans:
            if span.marker == marker and (yield from self._span(span)):
                return True
        return False

    def _span(self, span: Span) -> Reading[bool]:
        reader = self._reader
        if not (yield from reader.match(span.begin)):
            return False
        self._border()
        end = yield from reader.until(span.ends, partial(self._say, span.kind))
        self._border()
        if end not in self._markers:
            reader.at += len(end)
        return True

    # -- calls ------------------------------------------------------------------------------------------------------

    def _section(self, format: Calls) -> Reading[bool]:
        reader = self._reader
        reader.mark = reader.at
        begun = yield from reader.match(format.begin)
        if not begun or not (yield from self._call(format)):
            self._go_back()
            return False
        while format.again:
            reader.mark = reader.at
            more = yield from reader.match(format.again)
            if not more or not (yield from self._call(format)):
                self._go_back()
                break
        if format.close:
            yield from reader.match(format.close, or_cut=True)
        return True

    def _go_back(self) -> None:
        if self._reader.mark is not None:
            self._reader.at, self._reader.mark = self._reader.mark, None

    def _call(self, format: Calls) -> Reading[bool]:
        """Read one call; False if none is here, and then nothing has been given out."""
        if format.style == "object":
            found = yield from self._object_call(format)
        else:
            found = yield from self._headed_call(format)
        if found and format.end:
            yield from self._reader.match(format.end, or_cut=True)
        return found

    def _headed_call(self, format: Calls) -> Reading[bool]:
        head = yield from self._reader.match(format.head)
        name = head and (format.name or head["name"].strip())
        if not name or not self._may_call(format, name):
            return False
        if format.style == "python":
            written: list[str] = []
            complete = yield from self._reader.value(written.append, "\"'")
            arguments = keywords_as_json("".join(written)) if complete else None
            if arguments is None:
                return False
            self._begin_call(name, arguments)
            return True
        self._begin_call(name)
        if format.pairs is None:
            self.cut = not (yield from self._reader.value(self._argue))
        else:
            yield from self._pairs(format, self._tools.get(name))
        return True

    def _pairs(self, format: Calls, schema: Any) -> Reading[None]:
        pairs, reader, before = format.pairs, self._reader, "{"
        assert pairs is not None
        while found := (yield from reader.match(pairs.key)):
            key = found["key"].strip()
            before += f"{json.dumps(key, ensure_ascii=False)}: "
            if is_string(schema, key):
                self._argue(before + '"')
                yield from reader.until(pairs.ends, lambda text: self._argue(escaped(text)))
                after = '"'
            else:
                written: list[str] = []
                yield from reader.until(pairs.ends, written.append)
                after = before + as_json("".join(written))
            if not (yield from reader.match(pairs.close)):
                self.cut = True  # within a value
                return
            self._argue(after)
            before = ", "
        self._argue("}" if before == ", " else "{}")

    def _object_call(self, format: Calls) -> Reading[bool]:
        """A JSON object with a name and arguments, in whatever order and among whatever else."""
        reader = self._reader
        if not (yield from reader.match(BRACE)):
            return False
        name: str | None = None
        arguments: str | None = "{}"
        while found := (yield from reader.match(KEY)):
            key = text_of(found[1])
            if key in ARGUMENT_KEYS and name is not None and reader.text[reader.at] == "{":
                self._begin_call(name)
                self.cut = not (yield from reader.value(self._argue))
                yield from self._rest_of_object()
                return True
            value = yield from self._value()
            if value is None:
                return False
            if key == "name":
                name = text_of(value)
                if name is None or not self._may_call(format, name):
                    return False
            elif key in ARGUMENT_KEYS:
                arguments = "{}" if value == "null" else value if value.startswith("{") else text_of(value)
            if not (yield from reader.match(NEXT)):
                break
        if name is None or arguments is None or not (yield from reader.match(END)):
            return False
        self._begin_call(name, arguments)
        return True

    def _rest_of_object(self) -> Reading[None]:
        """What follows the arguments in a call's object says nothing more."""
        reader = self._reader
        while (yield from reader.match(NEXT)):
            if not (yield from reader.match(KEY)) or (yield from self._value()) is None:
                return
        yield from reader.match(END, or_cut=True)

    def _value(self) -> Reading[str | None]:
        """A JSON value as it is written; None if there is none, or the text ends within it."""
        if found := (yield from self._reader.match(SCALAR)):
            return str(found[1])
        written: list[str] = []
        if self._reader.text[self._reader.at : self._reader.at + 1] not in ("{", "[", '"'):
            return None
        complete = yield from self._reader.value(written.append)
        return "".join(written) if complete else None

    def _may_call(self, format: Calls, name: str) -> bool:
        return bool(format.marker) or name in self._tools

    # -- giving out -------------------------------------------------------------------------------------------------

    def _begin_call(self, name: str, arguments: str = "") -> None:
        self._reader.mark = None
        self._border()
        self.num_calls += 1
        if self._most_calls is None or self.num_calls <= self._most_calls:
            self._piece.parts.append(Part(self.num_calls - 1, arguments, name))

    def _argue(self, text: str) -> None:
        index = self.num_calls - 1
        if self._most_calls is None or index < self._most_calls:
            self._piece.add(index, text)

    def _say(self, kind: Literal["reasoning", "content"], text: str) -> None:
        """Give text out, but for space at its end, which waits for what follows. Parts of a kind stay apart."""
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        if not said:
            return
        if self._open != kind:
            if kind not in self._kinds:
                said = said.lstrip()
            elif not said[0].isspace():
                said = "\n" + said
        self._kinds.add(kind)
        self._open = kind
        self._piece.add(kind, said)

    def _border(self) -> None:
        """Another part begins or ends here; the space in front of it is nobody's."""
        self._open, self._space = "", ""
