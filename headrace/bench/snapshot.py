"""What a folder of results keeps besides them, so that a reader can judge and repeat: environment, versions, metrics.

The files' names are shared by those who measure (sweep, lab) and by the report.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from headrace.bench.files import write_json
from headrace.bench.server import flag_value
from headrace.errors import HeadraceError

ENVIRONMENT = "environment.json"
VERSIONS = "versions.json"
COMMANDS = "commands.json"
CHAT = "chat.json"
METRICS_BEFORE = "metrics-before.txt"
METRICS_AFTER = "metrics-after.txt"
SERVER_LOG = "server.log"
KEY_VARIABLES = ("OPENAI_API_KEY", "HEADRACE_API_KEY", "VLLM_API_KEY")


def api_key(words: Sequence[str] | None) -> str | None:
    """The key that a server's command asks for, else that of the environment."""
    given = flag_value(words or [], "--api-key")
    return given or next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), None)


def client(url: str, key: str | None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=600)


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


def save_metrics(server: httpx.Client, path: Path) -> None:
    """The server's /metrics as they are now; nothing if it has none."""
    answer = get(server, "/metrics")
    if answer is not None:
        path.write_text(answer.text)


def save_versions(server: httpx.Client, folder: Path) -> None:
    """What the server says of itself: its version, and its models with their limits."""
    write_json(folder / VERSIONS, {path: get_json(server, path) for path in ("/version", "/v1/models")})


def max_model_len(server: httpx.Client) -> int | None:
    """The longest sequence that the server's first model takes, where the server tells."""
    models = (get_json(server, "/v1/models") or {}).get("data")
    return models[0].get("max_model_len") if models else None


def get_json(server: httpx.Client, path: str) -> Any:
    """What a route answers; None if it is not there or is no JSON."""
    answer = get(server, path)
    try:
        return answer.json() if answer is not None else None
    except ValueError:
        return None


def get(server: httpx.Client, path: str) -> httpx.Response | None:
    try:
        answer = server.get(path)
    except httpx.HTTPError:
        return None
    return answer if answer.is_success else None
