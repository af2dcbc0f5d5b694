"""Has torch traces recorded: by a server, over HTTP, or by the engine inside a command. Knows neither's inside."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import msgspec

from headrace.errors import ConfigError, HeadraceError

SETTINGS = "HEADRACE_PROFILER_CONFIG"  # read by the command line, as --profiler-config
STEPS_METRIC = re.compile(r"^vllm:iteration_tokens_total_count(?:\{.*\})? (\S+)", re.MULTILINE)
POLL_SECONDS = 0.05
TRACE_NAMES = ("*.json", "*.json.gz")


def own_words(command: Sequence[str]) -> list[str]:
    """A command's words; ``headrace`` is the one of this installation, whatever the PATH holds."""
    return [sys.executable, "-m", *command] if command[0] == "headrace" else list(command)


def run_command(command: Sequence[str], quiet: bool, environment: dict[str, str] | None = None) -> int:
    """Run ``command`` to its end; its exit code. ``quiet``: what it prints goes to stderr."""
    try:
        with subprocess.Popen(
            own_words(command), env=os.environ | (environment or {}), stdout=sys.stderr if quiet else None
        ) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:  # which the terminal sent to it as well
                return process.wait()
    except OSError as error:
        raise ConfigError(f"{command[0]} can't be started: {error.strerror or error}.") from None


def record_command(
    command: Sequence[str], directory: Path, skipped: int, steps: int, quiet: bool
) -> tuple[int, list[Path]]:
    """Run a command whose engine records ``steps`` steps after the ``skipped`` first; its exit code, the traces."""
    settings = {
        "profiler": "torch",
        "torch_profiler_dir": str(directory.absolute()),
        "delay_iterations": skipped,
        "max_iterations": steps,
        "autostart": True,
    }
    started = time.time()
    code = run_command(command, quiet, {SETTINGS: msgspec.json.encode(settings).decode()})
    return code, traces_since(directory, started)


def traces_since(directory: Path, started: float) -> list[Path]:
    """The traces written there since, the first rank's first; last that of vLLM's API process."""
    found = {path for pattern in TRACE_NAMES for path in directory.glob(pattern) if path.stat().st_mtime >= started}
    return sorted(found, key=lambda path: ("async_llm" in path.name.lower(), path))


class Server:
    """A server that records profiles: ours, vLLM's or one that answers like them."""

    def __init__(self, url: str, api_key: str | None):
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/").removesuffix("/v1")
        self._client = httpx.Client(base_url=self._url, headers=headers, timeout=None)

    def record(self, during: Callable[[], int]) -> tuple[int, list[str]]:
        """What ``during`` returns, and the files that the server says it wrote meanwhile: vLLM says nothing."""
        with self._client:
            answer = self._ask("POST", "/start_profile")
            if answer.status_code == 404:
                raise ConfigError(
                    f"the server at {self._url} records no profiles: start it with --profiler-config "
                    """'{"profiler": "torch", "torch_profiler_dir": "…"}'."""
                )
            check(answer)
            try:
                result = during()
            finally:
                stopped = self._ask("POST", "/stop_profile")
            check(stopped)
        with suppress(ValueError, AttributeError):  # no JSON, or no object
            return result, stopped.json().get("files", [])
        return result, []

    def wait(self, steps: int | None, seconds: float | None) -> int:
        """Until the server has made so many steps or so much time has passed, whichever comes first; Ctrl-C too."""
        deadline = time.monotonic() + (float("inf") if seconds is None else seconds)
        wanted = None if steps is None else self._steps() + steps
        with suppress(KeyboardInterrupt):
            while time.monotonic() < deadline and (wanted is None or self._steps() < wanted):
                time.sleep(POLL_SECONDS)
        return 0

    def _steps(self) -> float:
        found = STEPS_METRIC.findall(self._ask("GET", "/metrics").text)
        if not found:
            raise ConfigError(f"{self._url}/metrics doesn't count steps: say how long to record with --seconds.")
        return sum(map(float, found))

    def _ask(self, method: str, path: str) -> httpx.Response:
        try:
            return self._client.request(method, path)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise ConfigError(f"--url {self._url} is no http:// or https:// address.") from None
        except httpx.HTTPError as error:
            raise HeadraceError(f"no server answers at {self._url}{path}: {error}.") from None


def check(answer: httpx.Response) -> None:
    if answer.is_error:
        try:
            reason = str(answer.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            reason = answer.text.strip()
        raise HeadraceError(f"{answer.url} answered {answer.status_code}: {reason}")
