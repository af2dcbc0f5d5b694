"""From request fields to StructuredOutputsParams: OpenAI's ``response_format``, vLLM's ``structured_outputs`` and the
older ``guided_*``. Knows the spellings only; frontend/grammar.py says what they mean.
"""

from typing import Any

import msgspec

from headrace.errors import RequestError
from headrace.server.schema import SamplingFields
from headrace.types import StructuredOutputsParams

GUIDED = ("json", "regex", "choice", "grammar", "json_object", "whitespace_pattern")  # as guided_json and so on


def structured_outputs(body: SamplingFields) -> StructuredOutputsParams | None:
    """What ``body`` asks of the output's form. Raises ``RequestError`` if two of its fields ask for different things.

    Clients for every vLLM there was (guidance) say the same by its older and its newer names.
    """
    asked: dict[str, dict[str, Any]] = {}
    if body.response_format is not None and (wanted := _of_response_format(body.response_format)):
        asked["response_format"] = wanted
    if body.structured_outputs is not None:
        asked["structured_outputs"] = body.structured_outputs
    guided = {name: value for name in GUIDED if (value := getattr(body, f"guided_{name}")) is not None}
    if guided.keys() - {"whitespace_pattern"}:
        asked["guided_" + next(iter(guided))] = guided
    if any(fields != next(iter(asked.values())) for fields in asked.values()):
        raise RequestError(f"{' and '.join(asked)} exclude each other: send one of them.", list(asked)[-1])
    for field, fields in asked.items():
        try:
            return msgspec.convert(fields, StructuredOutputsParams)
        except msgspec.ValidationError as error:
            if isinstance(error.__cause__, RequestError):
                raise RequestError(str(error.__cause__), field) from None
            raise RequestError(f"{field} is invalid: {error}.", field) from None
    return None


def _of_response_format(given: dict[str, Any]) -> dict[str, Any] | None:
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "structural_tag":
        return {"structural_tag": given}
    if kind != "json_schema":
        raise RequestError(
            f"response_format.type must be text, json_object, json_schema or structural_tag, got {kind!r}.",
            "response_format",
        )
    inner = given.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict | bool):
        raise RequestError("response_format.json_schema.schema must be a JSON schema.", "response_format")
    return {"json": schema}
