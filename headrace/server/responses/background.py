"""Responses that are made while nobody waits for them."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, aclosing

from headrace.server.responses.store import Record, Store
from headrace.server.responses.writer import ResponseWriter
from headrace.server.sse import cancelled


class Background:
    """Begins at once, and keeps the events if the record has room for them. Raises ``QueueFullError``.

    What ``unfinished`` holds is closed at the end: until then its caller's quota counts the response.
    """

    def __init__(self, store: Store, record: Record, writer: ResponseWriter, unfinished: ExitStack):
        self._store, self._record, self._writer = store, record, writer
        store.add(record)
        record.cancel = self._cancel
        self._unfinished = unfinished.pop_all()
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        record = self._record
        try:
            async with aclosing(self._writer.events()) as events:
                async for event in events:
                    if record.events is not None:
                        record.events.append(event)
                        record.tell()
                        self._store.grow(record, len(event))
            self._finish()
        except Exception as error:  # the store is full, or there is a bug
            self._end(self._writer.fail(error))

    async def _cancel(self) -> None:
        await cancelled(self._task)
        if not self._record.response.finished:
            self._end(self._writer.end("cancelled"))

    def _end(self, events: Iterator[bytes]) -> None:
        last = list(events)
        if self._record.events is not None:
            self._record.events += last
        self._store.grow(self._record, sum(map(len, last)))
        self._finish()

    def _finish(self) -> None:
        self._unfinished.close()
        self._record.cancel = None  # with it goes all of the work but the response
        self._store.finish(self._record)
        self._record.tell()
