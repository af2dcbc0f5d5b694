"""Which exception becomes which HTTP status and sentence, and the error body of OpenAI's shape.

A route may answer in the shape of another API: its ``error_answer`` says so. Knows the errors of ``headrace.errors``
and FastAPI's; does not know routes.
"""

import errno
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from headrace.errors import (
    EngineDeadError,
    HeadraceError,
    ProfilerError,
    QueueFullError,
    RequestError,
    ShuttingDownError,
)
from headrace.server.bodies import json_response

TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    409: "ConflictError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
    507: "InsufficientStorageError",
}
# (request, status, message, param, headers) -> the answer
ErrorAnswer = Callable[[Request, int, str, str | None, dict[str, str]], Response]
MAX_MESSAGE, MAX_PARAM = 1000, 100  # characters
CLIENT_GONE = 499  # the status that proxies log for a client that left; nobody receives it


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(msgspec.Struct):
    error: ErrorDetail


class GenerationError(HeadraceError):
    """The engine failed this one request (HTTP 500)."""


class ClientDisconnected(HeadraceError):
    """The client closed its connection before the answer was ready; there is nobody to answer."""


def error_body(status: int, message: str, param: str | None = None) -> ErrorBody:
    return ErrorBody(ErrorDetail(message, TYPES.get(status, f"HTTP{status}Error"), param, status))


def openai_error(request: Request, status: int, message: str, param: str | None, headers: dict[str, str]) -> Response:
    return json_response(error_body(status, message, param), status, headers)


def describe(error: Exception) -> tuple[int, str, str | None]:
    """(HTTP status, message, param) of any exception; an unexpected one's text is not shown to the client.

    What the client sent is repeated to a reasonable length.
    """
    status, message, param = _described(error)
    return status, shortened(message, MAX_MESSAGE), param and shortened(param, MAX_PARAM)


def shortened(text: str, most: int) -> str:
    """``text`` in at most so many characters of UTF-8."""
    whole = text if len(text) <= most else f"{text[: most - 2]}…."
    return whole.encode("utf-8", "replace").decode()


def _described(error: Exception) -> tuple[int, str, str | None]:
    match error:
        case RequestError():
            return error.status, str(error), error.param
        case QueueFullError():
            return 429, str(error), None
        case ShuttingDownError() | EngineDeadError():
            return 503, str(error), None
        case GenerationError() | ProfilerError():
            return 500, str(error), None
        case RequestValidationError():
            message, param = invalid_field([e | {"loc": e["loc"][1:]} for e in error.errors()])
            return 400, message, param
        case ValidationError():
            message, param = invalid_field(error.errors(include_url=False))
            return 400, message, param
        case HTTPException():
            return error.status_code, str(error.detail), None
        case OSError(errno=errno.ENOSPC):
            return 507, "The server's disk is full.", None
    return 500, "The server failed while handling this request; its log says why.", None


def invalid_field(errors: Sequence[Any]) -> tuple[str, str | None]:
    """(sentence, field) of pydantic's first complaint; its location is a path into the body, as (name, index, ...)."""
    first = errors[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("[")]  # a union's tags stand in brackets
    if not location:
        return "The body must be a JSON object.", None
    path = ".".join(location)
    if first["type"] == "missing":
        return f"{path} is required.", location[0]
    reason = first["msg"].removeprefix("Value error, ")
    return f"{path} is invalid: {reason[0].lower()}{reason[1:].rstrip('.')}.", location[0]


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` in the shape of the API it was asked through; OpenAI's where there is no route."""

    async def handle(request: Request, error: Exception) -> Response:
        status, message, param = describe(error)
        headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
        if isinstance(error, QueueFullError):
            headers["Retry-After"] = str(error.retry_after)
        if status == 404 and isinstance(error, HTTPException):
            hidden = request.app.state.context.config.server.disable_fastapi_docs
            help = "." if hidden else "; /docs lists the routes."
            message = f"There is no route {request.method} {request.url.path}{help}"
        elif status == 405:
            message = f"{request.url.path} does not answer {request.method} requests, only {headers.get('Allow', '')}."
        answer: ErrorAnswer = getattr(request.scope.get("route"), "error_answer", openai_error)
        return answer(request, status, message, param, headers)

    async def client_gone(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    for kind in (HeadraceError, RequestValidationError, ValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(ClientDisconnected, client_gone)
