"""``headrace bench latency|throughput|startup``: the flags, and the figures as text and JSON."""

import argparse
import json
from pathlib import Path
from typing import Any

from headrace.cli.parser import ENGINE_GROUPS, FlagParser, add_options, engine_options_from
from headrace.errors import ConfigError

KINDS = ("latency", "throughput", "startup")


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument("kind", choices=KINDS, help="What to measure.")
    add_options(parser, ENGINE_GROUPS)
    parser.usage = "%(prog)s latency|throughput|startup [MODEL] [FLAG …]"
    parser.add_argument("--input-len", "--random-input-len", type=positive, metavar="N", help="Prompt tokens.")
    parser.add_argument("--output-len", "--random-output-len", type=positive, metavar="N", help="Output tokens.")
    parser.add_argument(
        "--random-range-ratio", type=float, default=0.0, metavar="X", help="Lengths vary by this share. [0]"
    )
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="Of latency. [8]")
    parser.add_argument("--num-prompts", type=positive, default=1000, metavar="N", help="Of throughput. [1000]")
    parser.add_argument("--num-warmups", type=int, default=0, metavar="N", help="Requests before those measured. [0]")
    parser.add_argument("--num-iters-warmup", type=int, metavar="N", help="Batches [10] or starts [1] not counted.")
    parser.add_argument("--num-iters", type=positive, default=30, metavar="N", help="Batches measured. [30]")
    parser.add_argument("--num-iters-cold", type=int, default=3, metavar="N", help="Starts with empty caches. [3]")
    parser.add_argument("--num-iters-warm", type=int, default=3, metavar="N", help="Starts with warm caches. [3]")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="Of the samples; 0 is greedy. [1]")
    parser.add_argument("--disable-detokenize", action="store_true", help="Make no text of the tokens.")
    parser.add_argument("--output-json", metavar="FILE", help="Write all figures there.")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    options = engine_options_from(arguments)
    if not 0 <= arguments.random_range_ratio < 1:
        raise ConfigError("--random-range-ratio must be at least 0 and below 1.")
    if arguments.kind == "startup":
        from headrace.bench.startup import startup

        warmup = 1 if arguments.num_iters_warmup is None else arguments.num_iters_warmup
        result = startup(options, arguments.num_iters_cold, warmup, arguments.num_iters_warm)
        lines = startup_lines(result)
    else:
        result, lines = offline(arguments, options)
    print(*lines, sep="\n")
    if arguments.output_json:
        try:
            Path(arguments.output_json).write_text(json.dumps(result, indent=4) + "\n")
        except OSError as error:
            raise ConfigError(f"--output-json {arguments.output_json} can't be written: {error.strerror}.") from None
    return 0


def offline(arguments: argparse.Namespace, options: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    from headrace.bench.offline import Lengths, latency, throughput
    from headrace.frontend.llm import LLM

    options = {"enable_prefix_caching": False} | options
    llm = LLM(**options)
    detokenize = not (arguments.disable_detokenize or options.get("skip_tokenizer_init"))
    sampling = {"temperature": arguments.temperature, "detokenize": detokenize}
    if arguments.kind == "latency":
        lengths = Lengths(arguments.input_len or 32, arguments.output_len or 128)
        warmup = 10 if arguments.num_iters_warmup is None else arguments.num_iters_warmup
        result = latency(llm, lengths, arguments.batch_size, warmup, arguments.num_iters, sampling)
        return result, latency_lines(result)
    lengths = Lengths(arguments.input_len or 1024, arguments.output_len or 128, arguments.random_range_ratio)
    seed = options.get("seed", 0)
    result = throughput(llm, lengths, arguments.num_prompts, arguments.num_warmups, seed, sampling)
    return result, throughput_lines(result)


def latency_lines(result: dict[str, Any]) -> list[str]:
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


def throughput_lines(result: dict[str, Any]) -> list[str]:
    limit = result["output_tokens_per_second_limit"]
    return [
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, {result['output_tokens_per_second']:.2f} output tokens/s",
        f"Total num prompt tokens:  {result['total_prompt_tokens']}",
        f"Total num output tokens:  {result['total_output_tokens']}",
        f"Limit: {limit:.0f} output tokens/s, {100 * result['output_tokens_per_second'] / limit:.0f}% of it reached",
        ceilings_line(result),
    ]


def ceilings_line(result: dict[str, Any]) -> str:
    ceilings = result["ceilings"]
    return (
        f"Measured on {result['device']}: reads {ceilings['bytes_per_second'] / 1e9:,.0f} GB/s, multiplies "
        f"{ceilings['flops_per_second'] / 1e12:,.2f} TFLOP/s in {result['dtype']}"
    )


def startup_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for phase in ("cold", "warm"):
        if times := result.get(f"{phase}_total_startup_times"):
            average = result[f"avg_{phase}_total_startup_time"]
            lines.append(f"Avg {phase} startup: {average:.2f} seconds ({min(times):.2f} to {max(times):.2f})")
            lines += [f"  {stage:24s} {seconds:6.2f} s" for stage, seconds in result[f"{phase}_ledger"].items()]
    return lines
