"""The HTTP application around a scripted engine, and its clients."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from headrace.config import Config
from headrace.server.app import build_app

from .fake_engine import FakeEngine

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"prompt": "Say"}
GENERATE = {"token_ids": [5, 6]}
COMPLETIONS, CHATS, GENERATES = "/v1/completions", "/v1/chat/completions", "/inference/v1/generate"


def make(reply: str = "Hello", **options: Any) -> tuple[FastAPI, FakeEngine]:
    config = Config.from_kwargs(**options)
    engine = FakeEngine(config, reply)
    return build_app(config, engine, CollectorRegistry()), engine  # type: ignore[arg-type]


def client_of(app: FastAPI, root_path: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


@asynccontextmanager
async def serving(reply: str = "Hello", **options: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FakeEngine]]:
    app, engine = make(reply, **options)
    async with client_of(app) as client:
        yield client, engine


def events(response: httpx.Response) -> list[Any]:
    """The JSON events of a stream, which must end with [DONE]."""
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *lines, last, end = response.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def call_and_leave(app: FastAPI, path: str, body: Any, leave: asyncio.Event) -> list[Any]:
    """POST as an ASGI server would, with a client that disconnects once ``leave`` is set; what was sent to it."""
    sent: list[Any] = []
    incoming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await leave.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [(b"content-type", b"application/json")], "root_path": "", "scheme": "http",
             "server": ("server", 80), "client": ("client", 1), "http_version": "1.1",
             "asgi": {"version": "3.0", "spec_version": "2.3"}}  # fmt: skip
    await app(scope, receive, send)
    return sent
