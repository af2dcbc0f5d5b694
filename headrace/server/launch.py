"""`headrace serve`: from a configuration to a running server and to its end, which is the process's exit code.

Owns the order of start-up (port, engine, routes, "ready"), signals, draining and what follows the engine's death.
Does not know what routes do.
"""

import asyncio
import gc
import logging
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from headrace import logs
from headrace.config import Config, ServerOptions
from headrace.errors import ConfigError, EngineDeadError
from headrace.frontend.async_llm import AsyncLLM
from headrace.frontend.chat import load_chat_template
from headrace.frontend.metrics import Metrics
from headrace.frontend.progress import startup_progress
from headrace.server.announce import announce_ready, announce_start
from headrace.server.app import build_app
from headrace.server.connection import Connection
from headrace.server.context import Context
from headrace.server.stats_log import StatsLog
from headrace.server.tls import refresh, tls_context

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 2  # that open connections get for their last bytes once everything has ended
FAREWELL_SECONDS = 3.0  # that a server whose engine died still answers, with 503s
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_server(config: Config) -> int:
    """Serve until a signal or the engine's death; returns the exit code.

    Raises ConfigError for options or a model that can't be used.
    """
    started = time.monotonic()
    logs.configure(config.server.uvicorn_log_level, config.server.log_config_file)
    announce_start(config)
    tls = tls_context(config.server)  # now, and not when the model is loaded
    load_chat_template(config.frontend.chat_template)  # likewise
    listener = bind(config.server)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(config, listener, tls, started))
    except EngineDeadError as error:
        logger.error("%s", error)
        return 1
    finally:
        listener.close()
        if config.server.uds is not None:
            Path(config.server.uds).unlink(missing_ok=True)


def bind(server: ServerOptions) -> socket.socket:
    """The socket to serve on, taken before anything slow happens; ConfigError if it can't be had."""
    address: str | tuple[str, int]
    if server.uds is not None:
        family, address, where = socket.AF_UNIX, server.uds, f"--uds {server.uds}"
    else:
        host = server.host or ""
        family, address = (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, server.port)
        where = f"--port {server.port}" + (f" of --host {host}" if host else "")
    listener = socket.socket(family, socket.SOCK_STREAM)
    if family != socket.AF_UNIX:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        advice = "choose another one" if server.uds is None else "remove the file or choose another one"
        raise ConfigError(f"Can't listen on {where}: {error.strerror or error}; {advice}.") from None
    return listener


# -- start ----------------------------------------------------------------------------------------------------------


async def serve(config: Config, listener: socket.socket, tls: ssl.SSLContext | None, started: float) -> int:
    stop = asyncio.Event()
    on_signal(stop.set)
    async with application(config, stop) as app:
        if app is None:
            logger.info("Stopped by a signal before the server was ready.")
            return 0
        return await serve_app(app, listener, tls, stop, started)


@asynccontextmanager
async def application(config: Config, stop: asyncio.Event) -> AsyncIterator[FastAPI | None]:
    """The application over a started engine, which ends with the block; None if ``stop`` is set before it is ready."""
    engine = await start_engine(config, stop)
    if engine is None:
        yield None
        return
    async with AsyncExitStack() as ending:
        ending.push_async_callback(engine.shutdown)
        app = build_app(config, engine, observe(config, engine, ending))
        ending.callback(app.state.context.close)
        yield app


async def start_engine(config: Config, stop: asyncio.Event) -> AsyncLLM | None:
    """A ready engine; None if ``stop`` was set before."""
    with startup_progress(config.load.use_tqdm_on_load) as show:
        starting = asyncio.ensure_future(AsyncLLM.start(config, show))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            return None
        return starting.result()


async def serve_app(
    app: FastAPI, listener: socket.socket, tls: ssl.SSLContext | None, stop: asyncio.Event, started: float
) -> int:
    """Answer requests until the engine dies (1) or a signal has come and the work is drained (0)."""
    context: Context = app.state.context
    engine, server = context.engine, context.config.server
    http = HttpServer(uvicorn_config(server, app, tls), lambda: announce_ready(app, listener, started))
    serving = asyncio.ensure_future(http.serve([listener]))
    refreshing = asyncio.ensure_future(refresh(tls, server))
    gc.freeze()  # what start-up made lives for ever: no collection needs to look at it again
    dead = asyncio.ensure_future(engine.wait_dead())
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({serving, dead, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not dead.done():
            await drain(context, server.shutdown_timeout)
        exit_code = 0
        if dead.done():
            logger.error("%s Exiting.", dead.result())
            exit_code = 1
            await asyncio.sleep(FAREWELL_SECONDS)
        await engine.shutdown()
        http.should_exit = True
        await serving
        return exit_code
    finally:
        for task in (refreshing, dead, stopping):
            task.cancel()


def observe(config: Config, engine: AsyncLLM, ending: AsyncExitStack) -> CollectorRegistry:
    """Attach the metrics and, until ``ending``, the periodic log line to the engine, unless they are disabled."""
    if config.server.disable_log_stats:
        return CollectorRegistry()
    metrics, log = Metrics(config, engine.info, engine.served_names[0]), StatsLog(time.monotonic())
    engine.observers += [metrics, log]
    ending.callback(asyncio.ensure_future(log.run()).cancel)
    return metrics.registry


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handlers; calls ``on_ready`` once connections are accepted."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]):
        super().__init__(config)
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()


def uvicorn_config(server: ServerOptions, app: ASGIApp, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=partial(Connection, arrival_seconds=server.request_arrival_timeout),  # type: ignore[arg-type]
        log_config=None,
        access_log=not server.disable_uvicorn_access_log,
        lifespan="off",
        ws="none",
        server_header=False,
        root_path=server.root_path or "",
        timeout_graceful_shutdown=FLUSH_SECONDS,
        ssl_context_factory=None if tls is None else lambda config, default: tls,
    )


# -- end ------------------------------------------------------------------------------------------------------------


async def drain(context: Context, timeout: float) -> None:
    """Refuse new requests and give running ones ``timeout`` seconds to finish; a second signal ends the wait."""
    engine = context.engine
    context.draining = True
    engine.start_draining()
    if not engine.num_unfinished or timeout <= 0:
        return
    logger.info("Shutting down: %d running requests get %g s to finish.", engine.num_unfinished, timeout)
    hurry = asyncio.Event()
    on_signal(hurry.set)
    hurrying = asyncio.ensure_future(hurry.wait())
    idle = asyncio.ensure_future(engine.wait_idle(timeout))
    await asyncio.wait({idle, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    for task in (idle, hurrying):
        task.cancel()
    if engine.num_unfinished:
        logger.warning("%d requests did not finish in time and are aborted.", engine.num_unfinished)


def on_signal(action: Callable[[], None]) -> None:
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, action)
