"""``headrace bench startup``."""

import argparse
from typing import Any

from headrace.cli.bench.figures import add_output, report
from headrace.cli.parser import ENGINE_GROUPS, FlagParser, add_options, engine_options_from


def add_arguments(parser: FlagParser) -> None:
    add_options(parser, ENGINE_GROUPS)
    add_output(parser)
    parser.add_argument("--num-iters-cold", type=int, default=3, metavar="N", help="Starts with empty caches. [3]")
    parser.add_argument("--num-iters-warmup", type=int, default=1, metavar="N", help="Starts not counted. [1]")
    parser.add_argument("--num-iters-warm", type=int, default=3, metavar="N", help="Starts with warm caches. [3]")


def run(arguments: argparse.Namespace) -> int:
    from headrace.bench.startup import startup

    options = engine_options_from(arguments)
    result = startup(options, arguments.num_iters_cold, arguments.num_iters_warmup, arguments.num_iters_warm)
    return report(result, describe(result), arguments.output_json)


def describe(result: dict[str, Any]) -> list[str]:
    lines = []
    for phase in ("cold", "warm"):
        if times := result.get(f"{phase}_total_startup_times"):
            average = result[f"avg_{phase}_total_startup_time"]
            lines.append(f"Avg {phase} startup: {average:.2f} seconds ({min(times):.2f} to {max(times):.2f})")
            lines += [f"  {stage:24s} {seconds:6.2f} s" for stage, seconds in result[f"{phase}_ledger"].items()]
    return lines
