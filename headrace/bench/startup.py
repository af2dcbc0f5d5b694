"""``headrace bench startup``: how long a new process takes until its engine is ready, caches empty and warm."""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from headrace.bench.server import run_command
from headrace.bench.spread import percentiles, repeated
from headrace.config import Config
from headrace.errors import ConfigError, HeadraceError
from headrace.models import packaged, source

ONE_START = """
import json, sys, time
from headrace import LLM
llm = LLM(**json.loads(sys.argv[1]))
with open(sys.argv[2], "w") as answer:
    json.dump([time.perf_counter(), {entry.stage: entry.seconds for entry in llm.info.ledger}], answer)
"""


def startup(options: dict[str, Any], cold: int, warmup: int, warm: int) -> dict[str, Any]:
    """Seconds of ``cold`` starts, each with empty caches, and of ``warm`` ones that share filled ones; vLLM's keys.

    Compilation is that of Triton's kernels. The model is downloaded before, if need be.
    """
    config = Config.from_kwargs(**options)
    source.resolve(config.model, config.load)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as shared:

        def cold_start(_: int) -> tuple[float, dict[str, float]]:
            with tempfile.TemporaryDirectory() as own:
                return one_start(options, Path(own))

        def warm_start(_: int) -> tuple[float, dict[str, float]]:
            return one_start(options, Path(shared))

        for phase, start, count, skipped in (("cold", cold_start, cold, 0), ("warm", warm_start, warm, warmup)):
            for number in range(skipped if count else 0):
                start(number)
            starts, interrupted = repeated(start, count)
            if starts:
                result |= figures(phase, *zip(*starts, strict=True))
            if interrupted:
                return result | {"interrupted": True}
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
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer"), Path(folder, "log")
        started = time.perf_counter()  # the same clock in all processes of one machine
        code = run_command(
            [sys.executable, "-c", ONE_START, json.dumps(options), str(answer)], log, environment=environment
        )
        if not code:
            ready, ledger = json.loads(answer.read_text())
            return ready - started, ledger
        said = log.read_text(errors="replace").strip().splitlines()
    reason = said[-1] if said and code > 0 else f"its process ended with code {code}"
    refusal = reason.removeprefix("headrace.errors.ConfigError: ")
    raise ConfigError(refusal) if refusal != reason else HeadraceError(f"The engine did not start: {reason}.")
