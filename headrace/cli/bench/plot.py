"""``headrace bench plot``."""

import argparse
from pathlib import Path

from headrace.bench.files import writing
from headrace.cli.parser import FlagParser
from headrace.errors import ConfigError


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument(
        "results", nargs="+", metavar="RESULT", help="Files of `bench serve`, ours or vLLM's; or folders."
    )
    parser.add_argument("--out", default="figures", metavar="DIR", help="Where figures and lists go.")


def run(arguments: argparse.Namespace) -> int:
    from headrace.bench.reading import load

    try:
        from headrace.bench.plot import save_figures, save_requests
    except ImportError:
        raise ConfigError("figures need matplotlib: `pip install matplotlib` does it.") from None
    results, folder = load(arguments.results), Path(arguments.out)
    with writing(f"--out {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        files = [*save_figures(results, folder), *save_requests(results, folder)]
    if not any(result.detailed for result in results):
        print("These results have no latencies by request: `--save-detailed` keeps them, and most figures need them.")
    print(*files, sep="\n")
    return 0 if files else 1
