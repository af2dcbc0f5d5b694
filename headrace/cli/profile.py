"""``headrace profile``: record a trace, or take one that exists, and say where the device's time went."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.bench.files import writing
from headrace.bench.numbers import above_zero, natural, positive
from headrace.cli.parser import FlagParser
from headrace.command import need_command, words_of
from headrace.config.profiler import DEFAULT_DIRECTORY
from headrace.errors import ConfigError, HeadraceError

if TYPE_CHECKING:
    from headrace.profiling.trace import Trace

DEFAULT_STEPS, DEFAULT_SKIPPED = 50, 10  # the first steps compile kernels and wake the profiler up
USAGE = """%(prog)s TRACE [FLAG …]
       %(prog)s [FLAG …] -- COMMAND …
       %(prog)s --url URL [FLAG …] [-- COMMAND …]
       %(prog)s --tool nsys|viztracer|py-spy [FLAG …] -- COMMAND …"""


def add_arguments(parser: FlagParser) -> None:
    parser.usage = USAGE
    parser.takes_command = True
    parser.add_argument(
        "trace", nargs="?", metavar="TRACE", help="torch trace (.json, .json.gz) or Nsight's (.sqlite, .nsys-rep)."
    )
    parser.add_argument("--url", metavar="URL", help="Server that records, while COMMAND runs or for some steps.")
    parser.add_argument("--api-key", metavar="KEY", help="The server's key. [$HEADRACE_API_KEY or $OPENAI_API_KEY]")
    parser.add_argument(
        "--trace-dir", metavar="DIR", help="Where the server writes traces, if it doesn't say so itself, as vLLM."
    )
    parser.add_argument(
        "--tool", choices=("nsys", "viztracer", "py-spy"), help="Run COMMAND under this until Ctrl-C, or its end."
    )
    parser.add_argument("--num-steps", type=positive, metavar="N", help=f"Engine steps to record. [{DEFAULT_STEPS}]")
    parser.add_argument(
        "--skip-steps",
        type=natural,
        default=DEFAULT_SKIPPED,
        metavar="N",
        help="Steps of COMMAND's engine before them.",
    )
    parser.add_argument("--seconds", type=above_zero, metavar="S", help="Record, or run the tool, for so long.")
    parser.add_argument("--out", metavar="DIR", help=f"Where traces go. [{DEFAULT_DIRECTORY}]")
    parser.add_argument("--top", type=positive, default=15, metavar="N", help="Kernels to list.")
    parser.add_argument("--json", action="store_true", help="Print the figures as JSON.")


def run(arguments: argparse.Namespace) -> int:
    given, command = arguments, arguments.command
    if given.trace:
        if command or given.url or given.tool:
            raise ConfigError(f"{given.trace} is a trace to read: leave out --url, --tool and what follows --.")
        return show(given, Path(given.trace), 0)
    if given.tool:
        if not command or given.url:
            raise ConfigError(f"--tool {given.tool} runs a command: put it after --, and leave --url out.")
        return run_tool(given)
    directory = Path(given.out or DEFAULT_DIRECTORY)
    if given.url:
        path, code = record_server(given, directory)
    elif command:
        from headrace.profiling.capture import record_command

        if given.seconds:
            raise ConfigError("--seconds is for --url and --tool: a command's engine records --num-steps.")
        steps = given.num_steps or DEFAULT_STEPS
        code, traces = record_command(command, directory, given.skip_steps, steps, quiet=given.json)
        if not traces:
            if code:
                return code
            raise HeadraceError(
                f"the command recorded nothing: its engine made at most {given.skip_steps} steps (--skip-steps), or it "
                "runs none through headrace's command line (a server that is elsewhere is profiled with --url)."
            )
        path = first_of(traces)
    else:
        raise ConfigError("name a TRACE, a server (--url) or a command (after --); `headrace profile --help` says how.")
    return show(given, path, code)


def record_server(given: argparse.Namespace, directory: Path) -> tuple[Path, int]:
    """The trace that a server recorded, and the command's exit code."""
    from headrace import remote
    from headrace.profiling import capture

    if given.command and (given.num_steps or given.seconds):
        raise ConfigError("the recording lasts as long as the command: leave --num-steps and --seconds out.")
    started = time.time()
    steps = given.num_steps or (None if given.seconds else DEFAULT_STEPS)
    with remote.connected(remote.address(given.url), remote.bearer(given.api_key or remote.api_key())) as server:
        if given.command:
            code, files = capture.record_server(server, lambda: capture.run_command(given.command, quiet=given.json))
        else:
            what = f"{steps} steps" if steps else f"{given.seconds:g} s"
            idle = "" if given.seconds else f", as do {capture.IDLE_SECONDS:g} s without a step"
            note(f"Recording {what} of {given.url}; Ctrl-C ends it{idle}.")
            code, files = capture.record_server(server, lambda: capture.wait(server, steps, given.seconds))
    found = [Path(file) for file in files] or capture.traces_since(Path(given.trace_dir or directory), started)
    if not found:
        raise HeadraceError(
            "the server doesn't say where it wrote the trace, or nothing was recorded: name its torch_profiler_dir "
            "with --trace-dir; `headrace profile TRACE` reads a file that lies elsewhere."
        )
    if not found[0].exists():
        raise HeadraceError(
            f"the server wrote {found[0]} on its own host: copy it here and run `headrace profile {found[0].name}`."
        )
    return first_of(found), code


