"""The small routes: models, health, version, load, metrics, and /invocations, which hands on to chat or completions."""

import secrets
from typing import Any

from fastapi import Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import PlainTextResponse, Response

import headrace
from headrace.errors import RequestError
from headrace.models import packaged
from headrace.server.bodies import json_response
from headrace.server.chat import create_chat_completion
from headrace.server.completions import create_completion
from headrace.server.context import Context, context_of
from headrace.server.errors import error_body
from headrace.server.pooling import ClassifyRequest, EmbeddingRequest, classify, create_embeddings
from headrace.server.routing import new_router
from headrace.server.schema import ChatRequest, CompletionRequest
from headrace.server.score import RerankRequest, ScoreRequest, rerank, score

router = new_router()


@router.get("/health", tags=["server"], response_class=Response)
@router.head("/health", include_in_schema=False)
@router.get("/ping", tags=["server"], operation_id="ping", response_class=Response)
@router.head("/ping", include_in_schema=False)
@router.post("/ping", tags=["server"], operation_id="post_ping", response_class=Response)
async def health(request: Request) -> Response:
    """200 while the engine works; 503 with the reason if it is dead, hangs or drains. Queues nothing."""
    context = context_of(request)
    reason = "The server is shutting down." if context.draining else context.engine.health()
    return Response() if reason is None else json_response(error_body(503, reason), 503)


@router.get("/version", tags=["server"])
@router.head("/version", include_in_schema=False)
async def version() -> Response:
    return json_response({"version": headrace.__version__})


@router.get("/load", tags=["server"])
async def load(request: Request) -> Response:
    """Unfinished requests, if the server tracks its load; else 0."""
    context = context_of(request)
    tracked = context.config.server.enable_server_load_tracking
    return json_response({"server_load": context.engine.num_unfinished if tracked else 0})


@router.get("/metrics", tags=["server"], response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus metrics; docs/metrics.md lists them.

    Always in the plain text format: in OpenMetrics, the client library would turn the colon of our names into "_".
    """
    return Response(generate_latest(context_of(request).registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/v1/models", tags=["models"])
async def models(request: Request) -> Response:
    context = context_of(request)
    cards = [model_card(context, name) for name in context.engine.served_names]
    return json_response({"object": "list", "data": cards})


@router.get("/v1/models/{name:path}", tags=["models"])
async def model(name: str, request: Request) -> Response:
    if not name:  # /v1/models/
        return await models(request)
    context = context_of(request)
    return json_response(model_card(context, context.served_model(name)))


def model_card(context: Context, name: str) -> dict[str, Any]:
    permission = {
        "id": f"modelperm-{secrets.token_hex(8)}",
        "object": "model_permission",
        "created": context.started,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    return {
        "id": name,
        "object": "model",
        "created": context.started,
        "owned_by": "headrace",
        "root": context.config.model.model or packaged.NAME,
        "parent": None,
        "max_model_len": context.engine.info.max_model_len,
        "permission": [permission],
    }


@router.post("/invocations", tags=["generate"])
async def invocations(body: dict[str, Any], request: Request) -> Response:
    """SageMaker's one route: a body's fields, and what the model is for, say which other route answers it."""
    classifies = "classify" in context_of(request).engine.info.tasks
    if "query" in body:
        return await rerank(RerankRequest.model_validate(body), request)
    if "queries" in body or "text_1" in body or "data_1" in body:
        return await score(ScoreRequest.model_validate(body), request)
    if "input" in body and classifies:
        return await classify(ClassifyRequest.model_validate(body), request)
    if "input" in body:
        return await create_embeddings(EmbeddingRequest.model_validate(body), request)
    if "messages" in body:
        return await create_chat_completion(ChatRequest.model_validate(body), request)
    if "prompt" in body:
        return await create_completion(CompletionRequest.model_validate(body), request)
    raise RequestError("The body needs messages (a chat), a prompt (a completion), input, or a query with documents.")
