"""Pooling requests on their way in and out: pairs of texts as prompts, results as arrays. Knows no engine, no HTTP."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

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


def with_tensor(output: PoolingRequestOutput) -> PoolingRequestOutput:
    """The same, holding a torch tensor, as callers from Python expect, where rooms of ours hold an array."""
    import torch

    if output.outputs.data is not None:  # as it is of an aborted request
        output.outputs.data = torch.from_numpy(output.outputs.data)
    return output


class Scoring:
    """How well queries and documents go together: the ``prompts`` to pool for it, by which ``task``.

    One query goes with every document, or each with its own. A classifier judges each pair; of an embedding model it
    is the cosine of the two vectors, each text's computed once. Raises ``RequestError`` if their numbers don't match.
    """

    def __init__(self, queries: list[Any], documents: list[Any], info: EngineInfo, instruction: str | None = None):
        if not queries or not documents:
            raise RequestError("There must be at least one query and one document.", "documents")
        if len(queries) not in (1, len(documents)):
            raise RequestError(
                f"There must be one query, or as many as documents; got {len(queries)} and {len(documents)}.", "queries"
            )
        each_query = queries * len(documents) if len(queries) == 1 else queries
        self._pairs = list(zip(each_query, documents, strict=True))
        if "embed" in info.tasks:
            self.task, self.prompts = "embed", list(dict.fromkeys([*queries, *documents]))
        else:
            self.task = "classify"
            self.prompts = [_as_prompt(query, document, info, instruction) for query, document in self._pairs]

    def results(self, outputs: Sequence[PoolingRequestOutput]) -> list[PoolingRequestOutput]:
        """Each pair's outcome, whose ``outputs`` is its score; ``outputs``: what became of the prompts."""
        if self.task == "classify":
            return [replace(output, outputs=ScoringOutput(_score_of(output.outputs.data))) for output in outputs]
        found = dict(zip(self.prompts, outputs, strict=True))
        return [_compared(found[query], found[document]) for query, document in self._pairs]


def _as_prompt(query: str, document: str, info: EngineInfo, instruction: str | None) -> Any:
    """A query and a document as the prompt of a model that judges them together."""
    if info.pair_template is None:
        return (query, document)
    if query.startswith("<|im_start|>"):  # the caller has filled in the template
        return query + document
    return info.pair_template.format(instruction=instruction or INSTRUCTION, query=query, document=document)


def _score_of(probabilities: Floats) -> float:
    """The one score of a pair that a classifier has judged. Raises ``RequestError`` if it has several classes."""
    if len(probabilities) != 1:
        raise RequestError(
            f"This model has {len(probabilities)} classes, so it can't score pairs; classify them instead.", "model"
        )
    return float(probabilities[0])


def _compared(query: PoolingRequestOutput, document: PoolingRequestOutput) -> PoolingRequestOutput:
    """The cosine of two embeddings as the outcome of both requests together."""
    a, b = query.outputs.data, document.outputs.data
    score = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    token_ids = query.prompt_token_ids + document.prompt_token_ids
    return PoolingRequestOutput(f"{query.request_id}-{document.request_id}", token_ids, ScoringOutput(score))
