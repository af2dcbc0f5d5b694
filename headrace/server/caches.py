"""The routes that empty caches, which a server has only with --server-dev-mode: anyone may slow it down by them."""

from fastapi import Request
from starlette.responses import Response

from headrace.server.context import context_of
from headrace.server.routing import new_router

router = new_router()


@router.post("/reset_prefix_cache", tags=["server"])
async def reset_prefix_cache(request: Request) -> Response:
    """Forget which KV blocks hold which prompts. Requests that run go on; those that come later reuse nothing."""
    await context_of(request).engine.reset_prefix_cache()
    return Response()


@router.post("/reset_mm_cache", tags=["server"])
@router.post("/reset_encoder_cache", tags=["server"], operation_id="reset_encoder_cache")
async def reset_mm_cache() -> Response:
    """Forget images, sounds and what encoders made of them: none are served yet, so none are kept."""
    return Response()
