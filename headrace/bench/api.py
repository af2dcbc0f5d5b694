"""What is said to a server: the request's body for each API, and what each part of the answer brings.

Owns the shapes of OpenAI's completions, chat, responses and embeddings, and of Cohere's rerank. Knows no connection
and no clock.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from headrace.bench.datasets import Sample
from headrace.errors import ConfigError

DONE = b"[DONE]"
COMMENTS = (b":", b"event:", b"id:", b"retry:")  # lines of server-sent events that say nothing of ours
GARBAGE = (msgspec.DecodeError, UnicodeDecodeError)  # what msgspec raises for no JSON, other JSON, and no UTF-8
SHOWN = 120  # characters of what a server sent, in an error


class BadReply(Exception):
    """The answer is an error or makes no sense; the message is the reason that the request failed."""


@dataclass(slots=True)
class Reply:
    """What one answer has brought so far. ``times`` and ``pieces`` go together: when each piece of text came."""

    times: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    ended: bool = False  # the server said that this is all
    rest: bytes = b""  # the beginning of a line, or of a body that isn't a stream

    def feed(self, data: bytes, now: float, read: "Reader") -> None:
        """Take in a part of a stream of server-sent events. Raises BadReply."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                try:
                    read(line[5:], self, now)
                except GARBAGE:
                    if line[5:].strip() != DONE:
                        raise BadReply(f"garbage in the stream: {excerpt(line)}") from None
                    self.ended = True
            elif line.strip() and not line.startswith(COMMENTS):
                raise BadReply(f"not a stream of events: {excerpt(line)}")


Reader = Callable[[bytes, Reply, float], None]


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None  # as the responses API calls them
    output_tokens: int | None = None
    total_tokens: int | None = None

    def tell(self, reply: Reply) -> None:
        prompt = self.prompt_tokens if self.input_tokens is None else self.input_tokens
        reply.prompt_tokens = self.total_tokens if prompt is None else prompt
        reply.output_tokens = self.completion_tokens if self.output_tokens is None else self.output_tokens


class Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class Response(msgspec.Struct):
    usage: Usage | None = None
    error: Any = None


class Event(msgspec.Struct):
    type: str
    delta: Any = None
    response: Response | None = None
    message: str | None = None


class Whole(msgspec.Struct):
    usage: Usage | None = None
    data: list[msgspec.Raw] | None = None
    results: list[msgspec.Raw] | None = None


_chunk = msgspec.json.Decoder(Chunk)
_event = msgspec.json.Decoder(Event)
_whole = msgspec.json.Decoder(Whole)


def read_chunk(data: bytes, reply: Reply, now: float) -> None:
    """One event of completions or chat; each choice in it counts as a piece but a role that is only announced."""
    chunk = _chunk.decode(data)
    if chunk.error is not None:
        raise BadReply(f"error in the stream: {error_text(chunk.error)}")
    if chunk.usage is not None:
        chunk.usage.tell(reply)
    for choice in chunk.choices:
        text, delta = choice.text, choice.delta
        if choice.finish_reason is not None:
            reply.ended = True
        if delta is not None:
            text = delta.content or delta.reasoning or delta.reasoning_content
            if delta.role and not text and not delta.tool_calls:
                continue
        reply.times.append(now)
        reply.pieces.append(text or "")


def read_event(data: bytes, reply: Reply, now: float) -> None:
    """One event of the responses API."""
    event = _event.decode(data)
    if event.type.endswith("_text.delta"):
        reply.times.append(now)
        reply.pieces.append(str(event.delta or ""))
    elif event.type in ("response.completed", "response.incomplete"):
        reply.ended = True
        if event.response is not None and event.response.usage is not None:
            event.response.usage.tell(reply)
    elif event.type in ("response.failed", "error"):
        reason = event.message or (event.response and event.response.error)
        raise BadReply(f"error in the stream: {error_text(reason)}")


def read_whole(data: bytes, reply: Reply, now: float) -> None:
    """An answer in one piece: embeddings or scores, of which only the count of tokens matters here."""
    try:
        whole = _whole.decode(data)
    except GARBAGE:
        raise BadReply(f"garbage for an answer: {excerpt(data)}") from None
    if not whole.data and not whole.results:
        raise BadReply(f"an answer without data: {excerpt(data)}")
    if whole.usage is not None:
        whole.usage.tell(reply)
    reply.times.append(now)
    reply.output_tokens, reply.ended = 0, True


def completion_body(sample: "Sample") -> dict[str, Any]:
    if isinstance(sample.prompt, list) and sample.prompt and isinstance(sample.prompt[0], dict):
        raise ConfigError("the dataset's prompts are chat messages: add --backend openai-chat.")
    return {"prompt": sample.prompt} | streaming("max_tokens", sample)


def chat_body(sample: "Sample") -> dict[str, Any]:
    return {"messages": messages_of(sample)} | streaming("max_completion_tokens", sample)


def response_body(sample: "Sample") -> dict[str, Any]:
    body = {"input": messages_of(sample), "stream": True}
    return body if sample.output_len is None else body | {"max_output_tokens": sample.output_len}


def embedding_body(sample: "Sample") -> dict[str, Any]:
    return {"input": [sample.prompt, *sample.documents] if sample.documents else sample.prompt}


def rerank_body(sample: "Sample") -> dict[str, Any]:
    if not sample.documents:
        raise ConfigError("the dataset has no documents to rank: add --dataset-name random-rerank.")
    return {"query": sample.prompt, "documents": list(sample.documents)}


def streaming(limit: str, sample: "Sample") -> dict[str, Any]:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return options if sample.output_len is None else {limit: sample.output_len} | options


def messages_of(sample: "Sample") -> list[dict[str, Any]]:
    if isinstance(sample.prompt, str):
        return [{"role": "user", "content": sample.prompt}]
    if sample.prompt and isinstance(sample.prompt[0], int):
        raise ConfigError("the dataset's prompts are token ids, which chat does not take: use --backend openai.")
    return sample.prompt  # type: ignore[return-value]


@dataclass(frozen=True)
class Api:
    """One kind of request: where it goes, its body without model and sampling, and how its answer is read."""

    endpoint: str
    body: Callable[["Sample"], dict[str, Any]]
    read: Reader
    streamed: bool = True


COMPLETIONS = Api("/v1/completions", completion_body, read_chunk)
APIS = dict.fromkeys(("vllm", "openai", "sglang", "llama.cpp", "lmdeploy", "scalellm"), COMPLETIONS) | {
    "openai-chat": Api("/v1/chat/completions", chat_body, read_chunk),
    "openai-responses": Api("/v1/responses", response_body, read_event),
    "openai-embeddings": Api("/v1/embeddings", embedding_body, read_whole, streamed=False),
    "infinity-embeddings": Api("/embeddings", embedding_body, read_whole, streamed=False),
    "vllm-pooling": Api("/pooling", embedding_body, read_whole, streamed=False),
    "vllm-rerank": Api("/v1/rerank", rerank_body, read_whole, streamed=False),
}


def excerpt(data: bytes) -> str:
    text = data.decode("utf-8", "replace").strip()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def error_text(error: Any) -> str:
    """What an error of OpenAI's shape, or of any other, says."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error.get("error") or error
    return excerpt(str(error).encode())
