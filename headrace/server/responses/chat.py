"""A response's request as the chat it is, and its admission. Knows the fields' names; ``items`` knows the input's."""

from typing import Any

from fastapi import Request

from headrace.errors import RequestError
from headrace.server.chat import admit_chat
from headrace.server.context import Context, context_of
from headrace.server.generation import Job, check_generating
from headrace.server.responses.items import Item, chat_messages
from headrace.server.responses.schema import LOGPROBS, ResponsesRequest
from headrace.server.responses.tools import by_name, chat_choice, chat_tool
from headrace.server.schema import ChatRequest, SamplingFields

SHARED = {
    "model",
    "parallel_tool_calls",
    "top_logprobs",
    "include_reasoning",
    "chat_template",
    *SamplingFields.model_fields,
}
TOO_LONG = ("input_tokens", "max_tokens")  # what the refusal of a prompt without room for an answer names
RENAMED = {"max_tokens": "max_output_tokens", "response_format": "text.format"}


def chat_request(context: Context, body: ResponsesRequest, items: list[Item]) -> ChatRequest:
    """The chat that ``body`` asks for, once it is checked. Raises ``RequestError``."""
    check_generating(context, body)
    body.check()
    text, effort = body.text, body.reasoning and body.reasoning.effort
    logprobs = body.includes(LOGPROBS)
    given = body.model_dump(include=SHARED, exclude_none=True)
    given |= {
        "messages": chat_messages(body.instructions, items),
        "max_tokens": body.max_output_tokens,
        "tools": [chat_tool(*named) for named in by_name(body.tools or []).items()],
        "tool_choice": chat_choice(body.tool_choice),
        "logprobs": logprobs,
        "response_format": response_format(text.format) if text and text.format else None,
        "reasoning_effort": effort,
        "verbosity": text and text.verbosity,
        "chat_template_kwargs": body.chat_template_kwargs,
        # logprobs are told apart by the part of the answer that they come with
        "stream": bool(body.stream or body.background or logprobs),
        "stream_options": None,
    }
    return ChatRequest(**given)


def response_format(given: dict[str, Any]) -> dict[str, Any]:
    """``text.format`` as the chat's response_format, which has the schema one level deeper."""
    if given.get("type") != "json_schema":
        return given
    if not isinstance(given.get("schema"), dict | bool):
        raise RequestError("text.format.schema must be a JSON schema.", "text")
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}


async def admit_response(request: Request, body: ResponsesRequest, items: list[Item]) -> Job:
    """Raises ``RequestError`` in terms of this API."""
    chat = chat_request(context_of(request), body, items)
    try:
        return await admit_fitting(request, chat, truncate=body.truncation == "auto")
    except RequestError as error:
        if error.param == "messages":
            error.param = "input"
        elif error.param in RENAMED:
            raise RequestError(str(error).replace(error.param, RENAMED[error.param]), RENAMED[error.param]) from None
        raise


async def admit_fitting(request: Request, chat: ChatRequest, *, truncate: bool) -> Job:
    """``admit_chat``; ``truncate`` drops as many of the oldest turns as have to go, but no system message in front."""
    messages = chat.messages
    head = messages[:1] if messages and messages[0]["role"] == "system" else []
    starts = [place for place, message in enumerate(messages) if message["role"] == "user" and place > len(head)]
    try:
        return await admit_chat(request, chat, "resp")
    except RequestError as error:
        if not truncate or error.param not in TOO_LONG or not starts:
            raise
    chat.messages = head + messages[starts[-1] :]
    admitted = await admit_chat(request, chat, "resp")
    first, last = 0, len(starts) - 1  # the earliest start that fits is among these
    while first < last:
        middle = (first + last) // 2
        longer = chat.model_copy(update={"messages": head + messages[starts[middle] :]})
        try:
            admitted = await admit_chat(request, longer, "resp")
            chat.messages, last = longer.messages, middle
        except RequestError:
            first = middle + 1
    return admitted
