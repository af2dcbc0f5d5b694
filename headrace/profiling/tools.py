"""Runs a command under a profiler from outside: its command line built, its end a SIGINT, so that its file is whole.

Knows the flags of Nsight Systems, VizTracer and py-spy; reads none of what they write.
"""

import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.command import words_of
from headrace.errors import ConfigError
from headrace.profiling.capture import telling

TOOLS = {
    "nsys": "Install Nsight Systems' command line from developer.nvidia.com/nsight-systems.",
    "viztracer": "`pip install viztracer` does it.",
    "py-spy": "`pip install py-spy` does it.",
}
# Of VizTracer: shorter calls would push all else out of the buffer, which holds so many entries a process.
SHORTEST_CALL, BUFFER_ENTRIES = "10us", 2_000_000
NSYS_FLAGS = ("--trace=cuda,nvtx,osrt", "--cuda-graph-trace=node", "--trace-fork-before-exec=true")


@dataclass(frozen=True)
class Run:
    """A command under a tool, and the file that it leaves."""

    words: list[str]
    output: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.words])


def under(tool: str, command: Sequence[str], directory: Path, skipped: int, steps: int | None) -> Run:
    """``command`` under ``tool``. Raises ConfigError if that isn't installed.

    ``steps``: nsys looks only at so many, after the ``skipped`` first.
    """
    words = words_of(command, "what follows --")
    if tool == "viztracer" and importlib.util.find_spec("viztracer"):
        return viztracer(words, directory / "viztracer.json.gz")
    program = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    if tool == "viztracer" or program is None:
        raise ConfigError(f"--tool {tool} needs {tool}, which isn't installed here. {TOOLS[tool]}")
    if tool == "nsys":
        return nsys(program, words, directory / "nsys.nsys-rep", skipped, steps)
    output = directory / "py-spy.speedscope.json"
    flags = ["--subprocesses", "--format", "speedscope", "--output", str(output)]
    return Run([program, "record", *flags, "--", *words], output)


def nsys(program: str, words: list[str], output: Path, skipped: int, steps: int | None) -> Run:
    """It looks at so many steps; else, where the command has a --profiler-config, when that says so; else always."""
    flags = [*NSYS_FLAGS, "--force-overwrite=true", f"--output={output.with_suffix('')}"]
    environment = {}
    if steps is not None:
        environment = telling("cuda", skipped, steps)
        flags += ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
    elif any(word.replace("_", "-").startswith("--profiler-config") for word in words):
        flags += ["--capture-range=cudaProfilerApi", "--capture-range-end=repeat"]
    return Run([program, "profile", *flags, *words], output, environment)


def viztracer(words: list[str], output: Path) -> Run:
    """VizTracer runs modules and scripts, not interpreters; of our command line, the engine's process too."""
    flags = ["--min_duration", SHORTEST_CALL, "--tracer_entries", str(BUFFER_ENTRIES)]
    if Path(words[0]).name.startswith("python"):
        words = words[1:]
    elif program := shutil.which(words[0]):
        with open(program, "rb") as file:
            if b"python" not in file.readline():
                raise ConfigError(f"--tool viztracer follows programs in Python, and {words[0]} is none.")
    if words[:2] == ["-m", "headrace"]:
        words = ["-m", "headrace.cli.traced", *words[2:]]
    target = [*words[:2], "--", *words[2:]] if words[:1] == ["-m"] else ["--", *words]
    return Run([sys.executable, "-m", "viztracer", "--quiet", "-o", str(output), *flags, *target], output)


def execute(run: Run, seconds: float | None) -> tuple[int, list[Path]]:
    """Run it until its end, ours (SIGINT, SIGTERM) or ``seconds``; its exit code, and what it wrote.

    All of the tool's processes are one group, which gets a SIGINT as from a terminal, and time to write; a second one
    of ours kills it. nsys writes several files, ``nsys.1.nsys-rep`` and so on, if it looked several times.
    """
    run.output.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    process = subprocess.Popen(run.words, env=os.environ | run.environment, start_new_session=True)
    asked = threading.Event()

    def end(*_: Any) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL if asked.is_set() else signal.SIGINT)
        asked.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    timer = threading.Timer(seconds, end) if seconds else None
    if timer:
        timer.start()
    try:
        code = process.wait()
        name, dot, suffixes = run.output.name.partition(".")
        found = [path for path in run.output.parent.glob(f"{name}*{dot}{suffixes}") if path.stat().st_mtime >= started]
        return 0 if asked.is_set() and found else code, sorted(found)
    finally:
        if timer:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(ProcessLookupError):  # a command that outlives its tool is not left behind
            os.killpg(process.pid, signal.SIGTERM if process.poll() is not None else signal.SIGKILL)
