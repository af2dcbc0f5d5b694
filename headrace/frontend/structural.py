"""Structural tags, xgrammar's way to say where in an output a form holds, made into llguidance's Lark notation.

The formats are those of xgrammar's StructuralTag; what mixes free text in a way that llguidance can't tell apart is
refused. Knows no schemas: how one is written into the grammar is the caller's.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from headrace.errors import RequestError

FREE = "TEXT: /(.|\\n)*/"


class Format(msgspec.Struct, forbid_unknown_fields=True):
    """The parts of a structural tag; ``type`` tells them apart."""


class AnyText(Format, tag="any_text"):
    pass


class ConstString(Format, tag="const_string"):
    value: str


class JsonSchema(Format, tag="json_schema"):
    json_schema: dict[str, Any] | bool


class Regex(Format, tag="regex"):
    pattern: str


class Grammar(Format, tag="grammar"):
    grammar: str


class Sequence(Format, tag="sequence"):
    elements: list["AnyFormat"]


class Or(Format, tag="or"):
    elements: list["AnyFormat"]


class Tag(Format, tag="tag"):
    begin: str
    content: "AnyFormat"
    end: str


class TriggeredTags(Format, tag="triggered_tags"):
    """Free text, in which each trigger starts one of the tags that begin with it."""

    triggers: list[str]
    tags: list[Tag]
    at_least_one: bool = False
    stop_after_first: bool = False


class TagsWithSeparator(Format, tag="tags_with_separator"):
    tags: list[Tag]
    separator: str
    at_least_one: bool = False
    stop_after_first: bool = False


AnyFormat = (
    AnyText | ConstString | JsonSchema | Regex | Grammar | Sequence | Or | Tag | TriggeredTags | TagsWithSeparator
)


class StructuralTag(msgspec.Struct, forbid_unknown_fields=True):
    format: AnyFormat
    type: str = "structural_tag"


class Structure(msgspec.Struct, forbid_unknown_fields=True):
    """What stands between two fixed texts."""

    begin: str
    schema: dict[str, Any] | bool
    end: str


class OlderTag(msgspec.Struct, forbid_unknown_fields=True):
    """The form that vLLM and xgrammar had first."""

    structures: list[Structure]
    triggers: list[str]
    type: str = "structural_tag"

    @property
    def format(self) -> AnyFormat:
        tags = [Tag(begin=s.begin, content=JsonSchema(json_schema=s.schema), end=s.end) for s in self.structures]
        return TriggeredTags(triggers=self.triggers, tags=tags)


class Item(NamedTuple):
    """A stretch of output: a fixed text or (``fixed`` is None) a Lark expression; ``free`` if any text may end it."""

    fixed: str | None
    lark: str = ""
    free: bool = False


ANY = Item(None, "TEXT", free=True)


def read(given: str | dict[str, Any]) -> AnyFormat:
    """The format that a structural tag, of either form, stands for. Raises ``RequestError``."""
    try:
        fields = msgspec.json.decode(given) if isinstance(given, str) else given
        if isinstance(fields, dict) and "structures" in fields:
            return msgspec.convert(fields, OlderTag).format
        return msgspec.convert(fields, StructuralTag).format
    except msgspec.MsgspecError as error:
        raise RequestError(f"The structural tag is invalid: {error}.", "structured_outputs") from None


def as_lark(format: AnyFormat, schema: Callable[[Any], str], lark: Callable[[str], str]) -> str:
    """The grammar in llguidance's JSON. ``schema`` writes a JSON schema, ``lark`` a grammar in either notation."""
    rules = Rules(schema, lark)
    rules.lines.append("start: " + rules.joined(rules.items(format)))
    main = "\n".join(["%llguidance {}", *rules.lines, FREE])
    grammars = [{"name": "structural_tag", "lark_grammar": main}, *rules.grammars]
    return json.dumps({"grammars": grammars})


