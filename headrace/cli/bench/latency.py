"""``headrace bench latency``."""

import argparse
from typing import Any

from headrace.cli.bench.figures import add_engine, ceilings_line, positive, report, sampling
from headrace.cli.parser import FlagParser, engine_options_from


def add_arguments(parser: FlagParser) -> None:
    add_engine(parser)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="Requests at once. [8]")
    parser.add_argument("--num-iters-warmup", type=int, default=10, metavar="N", help="Batches not counted. [10]")
    parser.add_argument("--num-iters", type=positive, default=30, metavar="N", help="Batches measured. [30]")


def run(arguments: argparse.Namespace) -> int:
    from headrace.bench.offline import Lengths, latency
    from headrace.frontend.llm import LLM

    options = {"enable_prefix_caching": False} | engine_options_from(arguments)
    lengths = Lengths(arguments.input_len or 32, arguments.output_len or 128)
    counts = arguments.batch_size, arguments.num_iters_warmup, arguments.num_iters
    result = latency(LLM(**options), lengths, *counts, sampling(arguments, options))
    return report(result, describe(result), arguments.output_json)


def describe(result: dict[str, Any]) -> list[str]:
    lines = [f"Avg latency: {result['avg_latency']} seconds"]
    lines += [f"{percent}% percentile latency: {value} seconds" for percent, value in result["percentiles"].items()]
    for name, key in (("Time to first token", "ttft"), ("Decoding step", "decode_step")):
        if result[key]:
            lines.append(f"{name}: {in_ms(result[key])}{share(result[key + '_limit'], result[key]['median'])}")
    return [*lines, ceilings_line(result)]


def in_ms(spread: dict[str, float]) -> str:
    return "{:.2f} ms ({:.2f} to {:.2f})".format(*(1000 * spread[key] for key in ("median", "min", "max")))


def share(limit: float | None, measured: float) -> str:
    return "" if limit is None else f"; limit {1000 * limit:.2f} ms, {100 * limit / measured:.0f}% of it reached"
