"""Text that comes in pieces, read as if it were whole: every reading waits until more text can't change what it says.

A reading is a generator that yields whenever it needs more text. Knows no format.
"""

from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any, TypeVar

import regex

T = TypeVar("T")
Reading = Generator[None, None, T]
LONGEST_MATCH = 4096  # characters a pattern may span, so that hostile text can't make matching slow
compiled = lru_cache(maxsize=256)(regex.compile)


class Reader:
    """``text`` from ``at`` on is unread. While ``mark`` is set, reading may go back to it."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.mark: int | None = None
        self.ended = False

    def add(self, text: str, last: bool) -> None:
        begin = self.at if self.mark is None else self.mark
        self.text = self.text[begin:] + text
        self.at -= begin
        self.mark = None if self.mark is None else 0
        self.ended = last

    def match(self, pattern: str, *, or_cut: bool = False) -> Reading[Any]:
        """The match of a pattern here, which is then read, or None.

        The pattern must end in something it can't do without (not in ``x?`` or ``x*``), or its match would hang on how
        the text was cut. ``or_cut``: a beginning of it at the end of the text counts too.
        """
        while True:
            found = compiled(pattern).match(self.text, self.at, self.at + LONGEST_MATCH, partial=True)
            if found is not None and found.partial:
                if not self.ended and len(self.text) - self.at < LONGEST_MATCH:
                    yield
                    continue
                found = found if or_cut and self.ended else None
            if found is not None:
                self.at = found.end()
            return found

    def until(self, markers: tuple[str, ...], out: Callable[[str], None]) -> Reading[str]:
        """Hand the text before the first of ``markers`` to ``out``; returns that marker, unread, or "" at the end."""
        while True:
            places = [(place, marker) for marker in markers if (place := self.text.find(marker, self.at)) >= 0]
            place, marker = min(places, default=(len(self.text), ""))
            if not self.ended:
                possible = self._possible(markers)
                place, marker = (possible, "") if possible < place else (place, marker)
            if place > self.at:
                out(self.text[self.at : place])
                self.at = place
            if marker or self.ended:
                return marker
            yield

    def _possible(self, markers: tuple[str, ...]) -> int:
        """Where the end of the text may be the beginning of a marker."""
        longest = max(map(len, markers), default=1)
        for place in range(max(self.at, len(self.text) - longest + 1), len(self.text)):
            tail = self.text[place:]
            if any(marker.startswith(tail) for marker in markers):
                return place
        return len(self.text)

    def value(self, out: Callable[[str], None], quotes: str = '"') -> Reading[bool]:
        """Hand a string or bracketed value to ``out`` as it is written; False if the text ends within it.

        Counts brackets and quotes only, so what a model wrote is passed on as it is, valid or not.
        """
        depth, quote, escaped = 0, "", False
        while True:
            begin = self.at
            for place, char in enumerate(self.text[begin:], begin + 1):
                if escaped:
                    escaped = False
                elif quote:
                    escaped = char == "\\"
                    quote = "" if char == quote else quote
                elif char in quotes:
                    quote = char
                else:
                    depth += (char in "{[(") - (char in "}])")
                if depth <= 0 and not quote:
                    self.at = place
                    out(self.text[begin:place])
                    return True
            if begin < len(self.text):
                out(self.text[begin:])
                self.at = len(self.text)
            if self.ended:
                return False
            yield
