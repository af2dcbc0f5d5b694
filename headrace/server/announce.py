"""What a starting server tells its user: banner, options, and once it is ready how to call it."""

import json
import logging
import shlex
import socket
import time
from typing import Any

from fastapi import FastAPI
from rich.console import Console
from rich.table import Table

import headrace
from headrace.config import Config
from headrace.server.context import Context
from headrace.types import LedgerEntry

logger = logging.getLogger(__name__)

BANNER = """
  ╲▁▁▁▁▁▁
  ≋≋≋≋≋≋≋╲▁▁▁▁▁    version {version}
  ≋≋≋≋≋≋≋≋≋≋≋≋≋╲   model   {model}
  ▔▔▔▔▔▔▔▔▔▔▔▔▔▔▔
"""
GIB = 2**30
EXAMPLES: dict[str, tuple[str, dict[str, Any]]] = {  # task: route, fields of a body
    "generate": ("/v1/completions", {"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0}),
    "embed": ("/v1/embeddings", {"input": "The capital of France is Paris."}),
    "classify": ("/rerank", {"query": "What is the capital of France?", "documents": ["Paris.", "A river."]}),
}


def announce_start(config: Config) -> None:
    for line in BANNER.format(version=headrace.__version__, model=config.model.model or "(the default)").splitlines():
        logger.info("%s", line)
    logger.info("non-default args: %s", config.non_default())


def announce_ready(app: FastAPI, listener: socket.socket, started: float) -> None:
    """Say where the server is, what it answers and where the start went; the last line means that requests work."""
    context: Context = app.state.context
    config, engine = context.config, context.engine
    logger.info("Available routes are:")
    for path, methods in app.state.routes:
        logger.info("Route: %s, Methods: %s", path, ", ".join(methods))
    Console(stderr=True).print(ledger_table(engine.info.ledger, time.monotonic() - started))
    logger.info(
        "Headrace %s serves %s on %s", headrace.__version__, ", ".join(engine.served_names), url(config, listener)
    )
    logger.info("Try it:\n%s", curl_line(config, engine.served_names[0], listener, engine.info.tasks[0]))
    logging.getLogger("uvicorn.error").info("Application startup complete.")


def url(config: Config, listener: socket.socket) -> str:
    """Where a client on this machine finds the server."""
    server = config.server
    if server.uds is not None:
        return "http://localhost"
    scheme = "https" if server.ssl_certfile else "http"
    host = "localhost" if server.host in (None, "", "0.0.0.0", "::") else str(server.host)
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def curl_line(config: Config, model: str, listener: socket.socket, task: str) -> str:
    """A command that gets from this server what its model is for."""
    path, fields = EXAMPLES[task]
    body = {"model": model} | fields
    words = ["curl", f"{url(config, listener)}{path}", "-H", "Content-Type: application/json"]
    if config.server.api_key:
        words += ["-H", "Authorization: Bearer YOUR_KEY"]
    if config.server.uds is not None:
        words += ["--unix-socket", config.server.uds]
    return shlex.join([*words, "-d", json.dumps(body, ensure_ascii=False)])


def ledger_table(ledger: list[LedgerEntry], total_seconds: float) -> Table:
    """Where the seconds and the bytes of start-up went."""
    table = Table(title="Start-up ledger", title_justify="left")
    for column, justify in (("stage", "left"), ("seconds", "right"), ("GiB", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for entry in ledger:
        table.add_row(entry.stage, f"{entry.seconds:.2f}", f"{entry.num_bytes / GIB:.2f}" if entry.num_bytes else "")
    table.add_row("server ready after", f"{total_seconds:.2f}", "", style="bold")
    return table
