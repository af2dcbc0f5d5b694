"""``headrace COMMAND …``: finds the command's module, runs it, and turns every error of ours into one line."""

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from headrace import __version__
from headrace.cli.parser import FlagParser, Group
from headrace.config import nearest
from headrace.errors import ConfigError, HeadraceError

HEADRACE = Group(
    "headrace",
    "headrace.cli",
    "Headrace serves and runs large language models.",
    {
        "serve": "Serve a model over an HTTP API like OpenAI's.",
        "generate": "Continue prompts, without a server.",
        "run-batch": "Answer a file of requests, without a server.",
        "chat": "Chat with a model, in this process or on a server.",
        "complete": "Let a model continue what you type, in this process or on a server.",
        "bench": "Measure a server or an engine, and how near it is to the device's limits.",
        "profile": "Record where a device's time goes, or read a trace that says so.",
        "plan": "Say what a model needs of a device, and how fast that lets it be at best; no GPU needed.",
        "lab": "Start a server, check and measure it, and leave one page about it.",
        "download": "Download a model.",
        "tune": "Measure how this GPU best computes a model's products, for later starts.",
        "models": "List the architectures that can be served.",
        "collect-env": "Describe this machine and its software, for a bug report.",
    },
)
SIGINT_EXIT = 130  # 128 + SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code. An error we foresaw is a line on stderr, never a traceback."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal can't write, or is no text, ends no chat
    try:
        code = run(tokens)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except HeadraceError as error:
        sentence = str(error).strip()
        print(f"headrace: error: {sentence}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return SIGINT_EXIT
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it would be tried again at the exit
        if error.errno == errno.ENOSPC:  # whereas whoever read our output has gone: nothing more can be said
            print(
                f"headrace: error: {error.filename or 'The output'} can't be written: the disk is full.",
                file=sys.stderr,
            )
        return 1


def run(tokens: list[str], group: Group = HEADRACE) -> int:
    """Run the command of ``group`` that ``tokens`` begin with; a command that is a group of its own takes the rest."""
    if tokens[:1] == ["help"] and len(tokens) > 1:
        tokens = [*tokens[1:], "--help"]
    name = tokens[0] if tokens else "--help"
    if name in ("-h", "--help", "help") or name.startswith("--help="):
        print(overview(group))
        return 0
    if name in ("-v", "-V", "--version"):
        print(__version__)
        return 0
    if name not in group.commands:
        near = nearest(name, group.commands)
        raise ConfigError(f"there is no command {name!r}{near} `{group.prog} --help` lists them.")
    command = importlib.import_module(f"{group.package}.{name.replace('-', '_')}")
    if hasattr(command, "GROUP"):
        return run(tokens[1:], command.GROUP)
    parser = FlagParser(prog=f"{group.prog} {name}", description=group.commands[name])
    command.add_arguments(parser)
    code: int = command.run(parser.parse(tokens[1:]))
    return code


def overview(group: Group) -> str:
    width = max(map(len, group.commands))
    return "\n".join(
        [
            f"usage: {group.prog} COMMAND [ARGUMENT …]",
            "",
            group.description,
            "",
            "commands:",
            *(f"  {name:<{width}}  {help}" for name, help in group.commands.items()),
            "",
            f"`{group.prog} COMMAND --help` lists a command's arguments; `headrace --version` prints the version.",
        ]
    )


def console() -> None:
    """The entry point of the installed ``headrace`` script."""
    sys.exit(main())
