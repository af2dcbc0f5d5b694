"""What a chat's ``tools`` and ``tool_choice`` ask for, checked. Does not know how a model writes its calls."""

import logging
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from headrace.errors import RequestError
from headrace.frontend.parsers.families import forced_calls
from headrace.frontend.parsers.formats import Calls, ReasoningFormat
from headrace.frontend.validation import check_tool_name
from headrace.server.schema import ChatFields

logger = logging.getLogger(__name__)
CHOICES = ("none", "auto", "required")


@dataclass(frozen=True)
class ToolUse:
    """``schemas``: of the tools that may be called, by name. ``forced``: whether the answer has to be a call of one of
    them, or ("named") the arguments of the only one.
    """

    schemas: dict[str, Any] = field(default_factory=dict)
    forced: Literal["required", "named"] | None = None

    def sections(self, reasoning: ReasoningFormat | None) -> tuple[Calls, ...]:
        """How a forced answer is read, which such reasoning goes before."""
        return forced_calls(next(iter(self.schemas)) if self.forced == "named" else None, reasoning)

    def answer_schema(self, most_calls: int | None) -> dict[str, Any]:
        """The JSON schema of a forced answer."""
        if self.forced == "named":
            return next(iter(self.schemas.values()))
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": {"$ref": f"#/$defs/{place}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for place, name in enumerate(self.schemas)
        ]
        schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
        schema["$defs"] = {str(i): moved(tool, f"#/$defs/{i}") for i, tool in enumerate(self.schemas.values())}
        return schema if most_calls is None else schema | {"maxItems": most_calls}


@lru_cache
def warn_unreadable() -> None:
    """Said once."""
    logger.warning(
        'How this model writes tool calls is not known, so tool_choice "auto" works as "none": '
        "--tool-call-parser names a format."
    )


def tool_use(body: ChatFields) -> ToolUse:
    """Raises RequestError if tools or tool_choice are malformed or don't fit each other."""
    tools, choice = offered(body)
    if choice == "none" or (choice in (None, "auto") and not tools):
        return ToolUse()
    schemas = dict(map(checked_tool, tools))
    if isinstance(choice, dict):
        name = function_name(choice)
        if name is None:
            message = "tool_choice as an object must be of the type function, with its name, or allowed_tools."
            raise RequestError(message, "tool_choice")
        if name not in schemas:
            raise RequestError(f"tool_choice names the function {name!r}, which is not among tools.", "tool_choice")
        return ToolUse({name: schemas[name]}, "named")
    if choice not in (None, *CHOICES):
        message = f"tool_choice must be none, auto, required or an object that names a function, got {choice!r}."
        raise RequestError(message, "tool_choice")
    if not schemas:
        raise RequestError(f"tool_choice {choice!r} needs tools to choose from.", "tool_choice")
    return ToolUse(schemas, "required" if choice == "required" else None)


def offered(body: ChatFields) -> tuple[list[dict[str, Any]], str | dict[str, Any] | None]:
    """The tools that the model is shown, and the choice among them: allowed_tools leaves those that it lists.

    Raises RequestError.
    """
    tools, choice = body.tools or [], body.tool_choice
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return tools, choice
    allowed = choice.get("allowed_tools")
    mode, listed = (allowed.get("mode"), allowed.get("tools")) if isinstance(allowed, dict) else (None, None)
    names = set(map(function_name, listed)) if isinstance(listed, list) else set()
    if not names or names - set(map(function_name, tools)) or mode not in ("auto", "required"):
        message = "tool_choice allowed_tools needs a mode, auto or required, and functions that are among tools."
        raise RequestError(message, "tool_choice")
    return [tool for tool in tools if function_name(tool) in names], mode


def function_name(tool: Any) -> str | None:
    """The name in ``{"type": "function", "function": {"name": …}}``, if that is what ``tool`` is."""
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def checked_tool(tool: dict[str, Any]) -> tuple[str, Any]:
    """A tool's name and the JSON schema of its arguments."""
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise RequestError('Each of tools must be {"type": "function", "function": {"name": …}}.', "tools")
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str):
        raise RequestError("Each of tools needs a function with a name.", "tools")
    check_tool_name(name)
    if schema is not None and not isinstance(schema, dict):
        raise RequestError(f"The parameters of the tool {name!r} must be a JSON schema (an object).", "tools")
    return name, {"type": "object"} | (schema or {"properties": {}})


def moved(schema: Any, place: str) -> Any:
    """A schema whose references to itself hold when it lies at ``place`` of another one."""
    if isinstance(schema, list):
        return [moved(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else moved(value, place)
        for key, value in schema.items()
    }
