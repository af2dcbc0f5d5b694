"""The HTTP application: every route, its guard, its error shape. Knows no route's inside and starts nothing."""

import secrets
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from prometheus_client import CollectorRegistry
from starlette.responses import Response

import headrace
from headrace.config import Config
from headrace.server import chat, completions, errors, generate, info, tokens
from headrace.server.context import Context
from headrace.server.responses import json_response
from headrace.server.routing import GuardedRoute, RequestIdHeader, new_router

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
    )
    app.state.context = Context(config, engine, registry)
    routers = [room.router for room in (info, completions, chat, generate, tokens)]
    if not server.disable_fastapi_docs:
        routers.append(documentation(app))
    for router in routers:
        app.include_router(router)
    app.state.routes = [
        (route.path, sorted(route.methods or ())) for router in routers for route in guarded_routes(router)
    ]
    errors.install(app)
    if server.enable_request_id_headers:
        app.add_middleware(RequestIdHeader, new_id=lambda: secrets.token_hex(16))
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


def documentation(app: FastAPI) -> APIRouter:
    """/openapi.json, and /docs and /redoc that show it."""
    router = new_router()

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return json_response(app.openapi())

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return get_swagger_ui_html(openapi_url=schema_url(request), title="Headrace")

    @router.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> Response:
        return get_redoc_html(openapi_url=schema_url(request), title="Headrace")

    return router


def schema_url(request: Request) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/") + "/openapi.json"
