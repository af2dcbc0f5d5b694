"""Pooling requests on their way in and out: pairs of texts as prompts, results as arrays. Knows no engine, no HTTP."""

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import RequestError
from headrace.frontend.observer import Observer
from headrace.frontend.tracker import Track
from headrace.types import (
    EngineInfo,
    OutputKind,
    Pooled,
    PoolingOutput,
    PoolingParams,
    PoolingRequestOutput,
    RequestOutput,
    SamplingParams,
    ScoringOutput,
    Submit,
    TokenDelta,
)

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
Floats = npt.NDArray[np.float32]


class PoolingTrack(Track):
    """A request whose one result is an array. To the engine it is a sequence that ends with its first token."""

    def __init__(self, request_id: str, prompt: str | None, prompt_token_ids: list[int], pooling: PoolingParams):
        params = SamplingParams(max_tokens=1, detokenize=False, output_kind=OutputKind.FINAL_ONLY)
        super().__init__(request_id, prompt, prompt_token_ids, params, None)
        self.pooling = pooling
        self.pooled: Pooled | None = None

    def submits(self, eos_token_ids: list[int], priority: int, cache_salt: str | None) -> list[Submit]:
        [submit] = super().submits([], priority, cache_salt)
        submit.pooling = self.pooling
        return [submit]

    def take(self, index: int, delta: TokenDelta, now: float, observers: list[Observer]) -> bool:
        self.pooled = delta.pooled
        self.metrics.last_token_ts = now
        return super().take(index, delta, now, observers)

    def result(self) -> PoolingRequestOutput:
        """The outcome of a finished request; it has no data if the request was aborted."""
        pooled = self.pooled
        data = None if pooled is None else np.frombuffer(bytearray(pooled.data), np.float32).reshape(pooled.shape)
        return PoolingRequestOutput(
            self.request_id, self.prompt_token_ids, PoolingOutput(data), True, self.num_cached_tokens
        )

    def output(self, stream_interval: int = 1) -> RequestOutput | None:
        raise TypeError("a pooling request has a result, no outputs")


def settled(params: PoolingParams, info: EngineInfo) -> PoolingParams:
    """``params`` with their task, once the model is known to be able to do it."""
    if info.tasks == ["generate"]:
        raise RequestError(
            "This model was started to generate text; start it with --task embed, or serve an embedding model or a "
            "reranker, to pool prompts.",
            "model",
        )
    task = params.task or info.tasks[0]
    if task not in info.tasks:
        raise RequestError(f"This model can't {task}; it can do {', '.join(info.tasks)}.", "task")
    if params.dimensions is not None:
        _check_dimensions(params.dimensions, task, info)
    return params.clone(task=task)


def _check_dimensions(dimensions: int, task: str, info: EngineInfo) -> None:
    if not task.endswith("embed"):
        raise RequestError("dimensions are those of embeddings; leave them out.", "dimensions")
    most, *named = info.embedding_sizes
    if dimensions > most:
        raise RequestError(f"dimensions must be at most the model's {most}, got {dimensions}.", "dimensions")
    if named and dimensions not in (most, *named):
        listed = ", ".join(map(str, sorted({most, *named})))
        raise RequestError(f"dimensions must be one of the model's {listed}, got {dimensions}.", "dimensions")


def pair(query: str, document: str, info: EngineInfo, instruction: str | None = None) -> Any:
    """A query and a document as the prompt of a model that judges them together."""
    if info.pair_template is None:
        return (query, document)
    if query.startswith("<|im_start|>"):  # the caller has filled in the template
        return query + document
    return info.pair_template.format(instruction=instruction or INSTRUCTION, query=query, document=document)


def matched(queries: list[Any], documents: list[Any]) -> list[tuple[Any, Any]]:
    """One query with every document, or each with its own. Raises ``RequestError`` if the numbers don't go together."""
    if not queries or not documents:
        raise RequestError("There must be at least one query and one document.", "documents")
    if len(queries) == 1:
        queries = queries * len(documents)
    if len(queries) != len(documents):
        raise RequestError(
            f"There must be one query, or as many as documents; got {len(queries)} and {len(documents)}.", "queries"
        )
    return list(zip(queries, documents, strict=True))


def score_of(probabilities: Floats) -> float:
    """The one score of a pair that a classifier has judged. Raises ``RequestError`` if it has several classes."""
    if len(probabilities) != 1:
        raise RequestError(
            f"This model has {len(probabilities)} classes, so it can't score pairs; classify them instead.", "model"
        )
    return float(probabilities[0])


def compared(query: PoolingRequestOutput, document: PoolingRequestOutput) -> PoolingRequestOutput:
    """The cosine of two embeddings as the outcome of both requests together."""
    a, b = query.outputs.data, document.outputs.data
    score = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    token_ids = query.prompt_token_ids + document.prompt_token_ids
    return PoolingRequestOutput(f"{query.request_id}-{document.request_id}", token_ids, ScoringOutput(score))
