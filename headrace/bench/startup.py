"""``headrace bench startup``: how long a new process takes until its engine is ready, caches empty and warm."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from headrace.bench.spread import percentiles
from headrace.config import Config
from headrace.errors import ConfigError, HeadraceError
from headrace.models import packaged, source

ONE_START = """
import json, os, sys
answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever else is printed is no answer
from headrace import LLM
llm = LLM(**json.loads(sys.argv[1]))
print(json.dumps([[entry.stage, entry.seconds] for entry in llm.info.ledger]), file=answer, flush=True)
"""


def startup(options: dict[str, Any], cold: int, warmup: int, warm: int) -> dict[str, Any]:
    """Seconds of ``cold`` starts, each with empty caches, and of ``warm`` ones that share filled ones; vLLM's keys.

    Compilation is that of Triton's kernels. The model is downloaded before, if need be.
    """
    config = Config.from_kwargs(**options)
    source.resolve(config.model, config.load)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as shared:
        for phase, count, skipped in (("cold", cold, 0), ("warm", warm, warmup)):
            starts = []
            for _ in range(skipped + count if count else 0):
                with tempfile.TemporaryDirectory() as own:
                    starts.append(one_start(options, Path(own if phase == "cold" else shared)))
            if measured := starts[skipped:]:
                result |= figures(phase, *zip(*measured, strict=True))
    return result


def figures(phase: str, seconds: tuple[float, ...], ledgers: tuple[dict[str, float], ...]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for metric, times in (
        ("total_startup", list(seconds)),
        ("compilation", [ledger.get("kernels", 0.0) for ledger in ledgers]),
        ("encoder_compilation", [0.0] * len(ledgers)),  # for vLLM's scripts: no encoder is compiled by itself
    ):
        result[f"avg_{phase}_{metric}_time"] = statistics.mean(times)
        result[f"{phase}_{metric}_times"] = times
        result[f"{phase}_{metric}_percentiles"] = percentiles(times)
    return result | {f"{phase}_ledger": ledgers[-1]}


def one_start(options: dict[str, Any], caches: Path) -> tuple[float, dict[str, float]]:
    """Seconds from a process's start until its engine is ready, and the engine's own ledger.

    ``caches``: a directory in place of Triton's cache and Headrace's, but for the default model in the latter.
    """
    link = caches / packaged.FILE
    if not link.is_symlink():
        link.symlink_to(packaged.cache_root().absolute() / packaged.FILE)
    environment = {"TRITON_CACHE_DIR": str(caches / "triton"), "HEADRACE_CACHE_ROOT": str(caches)}
    started = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as said,  # a file never fills up, as a pipe would that nobody reads
        subprocess.Popen(
            [sys.executable, "-c", ONE_START, json.dumps(options)],
            env=os.environ | environment,
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
        reason = errors[-1] if errors else "it gave no reason"
        refusal = reason.removeprefix("headrace.errors.ConfigError: ")
        raise ConfigError(refusal) if refusal != reason else HeadraceError(f"The engine did not start: {reason}")
    return elapsed, dict(json.loads(line))
