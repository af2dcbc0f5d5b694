"""``headrace lab``."""

import argparse
from functools import partial
from pathlib import Path

from headrace.bench.files import writing
from headrace.bench.numbers import natural, positive
from headrace.cli.parser import FlagParser
from headrace.errors import ConfigError


def add_arguments(parser: FlagParser) -> None:
    parser.usage = "%(prog)s --out DIR [FLAG …] -- headrace serve …"
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="Starts the server, after --.")
    parser.add_argument("--out", required=True, metavar="DIR", help="A new folder for logs, results and report.html.")
    parser.add_argument("--chats", type=natural, default=5, metavar="N", help="Short chats to time.")
    parser.add_argument("--chat-tokens", type=positive, default=64, metavar="N", help="Longest answer.")
    parser.add_argument("--bench-cmd", metavar="COMMAND", default="headrace bench serve", help="Measures the server.")
    parser.add_argument(
        "--server-ready-timeout", type=positive, default=600, metavar="S", help="Seconds until it must be ready."
    )
    parser.add_argument("--show-stdout", action="store_true", help="Show what server and benchmark print.")


def run(arguments: argparse.Namespace) -> int:
    from headrace.bench.lab import REPORT, Lab, run_lab
    from headrace.command import need_command, words_of

    folder = Path(arguments.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder} {'is not empty' if folder.is_dir() else 'is a file'}: choose a new folder.")
    lab = Lab(
        folder=folder,
        serve=words_of(arguments.command, "the command after --"),
        bench=words_of(arguments.bench_cmd, "--bench-cmd"),
        chats=arguments.chats,
        chat_tokens=arguments.chat_tokens,
        ready_seconds=arguments.server_ready_timeout,
        show=arguments.show_stdout,
    )
    for words in (lab.serve, lab.bench):
        need_command(words)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        failures = run_lab(lab, partial(print, flush=True))
    print(f"Report: {folder / REPORT}")
    return 1 if failures else 0
