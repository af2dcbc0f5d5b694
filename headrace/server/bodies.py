"""The answer bodies of the generating routes, as msgspec structs: encoded once a token, so they have to be quick.

Field names and their order are vLLM's. A field at UNSET is left out of the JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.types import PositionLogprobs

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON can't say
PromptLogprobs = list[dict[int, "PromptLogprob"] | None]


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int | None
    decoded_token: str | None


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class CompletionLogprobs(msgspec.Struct):
    """Parallel lists, one entry a token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    prompt_token_ids: list[int] | None = None


class Completion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    service_tier: None = None
    system_fingerprint: str | None = None
    usage: Usage
    kv_transfer_params: None = None


class CompletionChunk(msgspec.Struct, kw_only=True):
    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]


class CalledFunction(msgspec.Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str


class ToolCall(msgspec.Struct, kw_only=True):
    """A call, or (in a stream) more of the ``index``-th call's arguments."""

    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    index: int | UnsetType = UNSET
    function: CalledFunction


class ChatMessage(msgspec.Struct, kw_only=True):
    """``reasoning_content``: the same as ``reasoning``, for older clients."""

    role: str
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: list[ToolCall] = []
    reasoning: str | None = None
    reasoning_content: str | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    service_tier: None = None
    system_fingerprint: str | None = None
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | UnsetType = UNSET
    kv_transfer_params: None = None


class ChatDelta(msgspec.Struct, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType | None = UNSET


class ChatChunk(msgspec.Struct, kw_only=True):
    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET


class IdLogprob(msgspec.Struct):
    """A token's log-probability where tokens are ids (/inference/v1/generate)."""

    token_id: int
    logprob: float
    rank: int | None
    top_logprobs: "list[IdLogprob] | UnsetType" = UNSET


class IdLogprobs(msgspec.Struct):
    content: list[IdLogprob]


class GenerateChoice(msgspec.Struct, kw_only=True):
    index: int
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int]
    text: str | UnsetType = UNSET
    logprobs: IdLogprobs | None = None


class Generated(msgspec.Struct, kw_only=True):
    """The answer of /inference/v1/generate, and each chunk of its stream."""

    request_id: str
    model: str
    created: int
    choices: list[GenerateChoice]
    usage: Usage | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    output_mode: str


def json_response(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer of any struct, dict or list."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


class Identified(Protocol):
    @property
    def id(self) -> str: ...


def page(found: Sequence[Identified], limit: int, after: str | None) -> dict[str, Any]:
    """A list's entries after the one with the id ``after``, ``limit`` at most, as OpenAI's clients turn its pages."""
    ids = [each.id for each in found]
    if after is not None and after not in ids:
        raise RequestError(f"There is no {after} in this list.", "after")
    first = 0 if after is None else ids.index(after) + 1
    shown = ids[first : first + limit]
    return {
        "object": "list",
        "data": found[first : first + limit],
        "first_id": shown[0] if shown else None,
        "last_id": shown[-1] if shown else None,
        "has_more": len(found) > first + limit,
    }


def prompt_logprobs_of(positions: list[PositionLogprobs | None] | None) -> PromptLogprobs | None:
    """The engine's prompt log-probabilities as objects by token id; the first token has none."""
    if positions is None:
        return None
    return [
        None
        if position is None
        else {
            token_id: PromptLogprob(max(entry.logprob, LEAST_LOGPROB), entry.rank, entry.decoded_token)
            for token_id, entry in position.items()
        }
        for position in positions
    ]
