"""``headrace bench startup``."""

import argparse
import statistics
from typing import Any

from headrace.bench.numbers import natural
from headrace.cli.bench.figures import add_counts, add_output, check_output, report
from headrace.cli.parser import ENGINE_GROUPS, FlagParser, add_options, engine_options_from
from headrace.errors import ConfigError


def add_arguments(parser: FlagParser) -> None:
    add_options(parser, ENGINE_GROUPS)
    add_output(parser)
    add_counts(
        parser,
        (("--num-iters-cold",), natural, 3, "Starts with empty caches."),
        (("--num-iters-warmup", "--warmup"), natural, 1, "Starts that fill the caches and are not counted."),
        (("--num-iters-warm",), natural, 3, "Starts with filled caches."),
    )


def run(arguments: argparse.Namespace) -> int:
    check_output(arguments)
    if not arguments.num_iters_cold and not arguments.num_iters_warm:
        raise ConfigError("--num-iters-cold and --num-iters-warm are both 0: there is nothing to measure.")
    from headrace.bench.startup import startup

    options = engine_options_from(arguments)
    result = startup(options, arguments.num_iters_cold, arguments.num_iters_warmup, arguments.num_iters_warm)
    return report(result, describe(result), arguments.output_json)


def describe(result: dict[str, Any]) -> list[str]:
    lines = []
    for phase in ("cold", "warm"):
        if times := result.get(f"{phase}_total_startup_times"):
            average = result[f"avg_{phase}_total_startup_time"]
            middle, compiling = statistics.median(times), result[f"avg_{phase}_compilation_time"]
            lines.append(
                f"Avg {phase} startup: {average:.2f} seconds (median {middle:.2f}, {min(times):.2f} to "
                f"{max(times):.2f}), kernels {compiling:.2f}; the last one:"
            )
            lines += [f"  {stage:24s} {seconds:6.2f} s" for stage, seconds in result[f"{phase}_ledger"].items()]
    return lines
