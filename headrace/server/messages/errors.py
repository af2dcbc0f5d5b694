"""Anthropic's error shape, and the routes that answer in it: each answer carries a ``request-id``.

Source: https://docs.anthropic.com/en/api/errors.
"""

import secrets
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headrace.server.bodies import json_response
from headrace.server.routing import GuardedRoute
from headrace.server.sse import event

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ErrorDetail(msgspec.Struct):
    type: str
    message: str


class ErrorBody(msgspec.Struct, tag="error"):
    error: ErrorDetail
    request_id: str


def request_id(request: Request) -> str:
    """The id of a request, the same wherever it is asked for."""
    found: str = request.scope.setdefault("headrace.request_id", f"req_{secrets.token_hex(12)}")
    return found


def error_body(request: Request, status: int, message: str) -> ErrorBody:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    return ErrorBody(ErrorDetail(kind, message), request_id(request))


def anthropic_error(
    request: Request, status: int, message: str, param: str | None, headers: dict[str, str]
) -> Response:
    """Anthropic's errors name no field beside their message."""
    return json_response(error_body(request, status, message), status, headers | {"request-id": request_id(request)})


def failure(request: Request) -> Callable[[int, str, str | None], bytes]:
    """Frames the error that ends the stream of ``request``."""
    return lambda status, message, param: event(error_body(request, status, message), "error")


class MessagesRoute(GuardedRoute):
    """A route of Anthropic's API."""

    error_answer = staticmethod(anthropic_error)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            response = await handler(request)
            response.headers["request-id"] = request_id(request)
            return response

        return handle