class Rules:
    """The rules that a format needs besides its own expression."""

    def __init__(self, schema: Callable[[Any], str], lark: Callable[[str], str]):
        self.lines: list[str] = []
        self.grammars: list[dict[str, str]] = []
        self._schema, self._lark = schema, lark

    def items(self, format: AnyFormat) -> list[Item]:
        """The stretches that a format is made of, in their order."""
        match format:
            case AnyText():
                return [ANY]
            case ConstString():
                return [Item(format.value)]
            case JsonSchema():
                return [Item(None, "%json " + self._schema(format.json_schema))]
            case Regex():
                pattern = format.pattern.replace("\\/", "/").replace("/", "\\/").replace("\n", "\\n")
                return [Item(None, f"/{pattern}/")]
            case Grammar():
                name = f"grammar_{len(self.grammars)}"
                self.grammars.append({"name": name, "lark_grammar": self._lark(format.grammar)})
                return [Item(None, "@" + name)]
            case Sequence():
                return [item for element in format.elements for item in self.items(element)]
            case Tag():
                return [Item(format.begin), *self.items(format.content), Item(format.end)]
            case Or():
                return [self._any_of([self.items(element) for element in format.elements])]
            case TriggeredTags():
                return [self._triggered(format)]
            case TagsWithSeparator():
                return [self._separated(format)]

    def joined(self, items: list[Item]) -> str:
        """One expression for items in a row. Free text goes up to the fixed text after it."""
        parts, rest = [], [item for item in items if item.fixed != ""]
        while rest:
            item, *rest = rest
            if item.free and rest:
                if item != ANY or rest[0].fixed is None:
                    message = "In a structural tag any text can go up to a fixed text or to the end, and nowhere else."
                    raise RequestError(message, "structured_outputs")
                parts.append(self._up_to(rest.pop(0).fixed or ""))
            else:
                parts.append(item.lark if item.fixed is None else quoted(item.fixed))
        return " ".join(parts) or '""'

    def _up_to(self, fixed: str) -> str:
        return self._rule("TEXT " + quoted(fixed), "[lazy]")

    def _rule(self, body: str, options: str = "") -> str:
        name = f"part_{len(self.lines)}"
        self.lines.append(f"{name}{options}: {body}")
        return name

    def _any_of(self, choices: list[list[Item]]) -> Item:
        if not choices:
            raise RequestError("A structural tag has an empty list of formats to choose from.", "structured_outputs")
        body = " | ".join(self.joined(items) for items in choices)
        return Item(None, self._rule(body), any(items[-1].free for items in choices if items))

    def _triggered(self, format: TriggeredTags) -> Item:
        ways: dict[str, list[list[Item]]] = {}
        for tag in format.tags:
            trigger = next((trigger for trigger in format.triggers if trigger and tag.begin.startswith(trigger)), None)
            if trigger is None:
                raise RequestError(f"No trigger begins the structural tag {tag.begin!r}.", "structured_outputs")
            _, *inner = self.items(tag)
            ways.setdefault(trigger, []).append([Item(tag.begin.removeprefix(trigger)), *inner])
        if not ways:
            raise RequestError("A structural tag needs at least one tag.", "structured_outputs")
        tags = [f"{self._up_to(trigger)} {self._any_of(choices).lark}" for trigger, choices in ways.items()]
        one = self._rule(" | ".join(tags))
        if format.stop_after_first:
            return Item(None, one) if format.at_least_one else Item(None, f"({one} | TEXT)", free=True)
        return Item(None, f"({one}){'+' if format.at_least_one else '*'} TEXT", free=True)

    def _separated(self, format: TagsWithSeparator) -> Item:
        tags = self._any_of([self.items(tag) for tag in format.tags])
        separator = quoted(format.separator) if format.separator else ""
        several = tags.lark if format.stop_after_first else f"{tags.lark} ({separator} {tags.lark})*"
        return Item(None, f"({several})" if format.at_least_one else f"({several})?", tags.free)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
