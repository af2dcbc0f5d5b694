"""The routes for whoever runs the server, which it has on demand: with --server-dev-mode those that empty caches, as
anyone may slow it down by them; with a profiler in --profiler-config those that begin and end a profile.
"""

from fastapi import Request
from starlette.responses import Response

from headrace.server.bodies import json_response
from headrace.server.context import context_of
from headrace.server.routing import new_router

caches = new_router()
profile = new_router()


@caches.post("/reset_prefix_cache", tags=["server"])
async def reset_prefix_cache(request: Request, reset_running_requests: bool = False) -> Response:
    """Forget which KV blocks hold which prompts. Those that come later reuse nothing; those that run go on, or
    start again if asked to."""
    await context_of(request).engine.reset_prefix_cache(reset_running_requests)
    return Response()


@caches.post("/reset_mm_cache", tags=["server"])
@caches.post("/reset_encoder_cache", tags=["server"], operation_id="reset_encoder_cache")
async def reset_mm_cache() -> Response:
    """Forget images, sounds and what encoders made of them: none are served yet, so none are kept."""
    return Response()


@profile.post("/start_profile", tags=["server"])
async def start_profile(request: Request) -> Response:
    """Begin to record; 409 if that is under way already. Answered once the profiler runs."""
    await context_of(request).engine.start_profile()
    return Response()


@profile.post("/stop_profile", tags=["server"])
async def stop_profile(request: Request) -> Response:
    """End the recording; answered, with the files' paths on the server's host, once they are written."""
    return json_response({"files": await context_of(request).engine.stop_profile()})
