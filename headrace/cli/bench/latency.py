"""``headrace bench latency``."""

import argparse
from typing import Any

from headrace.bench.numbers import natural, positive
from headrace.cli.bench.figures import add_counts, add_engine, check_output, engine, last_lines, report, sampling, used
from headrace.cli.parser import FlagParser, engine_options_from


def add_arguments(parser: FlagParser) -> None:
    add_engine(parser)
    add_counts(
        parser,
        (("--input-len", "--random-input-len"), positive, 32, "Prompt tokens."),
        (("--output-len", "--random-output-len"), positive, 128, "Output tokens."),
        (("--batch-size",), positive, 8, "Requests at once."),
        (("--num-iters-warmup", "--warmup"), natural, 10, "Batches not counted."),
        (("--num-iters",), positive, 30, "Batches measured."),
    )


def run(arguments: argparse.Namespace) -> int:
    check_output(arguments)
    from headrace.bench.offline import Repeats, latency
    from headrace.bench.ranks import joined

    options = {"enable_prefix_caching": False} | engine_options_from(arguments)
    lengths = arguments.input_len, arguments.output_len
    repeats = Repeats(arguments.num_iters_warmup, arguments.num_iters)
    params = sampling(arguments, options)
    with joined() as ranks, engine(options) as llm:
        result = latency(llm, ranks, lengths, arguments.batch_size, repeats, params)
    return report(result, describe(result), arguments.output_json) if ranks.rank == 0 else 0


def describe(result: dict[str, Any]) -> list[str]:
    lines = [f"Avg latency: {result['avg_latency']} seconds"]
    lines += [f"{percent}% percentile latency: {value} seconds" for percent, value in result["percentiles"].items()]
    for name, key in (("Time to first token", "ttft"), ("Decoding step", "decode_step")):
        if times := result.get(key):
            median, least, most, limit = (1000 * times[part] for part in ("median", "min", "max", "limit"))
            reached = f"limit {limit:.2f} ms, {100 * limit / median:.0f}% of it reached"
            lines.append(f"{name}: {median:.2f} ms ({least:.2f} to {most:.2f}); {reached}; {used(times)}")
    lines += [f"Rank {each['rank']}: avg latency {each['avg_latency']} seconds" for each in result.get("ranks", [])]
    return lines + last_lines(result)
