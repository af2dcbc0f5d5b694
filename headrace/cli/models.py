"""``headrace models``: what can be served."""

import argparse

from headrace.cli.parser import FlagParser


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(arguments: argparse.Namespace) -> int:
    from headrace.models.registry import supported

    rows = supported()
    if arguments.json:
        import json

        print(json.dumps([dict(zip(("architecture", "family", "note"), row, strict=True)) for row in rows], indent=2))
        return 0
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for architecture, family, note in rows:
        print(f"{architecture:<{widths[0]}}  {family:<{widths[1]}}  {note}".rstrip())
    return 0
