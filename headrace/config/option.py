"""How one option is declared: the field's default and type, and beside them all that a user may need to know of it.

Owns the facts and the reading of a value from text; does not know which options exist.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec.json import decode

from headrace.errors import ConfigError

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")
T = TypeVar("T", bound=msgspec.Struct)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What an option's declaration says beside its name, type and default.

    ``aliases``: further flags. ``choices``: the only values allowed. ``minimum``/``maximum``: bounds, included.
    ``auto``: the integer that the word "auto" stands for. ``size``: takes 40k, 1K, 2.5G.
    ``later``: a feature still to come, which any value but the default and the ``neutral`` ones needs.
    ``moot``: the reason why another value than the default changes nothing here; it is logged.
    """

    help: str
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    auto: int | None = None
    size: bool = False
    later: str = ""
    neutral: tuple[Any, ...] = ()
    moot: str = ""
    secret: bool = False


def option(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field that is an option. A list or dict default is copied for each configuration."""
    metadata = {"facts": Facts(help, **facts)}
    shown = not facts.get("secret", False)
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata, repr=shown)
    return dataclasses.field(default=default, metadata=metadata, repr=shown)


@dataclasses.dataclass(frozen=True)
class Option:
    """One declared option: ``name`` in Python, ``flag`` on the command line, ``group`` in the configuration."""

    name: str
    group: str
    type: Any
    default: Any
    facts: Facts

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def kind(self) -> type:
        """bool, int, float, str, list or dict: the type without its "or None" and its items' type."""
        inner = [part for part in typing.get_args(self.type) if part is not types.NoneType]
        chosen = inner[0] if isinstance(self.type, types.UnionType) else self.type
        return typing.get_origin(chosen) or chosen

    @property
    def item(self) -> type:
        """The type of a list's items."""
        return typing.get_args(self.type)[0] if self.kind is list else self.kind

    def parse(self, value: Any) -> Any:
        """``value`` from the command line, a file or Python as this option's type; ConfigError if it can't be."""
        if value is None:
            return self.default
        if self.kind is list:
            entries = value if isinstance(value, list | tuple) else [value]
            value = [self._parse_one(part, self.item) for entry in entries for part in split_json_list(entry)]
        else:
            value = self._parse_one(value, self.kind)
        try:
            value = msgspec.convert(value, self.type)
        except msgspec.ValidationError:
            raise self.wrong(value) from None
        self._check(value)
        return value

    def wrong(self, value: Any) -> ConfigError:
        got = "" if self.facts.secret else f", got {value!r}"
        return ConfigError(f"{self.flag} must be {self.expected()}{got}.")

    def expected(self) -> str:
        """What a value must be, in words."""
        facts = self.facts
        if facts.choices:
            return "one of " + ", ".join(filter(None, facts.choices))
        words = {
            bool: "true or false", int: "a whole number", float: "a number", str: "text", dict: "a JSON object",
            list: "a list of texts" if self.item is str else "a list of numbers",
        }[self.kind]  # fmt: skip
        if facts.minimum is not None and facts.maximum is not None:
            words += f" between {facts.minimum:g} and {facts.maximum:g}"
        elif facts.minimum is not None:
            words += f" of at least {facts.minimum:g}"
        if facts.size:
            words += " such as 40000, 40k or 1K"
        return words + (" or auto" if facts.auto is not None else "")

    def _parse_one(self, value: Any, kind: type) -> Any:
        if not isinstance(value, str):
            return str(value).removeprefix("torch.") if kind is str and self.facts.choices else value
        text = value.strip()
        if self.facts.auto is not None and text.lower() == "auto":
            return self.facts.auto
        readers: dict[type, Callable[[str], Any]] = {bool: parse_bool, int: int, float: float, dict: decode}
        if self.facts.size:
            readers[int] = parse_size
        try:
            return readers[kind](text) if kind in readers else value
        except (ValueError, OverflowError):  # the latter of a size beyond all floats
            raise self.wrong(value) from None

    def _check(self, value: Any) -> None:
        facts = self.facts
        for entry in value if isinstance(value, list) else [value]:
            if entry is None or (facts.auto is not None and entry == facts.auto):
                continue
            too_small = facts.minimum is not None and entry < facts.minimum
            too_large = facts.maximum is not None and entry > facts.maximum
            endless = isinstance(entry, float) and not math.isfinite(entry)  # JSON, as the engine gets it, has no such
            if too_small or too_large or endless or (facts.choices and entry not in facts.choices):
                raise self.wrong(entry)


def split_json_list(value: Any) -> list[Any]:
    """``["a", "b"]`` given as JSON text counts as its entries; anything else as itself."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = decode(value)
        except ValueError:
            return [value]
        return parsed if isinstance(parsed, list) else [value]
    return [value]


def parse_bool(text: str) -> bool:
    if text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    raise ValueError(text)


def parse_size(text: str) -> int:
    """A whole number, or one with a suffix: k, m, g, t count in thousands, K, M, G, T in 1024s (25.6k, 1K, 4GiB)."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    match = SIZE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    number, suffix = match.groups()
    power = " kmgt".index(suffix.lower()) if suffix else 0
    base = 1024 if suffix.isupper() else 1000
    return round(float(number) * float(base**power))


def options_of(groups: dict[str, type]) -> list[Option]:
    """The options that the dataclasses ``groups`` declare, in order."""
    return [
        Option(
            field.name,
            group,
            field.type,
            field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default,
            field.metadata["facts"],
        )
        for group, declared in groups.items()
        for field in dataclasses.fields(declared)
    ]


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown name: ``; did you mean X?`` if one of ``known`` is like it, else a stop."""
    plain = {each.lstrip("-"): each for each in known}  # the dashes of flags would make them all alike
    match = difflib.get_close_matches(name.lstrip("-"), plain, n=1)
    return f"; did you mean {plain[match[0]]}?" if match else "."


def check_keys(flag: str, value: Iterable[str], known: Sequence[str]) -> None:
    """Raises ConfigError for a key of an option's JSON object that is not ``known``."""
    for key in value:
        if key not in known:
            raise ConfigError(f"{flag} has no key {key!r}{nearest(key, known)} Its keys are {', '.join(known)}.")


def settings_in(flag: str, value: dict[str, Any] | None, kind: type[T]) -> T:
    """The JSON object of an option as the struct that declares its keys. Raises ConfigError for what it can't hold."""
    check_keys(flag, value or {}, kind.__struct_fields__)
    try:
        return msgspec.convert(value or {}, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{flag} can't be used: {error}.") from None
