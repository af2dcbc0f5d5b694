"""The pages that the server shows people: / to chat and /dashboard to watch it work.

Owns the files of the pages, their headers, and the two routes that the dashboard reads. The pages themselves hold no
data and are open to everybody; they call the same routes as any client, with the key that their user gives them.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

import headrace
from headrace.server.bodies import json_response
from headrace.server.context import Context, context_of
from headrace.server.routing import new_router
from headrace.server.sse import EventStream, event
from headrace.server.ui.live import Live

FILES = StaticFiles(directory=Path(str(files("headrace.server.ui"))) / "static")
# No script, style, image or connection but the server's own: what a model writes can neither run nor phone home.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",  # asked again each time, and answered 304 while nothing has changed
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
INTERVAL = 1.0  # seconds between two events of the stream


def facts_of(context: Context) -> dict[str, Any]:
    """What does not change while a server runs; sizes in tokens."""
    info = context.engine.info
    return {
        "version": headrace.__version__,
        "models": context.engine.served_names,
        "architecture": info.architecture,
        "device": info.device,
        "dtype": info.dtype,
        "max_model_len": info.max_model_len,
        "block_size": info.block_size,
        "kv_cache_tokens": info.kv_cache_tokens,
        "max_concurrency": info.max_concurrency,
        "default_sampling": info.default_sampling,
        "ledger": info.ledger,
        "uptime": time.time() - context.started,  # seconds
        "statistics": not context.config.server.disable_log_stats,  # whether there is a stream
    }


def pages(live: Live) -> APIRouter:
    """The pages' routes; ``live`` is what the dashboard's stream tells."""
    router = new_router()

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def chat_page(request: Request) -> Response:
        return await page_file("chat.html", request)

    @router.api_route("/dashboard", methods=["GET", "HEAD"], include_in_schema=False)
    async def dashboard_page(request: Request) -> Response:
        return await page_file("dashboard.html", request)

    @router.get("/ui/{name:path}", include_in_schema=False)
    async def asset(name: str, request: Request) -> Response:
        return await page_file(name, request)

    @router.get("/dashboard/facts", tags=["server"])
    async def facts(request: Request) -> Response:
        """The model, its limits, and where the start-up went."""
        return json_response(facts_of(context_of(request)))

    @router.get("/dashboard/stream", tags=["server"])
    async def stream(request: Request) -> Response:
        """Server-sent events, one a second: the load of the last seconds and each of the last steps."""
        context = context_of(request)
        if context.config.server.disable_log_stats:
            raise HTTPException(409, "This server keeps no statistics: it was started with --disable-log-stats.")
        return EventStream(reports(context, live))

    return router


async def page_file(name: str, request: Request) -> Response:
    response = await FILES.get_response(name, request.scope)
    response.headers.update(HEADERS)
    return response


async def reports(context: Context, live: Live) -> AsyncGenerator[bytes, None]:
    """What is kept, then what is new each second, until the server stops."""
    report = live.report()
    while True:
        yield event(report)
        if context.draining or context.engine.health() is not None:
            return
        await asyncio.sleep(INTERVAL)
        report = live.report(report.last_sample, report.last_step)
