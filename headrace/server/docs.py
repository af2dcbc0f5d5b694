"""/openapi.json, and /docs and /redoc that show it. Their scripts come from here too: no page needs another host."""

from importlib.resources import files

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from headrace.server.bodies import json_response
from headrace.server.routing import new_router

ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "redoc.standalone.js")
NO_ICON = "data:,"


def documentation(app: FastAPI) -> APIRouter:
    """The routes that describe ``app``, guarded like all others."""
    router = new_router()

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return json_response(app.openapi())

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return get_swagger_ui_html(
            title="Headrace",
            openapi_url=url(request, "/openapi.json"),
            swagger_js_url=url(request, "/docs/swagger-ui-bundle.js"),
            swagger_css_url=url(request, "/docs/swagger-ui.css"),
            swagger_favicon_url=NO_ICON,
        )

    @router.get("/redoc", include_in_schema=False)
    async def redoc(request: Request) -> Response:
        return get_redoc_html(
            title="Headrace",
            openapi_url=url(request, "/openapi.json"),
            redoc_js_url=url(request, "/docs/redoc.standalone.js"),
            redoc_favicon_url=NO_ICON,
            with_google_fonts=False,
        )

    @router.get("/docs/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404)
        return FileResponse(str(files("fastapi_offline") / "static" / name))

    return router


def url(request: Request, path: str) -> str:
    return str(request.scope.get("root_path", "")).rstrip("/") + path
