"""What a folder of results keeps besides them, so that a reader can judge and repeat: environment, versions, metrics.

The files' names are shared by those who measure (sweep, lab) and by the report.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from headrace.bench.files import write_json
from headrace.errors import HeadraceError
from headrace.remote import bearer, connected, json_of, text_of

ENVIRONMENT = "environment.json"
VERSIONS = "versions.json"
COMMANDS = "commands.json"
CHAT = "chat.json"
METRICS_BEFORE = "metrics-before.txt"
METRICS_AFTER = "metrics-after.txt"
SERVER_LOG = "server.log"


def save_environment(folder: Path) -> None:
    """`headrace collect-env` in a process of its own, so that ours need not load torch."""
    command = [sys.executable, "-m", "headrace", "collect-env", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise HeadraceError(f"headrace collect-env failed: {done.stderr.strip()}")
    (folder / ENVIRONMENT).write_text(done.stdout)
    sections = json.loads(done.stdout).items()
    text = (
        f"{title}\n" + "".join(f"  {name}: {value}\n" for name, value in facts.items()) for title, facts in sections
    )
    (folder / ENVIRONMENT).with_suffix(".txt").write_text("\n".join(text))


@contextmanager
def observed(url: str, key: str | None, folder: Path, name: str = "") -> Iterator[tuple[httpx.Client, Any]]:
    """The server at ``url`` to ask, and its models with their limits.

    What it says of itself is kept in ``folder``, and its metrics before and after, in files of that ``name``.
    """
    with connected(url, bearer(key)) as server:
        told = {path: json_of(server, path) for path in ("/version", "/v1/models")}
        write_json(folder / VERSIONS, told)
        save_metrics(server, folder / f"{name}{METRICS_BEFORE}")
        try:
            yield server, (told["/v1/models"] or {}).get("data")
        finally:
            save_metrics(server, folder / f"{name}{METRICS_AFTER}")


def save_metrics(server: httpx.Client, path: Path) -> None:
    """The server's /metrics as they are now; nothing if it has none."""
    text = text_of(server, "/metrics")
    if text is not None:
        path.write_text(text)
