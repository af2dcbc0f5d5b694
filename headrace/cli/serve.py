"""``headrace serve``: the HTTP server."""

import argparse

from headrace import logs
from headrace.cli.parser import FlagParser, add_options, config_from


def add_arguments(parser: FlagParser) -> None:
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    logs.configure()  # what is said about the options themselves; the server sets up its own
    config = config_from(arguments)
    from headrace.server.launch import run_server  # loads what `--help` and a wrong flag need not wait for

    return run_server(config)
