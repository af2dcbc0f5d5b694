"""Log-probabilities in the three shapes that clients know: completions', chat's and token ids'."""

from collections.abc import Callable, Sequence

from headrace.server.bodies import (
    LEAST_LOGPROB,
    ChatLogprobs,
    CompletionLogprobs,
    IdLogprob,
    IdLogprobs,
    TokenLogprob,
    TopLogprob,
)
from headrace.server.context import Context
from headrace.server.schema import SamplingFields
from headrace.types import Logprob, PositionLogprobs

TokenName = Callable[[int, Logprob | None], str]


def token_namer(context: Context, body: SamplingFields) -> TokenName:
    """How tokens are shown: as text, or as ``token_id:<id>`` where the request or the server asks for that."""
    if body.return_tokens_as_token_ids or context.config.server.return_tokens_as_token_ids:
        return lambda token_id, entry: f"token_id:{token_id}"
    token_text = context.engine.tokenizer.token_text

    def name(token_id: int, entry: Logprob | None) -> str:
        return token_text(token_id) if entry is None or entry.decoded_token is None else entry.decoded_token

    return name


def completion_logprobs(
    token_ids: Sequence[int], positions: Sequence[PositionLogprobs | None], offset: int, name: TokenName
) -> CompletionLogprobs:
    """``offset``: characters of text before the first of these tokens. A prompt's first token has no position."""
    result = CompletionLogprobs([], [], [], [])
    for token_id, position in zip(token_ids, positions, strict=True):
        entry = position[token_id] if position else None
        token = name(token_id, entry)
        result.text_offset.append(offset)
        result.tokens.append(token)
        result.token_logprobs.append(clamped(entry) if entry else None)
        result.top_logprobs.append({name(i, e): clamped(e) for i, e in position.items()} if position else None)
        offset += len(token)
    return result


def chat_logprobs(
    token_ids: Sequence[int], positions: Sequence[PositionLogprobs], num_top: int, name: TokenName
) -> ChatLogprobs:
    """``num_top``: how many of the likeliest tokens to list at each position; -1 lists all there are."""
    content = []
    for token_id, position in zip(token_ids, positions, strict=True):
        token = name(token_id, position[token_id])
        top = [
            TopLogprob(text, clamped(entry), as_bytes(text))
            for i, entry in likeliest(position, num_top)
            for text in [name(i, entry)]
        ]
        content.append(TokenLogprob(token, clamped(position[token_id]), as_bytes(token), top))
    return ChatLogprobs(content)


def id_logprobs(token_ids: Sequence[int], positions: Sequence[PositionLogprobs], num_top: int) -> IdLogprobs:
    content = []
    for token_id, position in zip(token_ids, positions, strict=True):
        entry = position[token_id]
        top = [IdLogprob(i, clamped(e), e.rank) for i, e in likeliest(position, num_top)]
        content.append(IdLogprob(token_id, clamped(entry), entry.rank, top))
    return IdLogprobs(content)


def likeliest(position: PositionLogprobs, num_top: int) -> list[tuple[int, Logprob]]:
    """The ``num_top`` likeliest tokens: the sampled one stands first in ``position`` and may not be among them."""
    ordered = sorted(position.items(), key=lambda item: -item[1].logprob)
    return ordered if num_top == -1 else ordered[:num_top]


def clamped(entry: Logprob) -> float:
    return max(entry.logprob, LEAST_LOGPROB)


def as_bytes(token: str) -> list[int]:
    return list(token.encode("utf-8", "replace"))
