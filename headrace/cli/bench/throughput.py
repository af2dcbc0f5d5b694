"""``headrace bench throughput``."""

import argparse
from typing import Any

from headrace.cli.bench.figures import add_engine, ceilings_line, positive, report, sampling
from headrace.cli.parser import FlagParser, engine_options_from
from headrace.errors import ConfigError


def add_arguments(parser: FlagParser) -> None:
    add_engine(parser)
    parser.add_argument(
        "--random-range-ratio", type=float, default=0.0, metavar="X", help="Lengths vary by this share. [0]"
    )
    parser.add_argument("--num-prompts", type=positive, default=1000, metavar="N", help="Requests. [1000]")
    parser.add_argument("--num-warmups", type=int, default=0, metavar="N", help="Requests before those measured. [0]")


def run(arguments: argparse.Namespace) -> int:
    from headrace.bench.offline import Lengths, throughput
    from headrace.frontend.llm import LLM

    if not 0 <= arguments.random_range_ratio < 1:
        raise ConfigError("--random-range-ratio must be at least 0 and below 1.")
    options = {"enable_prefix_caching": False} | engine_options_from(arguments)
    lengths = Lengths(arguments.input_len or 1024, arguments.output_len or 128, arguments.random_range_ratio)
    counts = arguments.num_prompts, arguments.num_warmups, options.get("seed", 0)
    result = throughput(LLM(**options), lengths, *counts, sampling(arguments, options))
    return report(result, describe(result), arguments.output_json)


def describe(result: dict[str, Any]) -> list[str]:
    limit = result["output_tokens_per_second_limit"]
    return [
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, {result['output_tokens_per_second']:.2f} output tokens/s",
        f"Total num prompt tokens:  {result['total_prompt_tokens']}",
        f"Total num output tokens:  {result['total_output_tokens']}",
        f"Limit: {limit:.0f} output tokens/s, {100 * result['output_tokens_per_second'] / limit:.0f}% of it reached",
        ceilings_line(result),
    ]
