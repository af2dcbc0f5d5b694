"""The answers of Anthropic's Messages API and the events of its streams, as msgspec structs.

Sources: https://docs.anthropic.com/en/api/messages and .../build-with-claude/streaming.
"""

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    """``signature``: Anthropic's proof that its model wrote this; there is none here."""

    thinking: str
    signature: str = ""


class TextBlock(msgspec.Struct, tag="text"):
    text: str


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


Block = ThinkingBlock | TextBlock | ToolUseBlock


class ThinkingDetails(msgspec.Struct):
    thinking_tokens: int


class MessageUsage(msgspec.Struct, kw_only=True):
    """``input_tokens`` are those that were not read from the prefix cache."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    output_tokens_details: ThinkingDetails | UnsetType = UNSET
    service_tier: str = "standard"


class AppliedEdits(msgspec.Struct):
    """What was left out of the prompt on its way to the model."""

    applied_edits: list[None] = []


class Message(msgspec.Struct, kw_only=True, tag="message"):
    id: str
    role: str = "assistant"
    model: str
    content: list[Block]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    context_management: AppliedEdits | UnsetType = UNSET


# -- events ---------------------------------------------------------------------------------------------------------


class MessageStart(msgspec.Struct, tag="message_start"):
    message: Message


class Ping(msgspec.Struct, tag="ping"):
    pass


class BlockStart(msgspec.Struct, tag="content_block_start"):
    index: int
    content_block: Block


class TextDelta(msgspec.Struct, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, tag="signature_delta"):
    signature: str = ""


class InputDelta(msgspec.Struct, tag="input_json_delta"):
    partial_json: str


class BlockDelta(msgspec.Struct, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(msgspec.Struct, tag="content_block_stop"):
    index: int


class Stop(msgspec.Struct):
    stop_reason: str
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, kw_only=True, tag="message_delta"):
    delta: Stop
    usage: MessageUsage
    context_management: AppliedEdits | UnsetType = UNSET


class MessageStop(msgspec.Struct, tag="message_stop"):
    pass


Event = MessageStart | Ping | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop
