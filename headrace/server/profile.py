"""/start_profile and /stop_profile, which a server has only where --profiler-config names a profiler."""

from fastapi import Request
from starlette.responses import Response

from headrace.server.bodies import json_response
from headrace.server.context import context_of
from headrace.server.routing import new_router

router = new_router()


@router.post("/start_profile", tags=["server"])
async def start_profile(request: Request) -> Response:
    """Begin to record; 409 if that is under way already. Answered once the profiler runs."""
    await context_of(request).engine.start_profile()
    return Response()


@router.post("/stop_profile", tags=["server"])
async def stop_profile(request: Request) -> Response:
    """End the recording; answered, with the files' paths on the server's host, once they are written."""
    return json_response({"files": await context_of(request).engine.stop_profile()})
