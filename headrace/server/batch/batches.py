"""The batches behind /v1/batches: each is a task that answers the lines of a file into two others, and its state.

Knows files and the runner; no HTTP but the application that answers. The states are OpenAI's.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import msgspec
from fastapi import FastAPI

from headrace.config import Config
from headrace.errors import HeadraceError, QueueFullError, RequestError
from headrace.server.batch.files import Files, StoredFile
from headrace.server.batch.job import RepeatedIdError, line_keys
from headrace.server.batch.lines import Answer, Line, parsed, raw_lines
from headrace.server.batch.runner import Caller, answer_lines

logger = logging.getLogger(__name__)

WINDOW = 24 * 60 * 60  # seconds that a batch may take
ROWS = 256  # taken for --max-num-seqs where that is not set
MAX_BATCHES = 1000
FINISHED = ("completed", "failed", "cancelled", "expired")


class Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchError(msgspec.Struct):
    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchErrors(msgspec.Struct):
    data: list[BatchError]
    object: str = "list"


class BatchObject(msgspec.Struct, kw_only=True):
    """What clients see of a batch; the fields are OpenAI's, times are Unix seconds."""

    id: str
    object: str = "batch"
    endpoint: str
    model: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = msgspec.field(default_factory=Counts)
    metadata: dict[str, str] | None = None

    def becomes(self, status: str) -> None:
        self.status = status
        if status != "validating":
            setattr(self, f"{status}_at", int(time.time()))


@dataclass(eq=False)
class Batch:
    """``caller``: whom its requests count for."""

    owner: str
    about: BatchObject
    source: StoredFile
    caller: Caller
    task: asyncio.Task[None] | None = None


class Batches:
    """A server's batches and their ``files``, answered by the routes of ``app``.

    All batches share half of the requests that the engine runs at once: the other half is for who waits.
    """

    def __init__(self, config: Config, app: FastAPI):
        self.files = Files(config.server)
        self._app, self._limit = app, config.server.max_request_bytes
        self._width = max(1, (config.scheduler.max_num_seqs or ROWS) // 2)
        self._room = asyncio.Semaphore(self._width)
        self._batches: dict[str, Batch] = {}

    def begin(self, batch: Batch) -> None:
        """Raises QueueFullError if too many are under way."""
        if len(self._batches) >= MAX_BATCHES:
            over = next((batch for batch in self._batches.values() if batch.about.status in FINISHED), None)
            if over is None:
                raise QueueFullError(f"{MAX_BATCHES} batches are under way; wait for the end of one.", 60)
            del self._batches[over.about.id]
        self._batches[batch.about.id] = batch
        batch.task = asyncio.create_task(self._run(batch))

    def find(self, batch_id: str, owner: str) -> Batch:
        batch = self._batches.get(batch_id)
        if batch is None or batch.owner != owner:
            raise RequestError(f"No such Batch object: {batch_id}.", "batch_id", 404)
        return batch

    def of(self, owner: str) -> list[BatchObject]:
        """An owner's batches, the newest first."""
        return [batch.about for batch in reversed(self._batches.values()) if batch.owner == owner]

    def cancel(self, batch_id: str, owner: str) -> BatchObject:
        """What has been answered by then stays."""
        batch = self.find(batch_id, owner)
        if batch.about.status in FINISHED:
            raise RequestError(f"The batch is {batch.about.status} and can't be cancelled.", "batch_id", 409)
        if batch.about.status != "cancelling" and batch.task is not None:
            batch.about.becomes("cancelling")
            batch.task.cancel()
        return batch.about

    # -- running ----------------------------------------------------------------------------------------------------

    async def _run(self, batch: Batch) -> None:
        about = batch.about
        try:
            async with asyncio.timeout(WINDOW):
                await self._answer(batch)
            about.becomes("completed")
        except TimeoutError:
            about.becomes("expired")
        except asyncio.CancelledError:
            if about.status != "cancelling":
                raise  # the server ends
            about.becomes("cancelled")
        except HeadraceError as error:
            line = error.second if isinstance(error, RepeatedIdError) else None
            about.errors = BatchErrors([BatchError("invalid_batch", str(error), line=line)])
            about.becomes("failed")
        except Exception:
            logger.exception("A batch failed.")
            about.errors = BatchErrors([BatchError("server_error", "The server failed; its log says why.")])
            about.becomes("failed")

    async def _answer(self, batch: Batch) -> None:
        about, counts = batch.about, batch.about.request_counts
        written: dict[str, StoredFile] = {}

        def take(line: Line, answer: Answer) -> None:
            kind = "error" if answer.failed else "output"
            if kind not in written:
                written[kind] = self.files.new(batch.owner, f"{about.id}_{kind}.jsonl", "batch_output")
                setattr(about, f"{kind}_file_id", written[kind].about.id)
            self.files.append(written[kind], msgspec.json.encode(answer) + b"\n")
            counts.completed += not answer.failed
            counts.failed += answer.failed

        with self.files.open(batch.source) as file:
            counts.total = len(await asyncio.to_thread(line_keys, file, about.model, self._limit))
            if not counts.total:
                raise RequestError("The file holds no requests.")
            about.becomes("in_progress")
            file.seek(0)
            lines = self._lines(file, about.endpoint)
            await answer_lines(self._app, about.model, lines, self._width, take, room=self._room, caller=batch.caller)
        about.becomes("finalizing")

    def _lines(self, file: BinaryIO, endpoint: str) -> Iterator[Line]:
        for index, (number, raw) in enumerate(raw_lines(file, self._limit)):
            yield parsed(index, number, raw, frozenset({endpoint}), self._limit)


def new_batch(endpoint: str, model: str, file_id: str, metadata: dict[str, str] | None) -> BatchObject:
    now = int(time.time())
    return BatchObject(
        id=f"batch_{secrets.token_hex(12)}",
        endpoint=endpoint,
        model=model,
        input_file_id=file_id,
        completion_window="24h",
        created_at=now,
        expires_at=now + WINDOW,
        metadata=metadata,
    )
