"""The tools of a response's request as the chat's functions, and the choice among them.

Shapes: OpenAI's Responses API. A function within a namespace goes by both names in the chat, as in vLLM.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from msgspec import UNSET, UnsetType

from headrace.errors import RequestError
from headrace.server.responses.items import full_name

logger = logging.getLogger(__name__)
Tool = dict[str, Any]
# What OpenAI's own servers run. Agents offer it to whatever server they talk to, and no model has to use it.
HOSTED = (
    *("web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "file_search"),
    *("code_interpreter", "image_generation", "mcp", "tool_search", "programmatic_tool_calling"),
)


@lru_cache
def warn_hosted(kind: str) -> None:
    """Said once of each kind."""
    logger.warning("Requests offer tools of the type %s, which this server can't run: no model is told of them.", kind)


def functions(tools: Sequence[Any], namespace: str | UnsetType = UNSET) -> Iterator[Tool]:
    """The functions among ``tools``, each with its ``namespace``; hosted tools are left out.

    Raises ``RequestError`` for tools of other types, which a client means to run itself.
    """
    for tool in tools:
        kind, name = (tool.get("type"), tool.get("name")) if isinstance(tool, dict) else (None, None)
        if kind in HOSTED:
            warn_hosted(kind)
        elif kind == "function" and isinstance(name, str):
            yield tool | {"namespace": namespace}
        elif (
            kind == "namespace" and isinstance(name, str) and isinstance(tool.get("tools"), list) and namespace is UNSET
        ):
            yield from functions(tool["tools"], name)
        else:
            message = f"Each of tools must be a function with a name, or a namespace of such, got the type {kind!r}."
            raise RequestError(message, "tools")


def chat_tool(name: str, function: Tool) -> Tool:
    fields = {key: function[key] for key in ("description", "parameters", "strict") if function.get(key) is not None}
    return {"type": "function", "function": {"name": name} | fields}


def by_name(tools: Sequence[Any]) -> dict[str, Tool]:
    """The functions by their names in the chat."""
    return {full_name(function["name"], function["namespace"]): function for function in functions(tools)}


def chat_choice(choice: Any) -> Any:
    """A ``tool_choice`` as the chat's, which has names and allowed tools one level deeper."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") != "allowed_tools":
        return named(choice)
    listed = choice.get("tools")
    tools = [named(tool) for tool in listed if isinstance(tool, dict)] if isinstance(listed, list) else []
    tools = [tool for tool in tools if tool["type"] not in HOSTED]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": tools}}


def named(choice: Tool) -> Tool:
    return {"type": choice.get("type"), "function": {"name": choice.get("name")}}
