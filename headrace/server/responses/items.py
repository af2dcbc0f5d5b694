"""The items of a conversation, as a response takes and gives them, and the chat messages they stand for.

Shapes: OpenAI's Responses API. Knows no request and no route.
"""

import base64
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from headrace.errors import RequestError

MAX_ITEMS = 10_000  # of one request
Status = Literal["in_progress", "completed", "incomplete"]
Content = list[dict[str, Any]]


class Message(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """``content``: text parts; a string is one."""

    id: str = ""
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Content
    status: Status | None = "completed"

    def __post_init__(self) -> None:
        if isinstance(self.content, str):
            kind = "output_text" if self.role == "assistant" else "input_text"
            self.content = [{"type": kind, "text": self.content}]


class Reasoning(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """``encrypted_content``: the text in base64, for clients that send back nothing else."""

    id: str = ""
    summary: Content = []
    content: Content | None = None
    encrypted_content: str | None = None
    status: Status | None = "completed"

    @property
    def text(self) -> str:
        if not (self.content or self.summary) and self.encrypted_content:
            try:
                return base64.b64decode(self.encrypted_content, validate=True).decode()
            except ValueError:
                raise RequestError(
                    "The encrypted_content of a reasoning item is not from this server.", "input"
                ) from None
        return "\n".join(str(part.get("text", "")) for part in self.content or self.summary)


class FunctionCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """``arguments``: JSON text. ``namespace``: of the function, if it has one."""

    id: str = ""
    call_id: str
    name: str
    namespace: str | UnsetType = UNSET
    arguments: str
    status: Status | None = "completed"


class CallOutput(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call_output"):
    id: str = ""
    call_id: str
    output: str | Content
    status: Status | None = "completed"


class Reference(msgspec.Struct, kw_only=True, tag_field="type", tag="item_reference"):
    """An item of a stored response."""

    id: str


Item = Message | Reasoning | FunctionCall | CallOutput
PREFIXES: dict[type, str] = {Message: "msg", Reasoning: "rs", FunctionCall: "fc", CallOutput: "fco"}
TYPES = ("message", "reasoning", "function_call", "function_call_output", "item_reference")


def full_name(name: str, namespace: str | UnsetType) -> str:
    """Of a function, as the model knows it."""
    return f"{namespace}__{name}" if namespace else name


def new_item_id(kind: type) -> str:
    return f"{PREFIXES[kind]}_{secrets.token_hex(12)}"


def input_items(given: str | list[Any] | None, find: Callable[[str], Item]) -> list[Item]:
    """The items of a request's input, each with an id. ``find`` looks up a stored one, or raises.

    Raises ``RequestError``.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    given = given or []
    if len(given) > MAX_ITEMS:
        raise RequestError(f"input may hold at most {MAX_ITEMS:,} items, got {len(given):,}.", "input")
    items = []
    for place, fields in enumerate(given):
        item = checked(fields, f"input[{place}]")
        if isinstance(item, Reference):
            item = find(item.id)
        item.id = item.id or new_item_id(type(item))
        items.append(item)
    return items


def checked(fields: Any, where: str) -> Item | Reference:
    if not isinstance(fields, dict):
        raise RequestError(f"{where} must be an item: an object with a type.", "input")
    kind = fields.get("type") or ("message" if "role" in fields else "item_reference")
    if kind not in TYPES:
        raise RequestError(f"{where} is of type {kind!r}; this server takes {', '.join(TYPES)}.", "input")
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return msgspec.convert(given | {"type": kind}, Item | Reference)  # type: ignore[arg-type, no-any-return]
    except msgspec.ValidationError as error:
        raise RequestError(f"{where} is invalid: {error}.", "input") from None


def chat_messages(instructions: str | None, items: Sequence[Item]) -> list[dict[str, Any]]:
    """The conversation as chat messages: reasoning, text and calls in a row are one turn of the assistant's.

    Calls that were cut short are left out. Raises ``RequestError`` for a call's output without the call.
    """
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the functions, by call
    cut = {item.call_id for item in items if isinstance(item, FunctionCall) and item.status == "incomplete"}
    for item in ([Message(role="system", content=instructions)] if instructions else []) + list(items):
        if isinstance(item, CallOutput | FunctionCall) and item.call_id in cut:
            continue
        if isinstance(item, CallOutput):
            if item.call_id not in names:
                raise RequestError(f"No function_call with call_id {item.call_id!r} comes before its output.", "input")
            call = {"tool_call_id": item.call_id, "name": names[item.call_id]}
            messages.append({"role": "tool", "content": item.output} | call)
        elif isinstance(item, Message) and item.role != "assistant":
            role = "system" if item.role == "developer" else item.role
            if role == "system" and len(messages) == 1 and messages[0]["role"] == "system":
                messages[0]["content"] += item.content  # few templates know a second one
            else:
                messages.append({"role": role, "content": list(item.content)})
        else:
            add_to_turn(messages, item)
            if isinstance(item, FunctionCall):
                names[item.call_id] = full_name(item.name, item.namespace)
    return messages


def add_to_turn(messages: list[dict[str, Any]], item: Message | Reasoning | FunctionCall) -> None:
    """Put an item of the assistant's into its turn, or begin another one if it can't follow what is in there."""
    turn = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if turn is None or (not isinstance(item, FunctionCall) and turn.keys() & {"content", "tool_calls"}):
        turn = {"role": "assistant"}
        messages.append(turn)
    match item:
        case Message():
            turn["content"] = item.content
        case Reasoning():
            turn["reasoning_content"] = "\n".join(filter(None, [turn.get("reasoning_content"), item.text]))
        case FunctionCall():
            function = {"name": full_name(item.name, item.namespace), "arguments": item.arguments}
            turn.setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})
