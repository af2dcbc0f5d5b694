"""From a request of the Messages API to the ChatRequest that asks for the same: one server, one way through.

Knows both vocabularies; does not know how a chat is rendered or answered.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, cast

from headrace.errors import RequestError
from headrace.server.messages import schema
from headrace.server.refusals import refuse_unsupported
from headrace.server.schema import ChatRequest

Message = dict[str, Any]
BILLING = "x-anthropic-billing-header:"  # Claude Code's first system block: new each time, and no part of the prompt
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
EFFORTS = {"xhigh": "high", "max": "high"}  # chat templates know low, medium and high


def chat_request(body: schema.CountTokensRequest) -> ChatRequest:
    """Raises RequestError if ``body`` asks for what is not served."""
    refuse_unsupported(body)
    messages = list(conversation(body))
    continued = body.messages[-1].role == "assistant"
    if continued and "tool_calls" in messages[-1]:
        raise RequestError("The last message uses tools; the next one must bring their tool_result blocks.", "messages")
    chat = ChatRequest(
        model=body.model,
        messages=messages,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        tools=None if body.tools is None else list(map(chat_tool, body.tools)),
        chat_template_kwargs=body.chat_template_kwargs,
    )
    if body.tool_choice is not None:
        choose(chat, body.tool_choice)
    if body.thinking is not None:
        think(chat, body.thinking)
    if body.output_config is not None:
        effort, form = body.output_config.effort, body.output_config.format
        chat.reasoning_effort = EFFORTS.get(effort, effort) if effort else None
        if form is not None:
            chat.response_format = {"type": "json_schema", "json_schema": {"schema": form.output_schema}}
    return chat


def generating_request(body: schema.MessagesRequest) -> ChatRequest:
    """As ``chat_request``, with the fields that say how to generate."""
    chat = chat_request(body)
    if body.thinking is not None and (body.thinking.budget_tokens or 0) >= body.max_tokens:
        raise RequestError("thinking.budget_tokens must be less than max_tokens.", "thinking")
    chat.max_tokens, chat.stop, chat.stream = body.max_tokens, body.stop_sequences, body.stream
    chat.temperature, chat.top_k, chat.top_p = body.temperature, body.top_k, body.top_p
    return chat


# -- messages -------------------------------------------------------------------------------------------------------


def conversation(body: schema.CountTokensRequest) -> Iterator[Message]:
    """The messages of a chat; those of one role that follow each other become one, as in Anthropic's API."""
    system = [block for block in body.system if not block.text.startswith(BILLING)]
    if system:
        yield {"role": "system", "content": texts(system)}
    for role, turn in groupby(body.messages, key=lambda message: message.role):
        blocks: list[Any] = [block for message in turn for block in message.content]
        if role == "assistant":
            yield assistant_message(blocks)
        else:
            yield from said_messages(role, blocks)


def said_messages(role: str, blocks: Sequence[schema.UserBlock]) -> Iterator[Message]:
    """What was said, and each tool's result as a message of its own."""
    for is_result, run in groupby(blocks, key=lambda block: isinstance(block, schema.ToolResultBlock)):
        if not is_result:
            yield {"role": role, "content": texts(run)}
            continue
        for block in cast(Iterator[schema.ToolResultBlock], run):
            result = "\n".join(part["text"] for part in texts(block.content))
            result = f"Error: {result}" if block.is_error else result
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": result}


def assistant_message(blocks: Sequence[schema.AssistantBlock]) -> Message:
    message: Message = {"role": "assistant", "content": texts(b for b in blocks if isinstance(b, schema.TextBlock))}
    thoughts = [block.thinking for block in blocks if isinstance(block, schema.ThinkingBlock)]
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in blocks
        if isinstance(block, schema.ToolUseBlock)
    ]
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def texts(blocks: Any) -> list[dict[str, str]]:
    """Blocks of text and documents as a chat's content parts."""
    return [{"type": "text", "text": text_of(block)} for block in blocks]


def text_of(block: schema.TextBlock | schema.DocumentBlock) -> str:
    if isinstance(block, schema.TextBlock):
        return block.text
    return "\n".join(part for part in (block.title, block.context, block.source.data) if part)


# -- tools and thinking ---------------------------------------------------------------------------------------------


def chat_tool(tool: schema.MessagesTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    function |= {"description": tool.description} if tool.description else {}
    function |= {"strict": tool.strict} if tool.strict is not None else {}
    return {"type": "function", "function": function}


def choose(chat: ChatRequest, choice: schema.MessagesToolChoice) -> None:
    if choice.type == "tool" and not choice.name:
        raise RequestError("tool_choice of the type tool needs the tool's name.", "tool_choice")
    if choice.type in ("any", "tool") and not chat.tools:
        raise RequestError(f"tool_choice of the type {choice.type} needs tools to choose from.", "tool_choice")
    named = {"type": "function", "function": {"name": choice.name}}
    chat.tool_choice = named if choice.type == "tool" else CHOICES[choice.type]
    chat.parallel_tool_calls = not choice.disable_parallel_tool_use


def think(chat: ChatRequest, thinking: schema.ThinkingConfig) -> None:
    """Chat templates name the switch ``enable_thinking`` (Qwen, GLM) or ``thinking`` (DeepSeek, Granite)."""
    wanted = thinking.type != "disabled"
    chat.chat_template_kwargs = {"enable_thinking": wanted, "thinking": wanted} | (chat.chat_template_kwargs or {})
    chat.include_reasoning = wanted and thinking.display != "omitted"
    chat.thinking_token_budget = thinking.budget_tokens
