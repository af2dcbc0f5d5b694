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

    files = resolve(config.model, config.load)
    print(f"{files.name} is at {files.path}", file=sys.stderr)
    return 0
