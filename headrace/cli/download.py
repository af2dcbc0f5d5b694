"""``headrace download``: fetch a model now, so that serving it later needs no network."""

import argparse
import sys

from headrace.cli.parser import FlagParser
from headrace.config import OPTIONS, Config
from headrace.errors import ConfigError


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help=OPTIONS["model"].facts.help)
    parser.add_argument("--model", "--model-id", metavar="MODEL", help="The same as MODEL.")
    parser.add_argument("--revision", metavar="TEXT", help=OPTIONS["revision"].facts.help)
    parser.add_argument("--cache-dir", "--download-dir", metavar="DIR", help=OPTIONS["download_dir"].facts.help)
    parser.add_argument("--hf-token", metavar="TEXT", help=OPTIONS["hf_token"].facts.help)


def run(arguments: argparse.Namespace) -> int:
    if arguments.model and arguments.model_argument:
        raise ConfigError(f"two models are named, {arguments.model_argument} and {arguments.model}: leave one out.")
    config = Config.from_kwargs(
        model=arguments.model_argument or arguments.model,
        revision=arguments.revision,
        download_dir=arguments.cache_dir,
        hf_token=arguments.hf_token,
    )
    from headrace.models.source import resolve  # loads what --help need not wait for

    with Bar() as bar:
        files = resolve(config.model, config.load, bar.update)
    print(f"{files.name} is at {files.path}", file=sys.stderr)
    return 0


class Bar:
    """A progress bar on stderr, there only once there is progress, and only on a terminal. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, done: int, total: int) -> None:
        """``done`` of ``total`` bytes are here."""
        if not self._progress.tasks:
            self._progress.add_task("Downloading", total=total)
        self._progress.update(self._progress.tasks[0].id, completed=done, total=total)
