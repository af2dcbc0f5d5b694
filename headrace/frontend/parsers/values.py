"""Arguments that a model wrote in another way than JSON, as JSON. Knows no markers."""

import ast
import json
from typing import Any

UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def is_string(schema: Any, key: str) -> bool:
    """Whether a tool's JSON schema says that its argument ``key`` is a string."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    described = properties.get(key) if isinstance(properties, dict) else None
    return isinstance(described, dict) and described.get("type") == "string"


def escaped(text: str) -> str:
    """A piece of text as the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def as_json(text: str) -> str:
    """A value written as JSON or as Python literal, or else the text itself, as JSON."""
    for read in (json.loads, ast.literal_eval):
        try:
            return json.dumps(read(text.strip()), ensure_ascii=False, allow_nan=False)
        except UNREADABLE:
            continue
    return json.dumps(text, ensure_ascii=False)


def keywords_as_json(arguments: str) -> str | None:
    """``(a=1, b="x")``, as Python calls take it, as a JSON object; None if it is anything else."""
    try:
        call = ast.parse("f" + arguments, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(word.arg is None for word in call.keywords):
            return None
        values = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        return json.dumps(values, ensure_ascii=False, allow_nan=False)
    except UNREADABLE:
        return None


def text_of(written: str) -> str | None:
    """The text of a JSON string; None if it is none."""
    try:
        value = json.loads(written)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
