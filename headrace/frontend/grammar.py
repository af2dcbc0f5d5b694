"""What users ask of an output's form, made into one notation: llguidance's grammars.

Owns the spellings (JSON schema, regex, choice, Lark or GBNF grammar), the bounds on their size, and
the check at the door that a grammar compiles in time. Knows no tokens: masks are the engine's (engine/grammar.py).
"""

import asyncio
import functools
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.engine.grammar import TOO_SLOW, limits
from headrace.errors import RequestError
from headrace.frontend.structural import as_lark, read
from headrace.types import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_CHARACTERS = 128 * 1024  # of one grammar, so that compiling it stays quick
CHECK_SECONDS = 0.9
CHECK_THREADS = 2
POLL_SECONDS = 0.002
CACHED = 128  # verdicts kept
# Between JSON's tokens: a space, or a new line and its indentation. A model that loves spaces comes to an end of them.
WHITESPACE = r"[\x20\x09]|\x0D?\x0A[\x20\x09]{0,40}"


def grammar_of(wanted: StructuredOutputsParams) -> str:
    """The grammar in llguidance's notation. Raises ``RequestError`` for what is no schema, grammar, … by its form."""
    try:
        _check_size(len(msgspec.json.encode(wanted)))  # before any work on it
        text = _notation(wanted)
    except RecursionError:
        raise RequestError("The grammar is nested too deeply.", "structured_outputs") from None
    _check_size(len(text))
    return text


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        message = f"The grammar has {size} characters; at most {MAX_CHARACTERS} are allowed."
        raise RequestError(message, "structured_outputs")


@dataclass
class Check:
    """Whether a grammar can be used: ``fault`` is empty, or why not."""

    fault: Future[str] = field(default_factory=Future)
    began: float | None = None  # time.monotonic() seconds; None while it is queued

    @property
    def over(self) -> bool:
        """Whether there is an answer, or it has taken too long."""
        return self.fault.done() or (self.began is not None and time.monotonic() - self.began > CHECK_SECONDS)

    def raise_fault(self) -> None:
        """Raise ``RequestError`` if there is one; to be asked once it is over."""
        if reason := self.fault.result() if self.fault.done() else TOO_SLOW:
            raise RequestError(reason, "structured_outputs")

    def run(self, text: str) -> None:
        self.began = time.monotonic()
        try:
            self.fault.set_result(_fault(text))
        except Exception as error:  # whatever a request brings, it is that request's error
            self.fault.set_result(f"The grammar can't be used: {error}.")


def check_grammar(text: str) -> None:
    """Raise ``RequestError`` unless a grammar in llguidance's notation compiles in time and allows something."""
    check = _check(text)
    while not check.over:
        time.sleep(POLL_SECONDS)
    check.raise_fault()


async def check_grammar_async(text: str) -> None:
    """The same, without holding the event loop up."""
    check = _check(text)
    while not check.over:
        await asyncio.sleep(POLL_SECONDS)
    check.raise_fault()


@functools.lru_cache(CACHED)
def _check(text: str) -> Check:
    check = Check()
    _threads().submit(check.run, text)
    return check


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CHECK_THREADS, "grammar")


def _fault(text: str) -> str:
    """Why a grammar can't be used, or nothing. A vocabulary of single bytes is enough to find out."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), text, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()  # a grammar that nothing satisfies compiles
    if not matcher.is_error():
        return ""
    reason, *details = matcher.get_error().splitlines()
    if reason.startswith("NoExtension"):
        reason = "nothing satisfies it"
    reason = next((line for line in details if line.startswith("error:")), reason)  # a regex's is told on many lines
    reason = reason.removeprefix("error: ").partition("; following special tokens")[0]  # which are not the model's
    return f"The grammar can't be used: {reason[:300].rstrip('.')}."


# -- spellings ------------------------------------------------------------------------------------------------------


def _notation(wanted: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    if wanted.json is not None:
        return LLMatcher.grammar_from_json_schema(_schema(wanted.json, wanted), overrides=_whitespace(wanted))
    if wanted.json_object:
        return LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=_whitespace(wanted))
    if wanted.regex is not None:
        return str(LLMatcher.grammar_from_regex(wanted.regex))
    if wanted.choice is not None:
        return str(LLMatcher.grammar_from_lark("start: ONE\nONE: " + " | ".join(map(_literal, wanted.choice))))
    if wanted.grammar is not None:
        return str(LLMatcher.grammar_from_lark(_lark(wanted.grammar)))
    assert wanted.structural_tag is not None  # one of them is
    return as_lark(read(wanted.structural_tag), functools.partial(_written, wanted), _lark)


def _written(wanted: StructuredOutputsParams, schema: Any) -> str:
    """A JSON schema as it stands in Lark after %json."""
    return json.dumps({**_schema(schema, wanted), "x-guidance": _whitespace(wanted)})


def _schema(given: str | bool | dict[str, Any], wanted: StructuredOutputsParams) -> Any:
    """A JSON schema, parsed if it is text."""
    if isinstance(given, str):
        try:
            given = msgspec.json.decode(given)
        except msgspec.DecodeError as error:
            raise RequestError(f"The JSON schema is no JSON: {error}.", "structured_outputs") from None
    if isinstance(given, bool):
        given = {} if given else {"not": {}}
    if not isinstance(given, dict):
        raise RequestError("A JSON schema is an object.", "structured_outputs")
    return _closed(given) if wanted.disable_additional_properties else given


def _closed(schema: Any) -> Any:
    """``schema`` with every object in it closed to properties it doesn't name, unless it says otherwise."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) or schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def _whitespace(wanted: StructuredOutputsParams) -> "JsonCompileOptions":
    if wanted.disable_any_whitespace:
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": wanted.whitespace_pattern or WHITESPACE}


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _lark(grammar: str) -> str:
    """A grammar in Lark's notation, or in GBNF, as llama.cpp and xgrammar have it (``root ::= …``)."""
    if "::=" not in grammar:
        return grammar
    from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

    try:
        return str(any_to_lark(grammar))
    except (GbnfToLarkError, AssertionError, KeyError) as error:
        raise RequestError(f"The GBNF grammar can't be read: {error}.", "structured_outputs") from None
