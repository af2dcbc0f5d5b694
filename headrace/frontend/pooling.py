"""Pooling requests on their way in and out: pairs of texts as prompts, results as arrays. Knows no engine, no HTTP."""

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import RequestError
from headrace.frontend.observer import Observer
from headrace.frontend.tracker import Track
from headrace.types import (
    EngineInfo,
    Pooled,
    PoolingOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    TokenDelta,
)

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
Floats = npt.NDArray[np.float32]


class PoolingTrack(Track):
    """A request whose one result is an array. To the engine it is a sequence that ends with its first token."""

    pooled: Pooled | None = None

    def take(self, index: int, delta: TokenDelta, now: float, observers: list[Observer]) -> bool:
        self.pooled = delta.pooled
        self.metrics.last_token_ts = now
        return super().take(index, delta, now, observers)

    def result(self) -> PoolingRequestOutput:
        """The outcome of a finished request; it has no data if the request was aborted."""
        pooled = self.pooled
        data = None if pooled is None else np.frombuffer(bytearray(pooled.data), np.float32).reshape(pooled.shape)
        token_ids = self.admitted.token_ids
        return PoolingRequestOutput(self.request_id, token_ids, PoolingOutput(data), True, self.num_cached_tokens)

    def output(self, stream_interval: int = 1) -> RequestOutput | None:
        raise TypeError("a pooling request has a result, no outputs")


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
