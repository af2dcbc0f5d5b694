"""What describes a family's way to write tool calls and reasoning into its text: markers, patterns and styles.

Every pattern ends in something it can't do without (see Reader.match).
"""

from dataclasses import dataclass
from typing import Literal

Style = Literal["object", "json", "pairs", "python"]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Arguments as keys and values: ``key`` leads to a value, which goes up to one of ``ends``; then ``close`` follows.

    Values are JSON, or bare text where the tool's schema says string (or where it is no JSON).
    """

    key: str
    ends: tuple[str, ...]
    close: str


@dataclass(frozen=True, kw_only=True)
class Calls:
    """A section of calls: ``begin``, then calls (``head``, arguments, ``end``) parted by ``again``, then ``close``.

    ``marker``: the text at which a section begins; "" means that an answer may begin with one unmarked, and then the
    names must be those of the request's tools. ``style``: how a call holds its name and arguments: "object" is one
    JSON object with both, "json" the arguments as JSON after a head with the name, "pairs" keys and values in markers
    after such a head, "python" a function call. ``name``: the function's, where the text doesn't say it.
    """

    marker: str = ""
    style: Style = "object"
    begin: str = ""
    head: str = ""
    pairs: Pairs | None = None
    end: str = ""
    again: str = ""
    close: str = ""
    name: str = ""


@dataclass(frozen=True)
class ToolFormat:
    """``signs``: texts of which one is in the chat template of such a model. ``special``: markers are special tokens,
    which must not be left out of the text then. ``short_ids``: calls have ids of nine letters and digits.
    """

    sections: tuple[Calls, ...]
    signs: tuple[str, ...] = ()
    special: bool = False
    short_ids: bool = False


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of one kind of text: after ``begin``, which starts with ``marker``, up to one of ``ends``."""

    marker: str
    begin: str
    ends: tuple[str, ...]
    kind: Literal["reasoning", "content"]


@dataclass(frozen=True, kw_only=True)
class ReasoningFormat:
    """Reasoning at the answer's start, between one of ``starts`` and one of ``ends``, or in ``spans`` anywhere.

    ``inside``: an answer begins with reasoning even if neither the prompt's end nor the answer has a start.
    With ``spans``, ``starts`` and ``ends`` are those of reasoning, one of ``gates`` leads to the answer itself (without
    any, the end of reasoning does), and ``closing`` leads from reasoning there (without it, the first of ``ends``).
    """

    starts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()
    gates: tuple[str, ...] = ()
    closing: str = ""
    inside: bool = False
    signs: tuple[str, ...] = ()
    special: bool = False
