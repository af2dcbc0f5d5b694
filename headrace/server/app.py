"""The HTTP application: every route, its guard, its error shape. Knows no route's inside and starts nothing."""

from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CollectorRegistry

import headrace
from headrace.config import Config, profiler_settings
from headrace.server import (
    abort,
    batch_chat,
    chat,
    cohere,
    completions,
    control,
    derender,
    errors,
    generate,
    generative_scoring,
    info,
    pooling,
    score,
    tokens,
    ui,
)
from headrace.server.batch import routes as batch
from headrace.server.batch.batches import Batches
from headrace.server.context import Context
from headrace.server.docs import documentation
from headrace.server.messages import routes as messages
from headrace.server.responses import routes as responses
from headrace.server.responses.store import Store
from headrace.server.routing import GuardedRoute, RequestIdHeader
from headrace.server.ui.live import Live

if TYPE_CHECKING:
    from headrace.frontend.async_llm import AsyncLLM


def build_app(config: Config, engine: "AsyncLLM", registry: CollectorRegistry) -> FastAPI:
    """The application that serves ``engine``; ``registry`` holds the metrics of /metrics."""
    server = config.server
    app = FastAPI(
        title="Headrace",
        version=headrace.__version__,
        openapi_url=None,  # the documentation routes below are guarded like all others
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"description": "The request can't be served; the error's message says why."}},
    )
    app.state.context = Context(config, engine, registry)
    app.state.responses = Store(server)
    app.state.abortable = abort.Abortable()
    always = (info, completions, chat, generate, tokens, pooling, score, cohere, messages, responses, abort, batch_chat)
    routers = [room.router for room in (*always, derender, generative_scoring)]
    if server.max_stored_file_bytes:
        app.state.batches = Batches(config, app)
        routers.append(batch.router)
    if server.enable_tokenizer_info_endpoint:
        routers.append(tokens.info_router)
    if profiler_settings(config.profiling.profiler_config):
        routers.append(control.profile)
    if server.server_dev_mode:
        routers.append(control.caches)
    if not server.disable_fastapi_docs:
        routers.append(documentation(app))
    if not server.disable_ui:
        live = Live()
        engine.observers.append(live)
        routers.append(ui.pages(live))
    for router in routers:
        app.include_router(router)
    routes = [route for router in routers for route in guarded_routes(router)]
    app.state.routes = [(route.path, sorted(route.methods or ())) for route in routes]
    app.state.batched = frozenset(route.path for route in routes if route.body_field and "batches" not in route.tags)
    errors.install(app)
    if server.enable_request_id_headers:
        app.add_middleware(RequestIdHeader)
    if server.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.allowed_origins,
            allow_methods=server.allowed_methods,
            allow_headers=server.allowed_headers,
            allow_credentials=server.allow_credentials,
        )
    return app


def guarded_routes(router: APIRouter) -> list[GuardedRoute]:
    """The routes of ``router``; a route of another kind would be open to everybody, so it is an error."""
    strangers = [route for route in router.routes if not isinstance(route, GuardedRoute)]
    if strangers:
        raise TypeError(f"These routes are not guarded: {strangers}.")
    return [route for route in router.routes if isinstance(route, GuardedRoute)]