def run_tool(given: argparse.Namespace) -> int:
    from headrace.profiling import tools

    if given.json:
        raise ConfigError("--json has no figures to print of --tool: read its file with `headrace profile TRACE`.")
    need_command(words_of(given.command, "what follows --"))
    out = Path(given.out or DEFAULT_DIRECTORY)
    run = tools.under(given.tool, given.command, out, given.skip_steps, given.num_steps)
    note(f"Running {run}\nCtrl-C ends it, and lets {given.tool} write {run.output}, which may take a while.")
    code, files = tools.execute(run, given.seconds)
    if not files:
        raise HeadraceError(f"{given.tool} ended with code {code} and left no {run.output}.")
    if given.tool == "nsys":
        return show(given, first_of(files), code)
    viewer = "speedscope.app" if given.tool == "py-spy" else "ui.perfetto.dev, or with vizviewer"
    note(f"Wrote {run.output}: open it in {viewer}.")
    return code


def show(given: argparse.Namespace, path: Path, code: int) -> int:
    """Print the figures of the trace in ``path``, leave it for Perfetto, and return ``code``."""
    from headrace.profiling.read import read_trace
    from headrace.profiling.summary import summarize

    trace = read_trace(path)
    summary = summarize(trace)
    perfetto = for_perfetto(given, path, trace)
    if given.json:
        print(json.dumps({"trace": str(path), "perfetto": perfetto and str(perfetto), **summary.as_json(given.top)}))
        return code
    from headrace.profiling.table import print_summary

    print_summary(summary, given.top)
    if perfetto:
        print(f"Perfetto trace, for ui.perfetto.dev: {perfetto}")
    return code


def for_perfetto(given: argparse.Namespace, path: Path, trace: "Trace") -> Path | None:
    """The trace as Perfetto reads it; none is made of a file that was merely to be read."""
    from headrace.profiling.perfetto import write_perfetto

    if given.trace and not given.out:
        return None
    out = Path(given.out or DEFAULT_DIRECTORY)
    with writing(f"--out {out}"):
        return write_perfetto(path, trace, out)


def first_of(traces: list[Path]) -> Path:
    """The first of several, naming the others: each rank, or capture, writes its own."""
    if len(traces) > 1:
        note(f"The figures are of {traces[0]}; there are also {', '.join(map(str, traces[1:]))}.")
    return traces[0]


def note(text: str) -> None:
    print(text, file=sys.stderr)
