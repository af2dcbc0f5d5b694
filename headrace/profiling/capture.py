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

from headrace.command import need_command, words_of
from headrace.config.profiler import VARIABLE
from headrace.errors import ConfigError, HeadraceError
from headrace.remote import profile, text_of

STEPS_METRIC = re.compile(r"^vllm:iteration_tokens_total_count(?:\{.*\})? (\S+)", re.MULTILINE)
OURS = "vllm:"  # what the names of metrics begin with where steps are counted
POLL_SECONDS = 0.05
IDLE_SECONDS = 60.0
TRACE_NAMES = ("*.json", "*.json.gz")


def run_command(command: Sequence[str], quiet: bool, environment: dict[str, str] | None = None) -> int:
    """Run ``command`` to its end; its exit code. ``quiet``: what it prints goes to stderr."""
    words = words_of(command, "what follows --")
    need_command(words)
    output = sys.stderr if quiet else None
    with subprocess.Popen(words, env=os.environ | (environment or {}), stdout=output) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # which the terminal sent to it as well
            code = process.wait()
    if code:
        print(f"headrace: the command ended with code {code}.", file=sys.stderr)
    return code


def record_command(
    command: Sequence[str], directory: Path, skipped: int, steps: int, quiet: bool
) -> tuple[int, list[Path]]:
    """Run a command whose engine records ``steps`` steps after the ``skipped`` first; its exit code, the traces."""
    started, environment = time.time(), telling("torch", skipped, steps, torch_profiler_dir=str(directory.absolute()))
    code = run_command(command, quiet, environment)
    return code, traces_since(directory, started)


def telling(profiler: str, skipped: int, steps: int, **further: str) -> dict[str, str]:
    """The environment by which the engine of a command of ours knows to record so many steps."""
    limits = {"delay_iterations": skipped, "max_iterations": steps}
    settings = {"profiler": profiler, "autostart": True} | limits | further
    return {VARIABLE: msgspec.json.encode(settings).decode()}


def traces_since(directory: Path, started: float) -> list[Path]:
    """The traces written there since, the first rank's first; last that of vLLM's API process."""
    found = {path for pattern in TRACE_NAMES for path in directory.glob(pattern) if path.stat().st_mtime >= started}
    return sorted(found, key=lambda path: ("async_llm" in path.name.lower(), path))


def record_server(server: httpx.Client, during: Callable[[], int]) -> tuple[int, list[str]]:
    """What ``during`` returns, and the files that the server says it wrote meanwhile."""
    profile(server, "start")
    try:
        result = during()
    finally:
        files = profile(server, "stop")
    return result, files


def wait(server: httpx.Client, steps: int | None, seconds: float | None) -> int:
    """Until the server has made so many steps or so much time has passed, whichever comes first; Ctrl-C too.

    Where time has no limit, IDLE_SECONDS without a step end it as well. Raises HeadraceError if none was made of those
    that were to be counted.
    """
    begun = heard = time.monotonic()
    first = latest = steps_of(server) if steps else 0.0
    with suppress(KeyboardInterrupt):
        while time.monotonic() < (begun + seconds if seconds else heard + IDLE_SECONDS):
            if steps and latest >= first + steps:
                break
            time.sleep(POLL_SECONDS)
            if steps and (count := steps_of(server)) > latest:
                latest, heard = count, time.monotonic()
    if steps and latest == first:
        raise HeadraceError(
            f"{server.base_url} made no step in {time.monotonic() - begun:.0f} s: ask it something meanwhile, for "
            "instance by a command after --, as in `-- headrace bench serve`."
        )
    return 0


def steps_of(server: httpx.Client) -> float:
    """How many steps the server has made; it need not count before its first."""
    metrics = text_of(server, "/metrics")
    if metrics is None or OURS not in metrics:
        raise ConfigError(f"{server.base_url}metrics doesn't count steps: say how long to record with --seconds.")
    return sum(map(float, STEPS_METRIC.findall(metrics)))
