"""``headrace bench startup``: how long a new process takes until its engine is ready, caches empty and warm."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from headrace.errors import HeadraceError

ONE_START = """
import json, os, sys
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever else is printed is no answer
from headrace import LLM
llm = LLM(**json.loads(sys.argv[1]))
print(json.dumps([[entry.stage, entry.seconds] for entry in llm.info.ledger]), file=answer, flush=True)
"""


def startup(options: dict[str, Any], cold: int, warmup: int, warm: int) -> dict[str, Any]:
    """Seconds of ``cold`` starts, each with an empty kernel cache, and of ``warm`` ones that share a filled one."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as shared:
        for phase, count, skipped in (("cold", cold, 0), ("warm", warm, warmup)):
            times, ledgers = [], []
            for iteration in range(-skipped, count):
                with tempfile.TemporaryDirectory() as own:
                    seconds, ledger = one_start(options, own if phase == "cold" else shared)
                if iteration >= 0:
                    times.append(seconds)
                    ledgers.append(ledger)
            if times:
                result[f"avg_{phase}_total_startup_time"] = statistics.mean(times)
                result[f"{phase}_total_startup_times"] = times
                result[f"{phase}_ledger"] = ledgers[-1]
    return result


def one_start(options: dict[str, Any], kernel_cache: str) -> tuple[float, dict[str, float]]:
    """Seconds from a process's start until its engine is ready, and the engine's own ledger."""
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as said,  # a file never fills up, as a pipe would that nobody reads
        subprocess.Popen(
            [sys.executable, "-c", ONE_START, json.dumps(options)],
            env={**os.environ, "TRITON_CACHE_DIR": kernel_cache},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline()
        elapsed = time.perf_counter() - started
        process.wait()
        said.seek(0)
        errors = said.read().strip().splitlines()
    if not line:
        raise HeadraceError(f"The engine did not start: {errors[-1] if errors else '?'}")
    return elapsed, dict(json.loads(line))
