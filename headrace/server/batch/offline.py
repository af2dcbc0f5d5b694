"""``headrace run-batch``'s run: starts an engine, answers a job's lines by the routes of an application, and ends.

Owns the order of that, signals and what is shown meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headrace.config import Config
from headrace.errors import ConfigError, HeadraceError
from headrace.frontend.async_llm import AsyncLLM
from headrace.server.batch.job import Job
from headrace.server.batch.lines import Answer, Line
from headrace.server.batch.runner import answer_lines
from headrace.server.launch import application, on_signal
from headrace.server.sse import cancelled

logger = logging.getLogger(__name__)

ROWS = 512  # taken for --max-num-seqs where that is not set
LOG_SECONDS = 30.0


class Interrupted(HeadraceError):
    """A signal ended the run before all lines were answered."""


def run_job(config: Config, job: Job, metrics: tuple[str, int] | None) -> None:
    """Answer what is open in ``job``. ``metrics``: the address to serve Prometheus metrics at.

    Raises Interrupted after a signal, EngineDeadError if the engine dies; what was answered by then is written.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(answer_job(config, job, metrics))


async def answer_job(config: Config, job: Job, metrics: tuple[str, int] | None) -> None:
    stop = asyncio.Event()
    on_signal(stop.set)
    async with application(config, stop) as app:
        if app is None:
            raise Interrupted("Stopped by a signal before the model was ready.")
        if metrics is not None:
            serve_metrics(*metrics, app.state.context.registry)
        await answer_with(app, config, job, stop)


async def answer_with(app: FastAPI, config: Config, job: Job, stop: asyncio.Event) -> None:
    width = 2 * (config.scheduler.max_num_seqs or ROWS)  # the engine finds as many waiting as it runs
    with progress(job) as show:

        def take(line: Line, answer: Answer) -> None:
            job.take(line, answer)
            show()

        lines = job.open_lines(app.state.batched)
        answering = asyncio.ensure_future(answer_lines(app, job.model, lines, width, take))
        try:
            await first_of(answering, stop, app.state.context.engine)
        finally:
            await cancelled(answering)


def serve_metrics(host: str, port: int, registry: CollectorRegistry) -> None:
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"Can't serve metrics on --host {host} --port {port}: {error.strerror}.") from None
    logger.info("Prometheus metrics are on http://%s:%d/metrics.", host, port)


async def first_of(answering: "asyncio.Future[None]", stop: asyncio.Event, engine: AsyncLLM) -> None:
    """Wait until ``answering`` is done; raises Interrupted if a signal comes first, or EngineDeadError."""
    stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    dead: asyncio.Future[Any] = asyncio.ensure_future(engine.wait_dead())
    await asyncio.wait((answering, stopping, dead), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    dead.cancel()
    if dead.done():
        await engine.check_health()
    if not answering.done():
        raise Interrupted("Stopped by a signal.")
    answering.result()


@contextmanager
def progress(job: Job) -> Iterator[Callable[[], None]]:
    """Shows how far ``job`` is whenever the function it gives is called: a bar on a terminal, else a log line now and
    then.
    """
    columns = (TextColumn("Answered"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed"))
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    task = bar.add_task("", total=job.total, completed=job.answered, failed=0)
    said = time.monotonic()

    def show() -> None:
        nonlocal said
        bar.update(task, completed=job.answered, failed=job.failed)
        if not bar.console.is_terminal and time.monotonic() > said + LOG_SECONDS:
            said = time.monotonic()
            logger.info("%d of %d lines are answered, %d of them with an error.", job.answered, job.total, job.failed)

    if bar.console.is_terminal:
        bar.start()
    try:
        yield show
    finally:
        bar.stop()
