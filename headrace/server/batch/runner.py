"""Answers the lines of a batch by the server's own routes, in this process: what a server can do, a batch can.

Owns how many lines are under way and who is asked again; knows no files, and no route's inside.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import httpx
from fastapi import FastAPI

from headrace.server.batch.lines import Answer, Line, answer_of, refused

PATIENCE = 600.0  # seconds that a line which is told to come back later (429) does so
JSON = "application/json"


class Caller(NamedTuple):
    """Whom requests count for: an API key, or without one an address."""

    key: str | None = None
    address: str = "127.0.0.1"


async def answer_lines(
    app: FastAPI,
    model: str,
    lines: Iterator[Line],
    width: int,
    take: Callable[[Line, Answer], None],
    *,
    room: asyncio.Semaphore | None = None,
    caller: Caller | None = None,
) -> None:
    """Give ``take`` each line with its answer, as they come; at most ``width`` are under way, and no more are read.

    ``room``: shared by batches that have to be content with it together. Cancelling this aborts what is under way.
    """
    caller = caller or Caller()
    headers = {"Content-Type": JSON} | ({"Authorization": f"Bearer {caller.key}"} if caller.key else {})
    room = room or asyncio.Semaphore(width)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(caller.address, 0))
    async with httpx.AsyncClient(transport=transport, base_url="http://batch", headers=headers, timeout=None) as client:

        async def work() -> None:
            while True:
                async with room:
                    line = next(lines, None)
                    if line is None:
                        return
                    take(line, await answered(client, model, line))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(width):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None


async def answered(client: httpx.AsyncClient, model: str, line: Line) -> Answer:
    if line.fault is not None:
        await asyncio.sleep(0)  # a file of bad lines must not hold up the event loop
        return refused(line, model, *line.fault)
    deadline = time.monotonic() + PATIENCE
    while True:
        response = await client.post(line.url, content=bytes(line.body))
        if response.status_code != 429 or time.monotonic() > deadline:
            break
        await asyncio.sleep(retry_after(response))
    if response.headers.get("content-type", "").partition(";")[0] != JSON:
        return refused(line, model, f"{line.url} has no JSON to answer it with", "url")
    return answer_of(line, model, response.status_code, response.content, response.headers.get("x-request-id"))


def retry_after(response: httpx.Response) -> float:
    """Seconds; not none, even if the header is missing or odd."""
    with contextlib.suppress(ValueError):
        return max(float(response.headers.get("retry-after", "")), 0.1)
    return 1.0
