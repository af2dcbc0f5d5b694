"""``headrace bench report``."""

import argparse
from pathlib import Path

from headrace.bench.files import writing
from headrace.cli.parser import FlagParser
from headrace.errors import ConfigError


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="Results, as bench serve, bench sweep or lab leave them.")
    parser.add_argument("--out", metavar="FILE", help="The page. [DIR/report.html]")
    parser.add_argument("--baseline", metavar="NAME", help="The run to compare with. [the first]")


def run(arguments: argparse.Namespace) -> int:
    from headrace.bench.report import report

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder of results.")
    out = Path(arguments.out) if arguments.out else folder / "report.html"
    page = report(folder, arguments.baseline)
    with writing(f"--out {out}"):
        out.write_text(page)
    print(out)
    return 0
