"""POST /score and /rerank in all their spellings: how well texts go together, by vLLM's, Jina's and Cohere's schemas.

A classifier judges a query and a document together; of an embedding model it is the cosine of their vectors.
"""

from typing import Annotated, Any

from fastapi import Request
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.pooling import Scoring
from headrace.frontend.validation import MAX_INPUTS
from headrace.server.bodies import json_response
from headrace.server.context import context_of
from headrace.server.pooling import PoolingFields, PoolingResult, pooled
from headrace.server.routing import new_router
from headrace.server.schema import Count, listed

router = new_router()


def texts_of(value: Any) -> Any:
    """One text or many; Jina's clients wrap each as ``{"text": …}``."""
    items = listed(value)
    if isinstance(items, list):
        return [item["text"] if isinstance(item, dict) and set(item) == {"text"} else item for item in items]
    return items


Texts = Annotated[list[str], BeforeValidator(texts_of), Field(min_length=1, max_length=MAX_INPUTS)]


class ScoreRequest(PoolingFields):
    """POST /score, /v1/score: the two sides go by several names."""

    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    instruction: str | None = None


class RerankRequest(PoolingFields):
    """POST /rerank, /v1/rerank, /v2/rerank"""

    query: str
    documents: Texts
    top_n: Annotated[Count, Field(ge=0)] | None = None
    return_documents: bool | None = None
    instruction: str | None = None


@router.post("/score", tags=["pooling"], operation_id="score")
@router.post("/v1/score", tags=["pooling"], operation_id="v1_score")
async def score(body: ScoreRequest, request: Request) -> Response:
    queries = body.queries or body.text_1 or body.data_1
    documents = body.documents or body.items or body.text_2 or body.data_2
    if queries is None or documents is None:
        raise RequestError("The body needs queries and documents (or text_1 and text_2).", "queries")
    result, scores = await scored(request, body, "score", queries, documents, body.instruction)
    return result.listing([{"object": "score", "score": value} for value in scores])


@router.post("/rerank", tags=["pooling"], operation_id="rerank")
@router.post("/v1/rerank", tags=["pooling"], operation_id="v1_rerank")
@router.post("/v2/rerank", tags=["pooling"], operation_id="v2_rerank")
async def rerank(body: RerankRequest, request: Request) -> Response:
    result, scores = await scored(request, body, "rerank", [body.query], body.documents, body.instruction)
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in best]
    if body.return_documents is not False:
        for entry in results:
            entry["document"] = {"text": body.documents[entry["index"]], "multi_modal": None}
    usage = {"prompt_tokens": result.num_tokens, "total_tokens": result.num_tokens}
    return json_response({"id": result.id, "model": result.model, "usage": usage, "results": results})


async def scored(
    request: Request,
    body: PoolingFields,
    prefix: str,
    queries: list[str],
    documents: list[str],
    instruction: str | None,
) -> tuple[PoolingResult, list[float]]:
    """(all that was computed, a score for each pair)."""
    scoring = Scoring(queries, documents, context_of(request).engine.info, instruction)
    result = await pooled(request, body, prefix, scoring.task, scoring.prompts)
    return result, [one.outputs.score for one in scoring.results(result.outputs)]
