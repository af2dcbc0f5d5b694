"""What happens to every request once it is routed: API key, media type, quota, body size and JSON, in this order.

Being part of the route itself, the guard sees the route that answers and not a path to be parsed a second time. Every
route of the server must be a ``GuardedRoute``; owns no route and knows no schema.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.server.context import Context, context_of
from headrace.server.errors import ErrorAnswer, openai_error
from headrace.server.quota import address_of

PAGES = frozenset({"/", "/dashboard", "/ui/{name:path}"})  # without data: these they ask for with the key
MAX_VALUES = 2_000_000  # of a body, about: to read so many holds up all other requests for a tenth of a second
# As JavaScript writes an emoji that was cut in two; msgspec says something else of it.
HALF_A_PAIR = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
ALWAYS_OPEN = frozenset({"/health", "/ping"}) | PAGES


def new_router(route_class: "type[GuardedRoute] | None" = None) -> APIRouter:
    """A router whose routes are all guarded."""
    return APIRouter(route_class=route_class or GuardedRoute)


def given_keys(headers: Headers) -> list[str]:
    """The API keys that a request brings: OpenAI's clients send one as a bearer token, Anthropic's as ``x-api-key``."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    bearer = [token.strip()] if scheme.lower() == "bearer" else []
    return bearer + headers.getlist("x-api-key")[:1]


def key_accepted(given: str, keys: Sequence[str]) -> bool:
    """Whether ``given`` is one of ``keys``; the time taken tells nothing about any key."""
    digest = hashlib.sha256(given.encode("utf-8", "replace")).digest()
    accepted = False
    for key in keys:
        accepted |= hmac.compare_digest(digest, hashlib.sha256(key.encode()).digest())
    return accepted


def owner_of(request: Request) -> str:
    """The digest of the key that a request was let in with; "" where the server asks for none."""
    key: str | None = request.state.key
    return hashlib.sha256(key.encode()).hexdigest() if key else ""


class JsonRequest(Request):
    """A request whose body is bounded and must be standard JSON (no NaN, no lone surrogates)."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            limit = context_of(self).config.server.max_request_bytes
            too_large = HTTPException(
                413, f"The body is larger than the {limit:,} bytes that --max-request-bytes allows."
            )
            declared = self.headers.get("content-length", "0")
            if declared.isdecimal() and int(declared) > limit:
                raise too_large
            body = bytearray()
            async for chunk in self.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
            self._body = bytes(body)
        return self._body

    async def json(self) -> Any:
        try:
            body = await self.body()
            if body.count(b",") + body.count(b"[") + body.count(b"{") > MAX_VALUES:
                raise HTTPException(413, f"The body has more than {MAX_VALUES:,} values.")
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeError) as error:
            reason = "it has half of a surrogate pair" if HALF_A_PAIR.search(body) else error
            raise HTTPException(400, f"The body is not valid JSON: {reason}.") from None
        except RecursionError:
            raise HTTPException(400, "The body is nested too deeply.") from None


class GuardedRoute(APIRoute):
    """A route that asks for an API key, where one is configured, before it reads anything.

    ``error_answer`` writes the errors of its API family.
    """

    error_answer: ErrorAnswer = staticmethod(openai_error)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            context = context_of(request)
            key = request.state.key = self.checked_key(request, context)
            request = JsonRequest(request.scope, request.receive)
            if self.body_field is None:
                return await handler(request)
            check_media_type(request)
            with ExitStack() as unfinished:
                caller = key or address_of(request.client.host if request.client else None)
                unfinished.enter_context(context.quota.request(caller))
                request.state.unfinished = unfinished  # whoever goes on after the answer takes it over
                return CountedResponse(await handler(request), unfinished.pop_all())

        return handle

    def checked_key(self, request: Request, context: Context) -> str | None:
        """The API key that the request brings; None if it needs none. Raises 401."""
        server = context.config.server
        if not server.api_key or self.path in ALWAYS_OPEN or (self.path == "/metrics" and not server.protect_metrics):
            return None
        for given in given_keys(request.headers):
            if key_accepted(given, server.api_key):
                return given
        message = "This server needs a valid API key, sent as 'Authorization: Bearer <key>' or 'x-api-key: <key>'."
        raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


class CountedResponse(Response):
    """``response`` to a request that counts as unfinished until it has been sent."""

    def __init__(self, response: Response, unfinished: ExitStack):
        super().__init__()
        self.response, self.unfinished = response, unfinished
        self.raw_headers = response.raw_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.unfinished:
            await self.response(scope, receive, send)


def check_media_type(request: Request) -> None:
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Send the body as it is, without a Content-Encoding.")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(
            400, "Unsupported Media Type: Only 'application/json' is allowed; send it as the Content-Type header."
        )


class RequestIdHeader:
    """ASGI middleware: answers carry the caller's ``X-Request-Id``, or a new one."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
                MutableHeaders(scope=message)["X-Request-Id"] = given or secrets.token_hex(16)
            await send(message)

        await self.app(scope, receive, send_with_id if scope["type"] == "http" else send)
