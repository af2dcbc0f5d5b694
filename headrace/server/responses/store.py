"""Responses that are kept for later: in memory, no more than so many and so many bytes, and for so long.

Knows nothing of how a response is made.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from headrace.config import ServerOptions
from headrace.errors import QueueFullError, RequestError
from headrace.server.responses.bodies import ResponseBody
from headrace.server.responses.items import Item


@dataclass(eq=False)
class Record:
    """A response and what it answers. ``owner``: the digest of an API key.

    ``events``: framed, those of a background response that is streamed, by their sequence number. ``cancel`` ends a
    background response that is being made.
    """

    owner: str
    response: ResponseBody
    items: list[Item]
    events: list[bytes] | None = None
    cancel: Callable[[], Awaitable[None]] | None = None
    size: int = 0
    used: float = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def all_items(self) -> list[Item]:
        return [*self.items, *self.response.output]

    def tell(self) -> None:
        """Wake those who follow."""
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, place: int) -> AsyncGenerator[bytes, None]:
        """The events from a sequence number on, until the last one."""
        assert self.events is not None
        while True:
            news = self._news
            while place < len(self.events):
                yield self.events[place]
                place += 1
            if self.response.finished:
                return
            await news.wait()


class Store:
    """The least recently used responses leave first, but none that is still being made."""

    def __init__(self, options: ServerOptions, clock: Callable[[], float] = time.monotonic):
        self._options, self._clock = options, clock
        self._records: dict[str, Record] = {}  # the least recently used first
        self._items: dict[str, Record] = {}  # by the ids of their items
        self._size = 0

    def find(self, response_id: str, owner: str, param: str | None = None) -> Record:
        """Raises ``RequestError`` (404) if there is no such response, or it is somebody else's."""
        self._evict()
        record = self._records.get(response_id)
        if record is None or record.owner != owner:
            raise RequestError(f"Response with id {response_id} not found.", param, 404)
        self._touch(record)
        return record

    def history(self, response_id: str | None, owner: str) -> list[Item]:
        """The items of a chain of responses up to and with this one; none of None."""
        chain: list[Record] = []
        while response_id is not None:
            chain.insert(0, self.find(response_id, owner, "previous_response_id"))
            response_id = chain[0].response.previous_response_id
        for record in chain:
            self._touch(record)
        return [item for record in chain for item in record.all_items]

    def item(self, item_id: str, owner: str) -> Item:
        """An item of a stored response. Raises ``RequestError``."""
        record = self._items.get(item_id)
        if record is not None and record.owner == owner:
            return next(item for item in record.all_items if item.id == item_id)
        raise RequestError(f"Item with id {item_id} not found.", "input")

    def add(self, record: Record) -> None:
        """Keep a response. Raises ``QueueFullError`` if others that are still being made take all the room."""
        self._records[record.response.id] = record
        record.used = self._clock()
        try:
            self.grow(record, json_size(record.items))
        except QueueFullError:
            self.remove(record)
            raise
        if record.response.finished:
            self.finish(record)

    def finish(self, record: Record) -> None:
        """A response is complete, and may leave from now on."""
        if record.response.id in self._records:
            for item in record.all_items:
                self._items.setdefault(item.id, record)
            self.grow(record, json_size(record.response))

    def grow(self, record: Record, size: int) -> None:
        """So many bytes more are kept of a response, if it is kept. Raises ``QueueFullError`` like ``add``."""
        if record.response.id not in self._records:
            return
        record.size += size
        self._size += size
        self._evict()
        if self._over() and not record.response.finished:
            raise QueueFullError("The server's store of responses is full of running ones; try again later.")

    def remove(self, record: Record) -> None:
        if self._records.pop(record.response.id, None) is not None:
            self._size -= record.size
            for item in record.all_items:
                if self._items.get(item.id) is record:
                    del self._items[item.id]

    def _touch(self, record: Record) -> None:
        record.used = self._clock()
        self._records[record.response.id] = self._records.pop(record.response.id)

    def _over(self) -> bool:
        return (
            len(self._records) > self._options.max_stored_responses
            or self._size > self._options.max_stored_response_bytes
        )

    def _evict(self) -> None:
        expired = self._clock() - self._options.stored_response_lifetime
        while leaver := next((record for record in self._records.values() if record.response.finished), None):
            if not self._over() and leaver.used > expired:
                return
            self.remove(leaver)


def json_size(value: object) -> int:
    return len(msgspec.json.encode(value))
