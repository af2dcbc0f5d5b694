"""The nouns that pass between rooms: engine messages and outputs, and the parameters of ``headrace.params``.

Plain data (msgspec structs), so that each can cross a process border as msgpack. Does not know tensors, text
processing or HTTP.
"""

import enum
from collections.abc import Sequence
from typing import Any

import msgspec

from headrace.params import (
    GREEDY_BELOW,
    MAX_N,
    POOLING_TASKS,
    OutputKind,
    PoolingParams,
    SamplingParams,
    StructuredOutputsParams,
)

__all__ = [  # of the parameters: they are as much nouns as those below
    "GREEDY_BELOW",
    "MAX_N",
    "POOLING_TASKS",
    "OutputKind",
    "PoolingParams",
    "SamplingParams",
    "StructuredOutputsParams",
]


class FinishReason(enum.StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Logprob(msgspec.Struct, array_like=True, gc=False):
    """One token's log-probability and its rank (1 = most likely) at one position."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


PositionLogprobs = dict[int, Logprob]  # token id -> logprob: the sampled (or prompt) token first, then the top ones

# -- API process -> engine ------------------------------------------------------------------------------------------


class Thinking(msgspec.Struct, omit_defaults=True):
    """How reasoning shows in an answer's tokens. Each marker is a list of token ids, and has several spellings."""

    starts: list[list[int]]
    ends: list[list[int]]
    gates: list[list[int]] = []  # after one of these the answer itself begins; none: as soon as the reasoning is over
    closing: list[int] = []  # what is forced when the budget is spent
    inside: bool = False  # the answer begins within reasoning
    budget: int | None = None  # tokens


class Embeds(msgspec.Struct, frozen=True, gc=False):
    """A prompt as what the embedding table would make of its tokens."""

    data: bytes  # float32 [tokens, dim] in this machine's byte order
    digest: bytes  # SHA-256 of data


class Submit(msgspec.Struct, tag="submit", omit_defaults=True):
    """One sequence to generate. ``params.n`` is ignored: the frontend submits each sequence on its own."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int] = []  # generation ends at these unless params.ignore_eos
    bad_word_ids: list[list[int]] = []
    priority: int = 0  # lower is served first, under --scheduling-policy priority
    cache_salt: str | None = None  # separates prefix-cache entries between callers
    grammar: str | None = None  # that the output must match, in llguidance's notation
    thinking: Thinking | None = None  # what goes before that, or may take only so many tokens
    pooling: PoolingParams | None = None  # no sequence is generated: the prompt alone is computed, and pooled
    embeds: Embeds | None = None  # the prompt, whose token ids are then only counted


class Abort(msgspec.Struct, tag="abort"):
    request_ids: list[str]


class ResetPrefixCache(msgspec.Struct, tag="reset_prefix_cache"):
    running: bool = False  # requests under way start again


class Profile(msgspec.Struct, tag="profile"):
    """Begin to record a profile, or end it and write it; answered by ``Profiled``."""

    start: bool


class Shutdown(msgspec.Struct, tag="shutdown"):
    pass


ToEngine = Submit | Abort | ResetPrefixCache | Profile | Shutdown

# -- engine -> API process ------------------------------------------------------------------------------------------


class Pooled(msgspec.Struct, array_like=True, gc=False):
    """Numbers made of a prompt: float32 in this machine's byte order, [size] or [tokens, size]."""

    shape: list[int]
    data: bytes


class TokenDelta(msgspec.Struct, omit_defaults=True, gc=False):
    """New tokens of one sequence, and its end if ``finish_reason`` is set. Times are time.monotonic() seconds."""

    request_id: str
    token_ids: list[int] = []
    logprobs: list[PositionLogprobs] | None = None  # one entry per token id
    prompt_logprobs: list[PositionLogprobs | None] | None = None  # with the first delta only
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id that ended it; None for an end-of-sequence token
    complete: bool = False  # it ended because its grammar did, so that its last token belongs to its text
    error: str | None = None
    num_cached_tokens: int | None = None  # prompt tokens found in the prefix cache; with the first delta only
    scheduled_time: float | None = None  # with the first delta only
    num_preemptions: int = 0  # told as they happen, in deltas without tokens
    pooled: Pooled | None = None  # the one result of a pooling request


class Stats(msgspec.Struct, omit_defaults=True):
    """The engine's gauges now, and its counters since the last Stats."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0  # 0-1
    prefix_cache_queries: int = 0  # tokens
    prefix_cache_hits: int = 0  # tokens
    num_preemptions: int = 0
    prompt_tokens: int = 0  # computed, without prefix-cache hits and what preempted requests compute again
    generation_tokens: int = 0
    num_steps: int = 0


class Outputs(msgspec.Struct, tag="outputs", omit_defaults=True):
    """What one engine step produced; also the heartbeat, sent at least once a second."""

    time: float  # time.monotonic() seconds
    deltas: list[TokenDelta] = []
    stats: Stats | None = None


class LedgerEntry(msgspec.Struct, array_like=True):
    """One line of the start-up ledger: a stage, its seconds, and the bytes it took (on the host or the device)."""

    stage: str
    seconds: float
    num_bytes: int = 0


class Progress(msgspec.Struct, tag="progress"):
    """A start-up stage is ``done`` of ``total`` along (bytes while loading, else counts)."""

    stage: str
    done: int
    total: int


class StepCost(msgspec.Struct, frozen=True):
    """What a step has to read and multiply at least, for judging how near a measured time is to the device's limit."""

    weight_bytes: int  # of the weights that every step reads
    layer_flops: int  # of the layers' matrix products, a token
    head_flops: int  # of the vocabulary's, a sampled token
    kv_bytes: int  # of keys and values, a token of context
    attention_flops: int  # a token and token of context
    expert_bytes: int = 0  # of weight_bytes: those of experts that tokens are routed to
    expert_share: float = 0.0  # of the experts that one token uses
    windowed: list[tuple[int, int, int]] = []  # (window, kv_bytes, attention_flops) of layers that see no more tokens


class EngineInfo(msgspec.Struct, tag="ready"):
    """What the engine settled at start-up: the facts the API needs to validate and describe requests."""

    architecture: str
    device: str
    dtype: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: list[int]
    block_size: int
    num_blocks: int
    kv_cache_tokens: int  # tokens the KV cache holds
    max_concurrency: float  # requests of max_model_len tokens that fit at once
    default_sampling: dict[str, Any]  # from the model's generation_config.json
    ledger: list[LedgerEntry]
    cost: StepCost
    pid: int = 0
    # Or those of POOLING_TASKS that the model can do, its main one first.
    tasks: list[str] = msgspec.field(default_factory=lambda: ["generate"])
    embedding_sizes: list[int] = []  # the largest, and those that requests may ask for if the model names them
    labels: list[str] = []  # of a classifier
    prompts: dict[str, str] = {}  # what the checkpoint wants before texts, by what they are for
    pair_template: str | None = None  # how a query and a document become one prompt, if not as a tokenizer's pair
    hidden_size: int = 0  # of a token's embedding


class Fatal(msgspec.Struct, tag="fatal"):
    """The engine can't start or go on. ``user_error``: the message is a ConfigError's sentence, no traceback needed."""

    message: str
    user_error: bool = False


class Profiled(msgspec.Struct, tag="profiled", omit_defaults=True):
    """What came of a ``Profile``: the files of the recording, if it ended; ``error`` if it couldn't be done."""

    files: list[str] = []
    error: str | None = None
    was_active: bool = False  # the error is that a recording was under way already


FromEngine = Outputs | Progress | EngineInfo | Profiled | Fatal

# -- scheduler -> runner --------------------------------------------------------------------------------------------


class NewRow(msgspec.Struct, omit_defaults=True):
    """A request takes a device row (first time, or again after a preemption: then token_ids include its outputs)."""

    row: int
    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int  # 64-bit, drawn by the engine where the request named none
    stop_token_ids: list[int]  # every id that would end the request; masked until min_tokens
    bad_word_ids: list[list[int]] = []
    pooling: PoolingParams | None = None
    embeds: bytes | None = None  # of the prompt: float32 [num_prompt_tokens, dim]


class NewBlocks(msgspec.Struct, array_like=True, gc=False):
    """``block_ids`` extend ``row``'s table of KV group ``group`` from entry ``offset`` on."""

    group: int
    row: int
    offset: int
    block_ids: list[int]


class Plan(msgspec.Struct):
    """One step: which rows advance by how many tokens, and what changed since the last plan. Never token values.

    ``rows[i]`` computes the tokens at positions ``starts[i] .. starts[i] + counts[i] - 1``; rows with one token come
    first. Rows listed in ``sampled`` (indices into ``rows``) have reached their last known token and sample the next.
    """

    step: int
    rows: list[int]
    starts: list[int]
    counts: list[int]
    sampled: list[int]
    new_rows: list[NewRow] = []
    new_blocks: list[NewBlocks] = []
    freed_rows: list[int] = []
    masked: list[int] = []  # places in ``sampled`` of rows that may only sample some tokens
    masks: bytes = b""  # for each ceil(vocabulary / 32) words of 32 bits: bit t % 32 of word t // 32 allows token t


class Sampled(msgspec.Struct):
    """What a step sampled, on the host: parallel to ``Plan.sampled``."""

    token_ids: list[int]
    logprobs: list[PositionLogprobs | None] | None = None
    prompt_logprobs: dict[int, list[PositionLogprobs]] = {}  # row -> the chunk's positions
    pooled: list[Pooled] | None = None  # instead of tokens, from a model that pools


class KVGroup(msgspec.Struct, frozen=True):
    """Layers that share one block table: all see the same ``window`` (None = the whole context)."""

    layers: list[int]
    window: int | None


class KVCacheLayout(msgspec.Struct, frozen=True):
    """How the KV cache is cut: every group draws from one pool of ``num_blocks`` blocks (block 0 is never used)."""

    block_size: int
    num_blocks: int
    groups: list[KVGroup]
    block_bytes: int


# -- frontend -> caller ---------------------------------------------------------------------------------------------


class CompletionOutput(msgspec.Struct):
    """One generated sequence of a request; the fields are vLLM's."""

    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None
    logprobs: list[PositionLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    lora_request: None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


class RequestMetrics(msgspec.Struct):
    """Times of one request: ``arrival_time`` is time.time(), the others time.monotonic() seconds."""

    arrival_time: float
    queued_ts: float = 0.0
    scheduled_ts: float = 0.0
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    first_token_latency: float = 0.0
    num_generation_tokens: int = 0
    num_preemptions: int = 0


class RequestOutput(msgspec.Struct):
    """A request's state as its caller sees it; the fields are vLLM's."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    metrics: RequestMetrics | None = None
    num_cached_tokens: int | None = None
    num_rejected_tokens: int = 0  # of the sequences that were generated but are not among the best
    lora_request: None = None
    kv_transfer_params: None = None


class PoolingOutput(msgspec.Struct):
    """``data``: a float32 tensor, [size] or [tokens, size]."""

    data: Any


class PoolingRequestOutput(msgspec.Struct):
    """What was made of one prompt; the fields are vLLM's. ``outputs`` depends on the method that was called."""

    request_id: str
    prompt_token_ids: list[int]
    outputs: Any
    finished: bool = True
    num_cached_tokens: int | None = None


class EmbeddingOutput(msgspec.Struct):
    embedding: list[float]

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


class ClassificationOutput(msgspec.Struct):
    probs: list[float]

    @property
    def num_classes(self) -> int:
        return len(self.probs)


class ScoringOutput(msgspec.Struct):
    score: float
