"""``headrace bench throughput``."""

import argparse
from dataclasses import replace
from typing import Any

from headrace.bench import datasets
from headrace.bench.numbers import natural, positive
from headrace.cli.bench.figures import add_counts, add_engine, check_output, engine, last_lines, report, sampling, used
from headrace.cli.parser import FlagParser, engine_options_from
from headrace.errors import ConfigError

WITHOUT_OUTPUTS = ("random-embeddings", "random-rerank")


def add_arguments(parser: FlagParser) -> None:
    add_engine(parser)
    datasets.add_arguments(parser)
    parser.add_argument(
        "--backend", choices=("vllm", "vllm-chat"), default="vllm", help="vllm-chat sends prompts as chats."
    )
    add_counts(
        parser,
        (("--num-warmups", "--warmup"), natural, 0, "Requests before those measured."),
        (("--num-iters",), positive, 1, "Times that all requests are measured."),
    )


def run(arguments: argparse.Namespace) -> int:
    check_output(arguments)
    if arguments.dataset_name in WITHOUT_OUTPUTS:
        raise ConfigError(f"--dataset-name {arguments.dataset_name} is for a server: use headrace bench serve.")
    from headrace.bench.offline import Repeats, throughput
    from headrace.bench.ranks import joined

    options = {"enable_prefix_caching": False} | engine_options_from(arguments)
    arguments.seed = int(options.get("seed", 0))
    repeats = Repeats(arguments.num_warmups, arguments.num_iters)
    params = sampling(arguments, options)
    with joined() as ranks, engine(options) as llm:
        tokenizer = None if llm.config.model.skip_tokenizer_init else llm.tokenizer
        samples = datasets.draw(arguments, tokenizer, llm.info.vocab_size)
        if arguments.backend == "vllm-chat":
            samples = [as_chat(number, sample) for number, sample in enumerate(samples)]
        result = throughput(llm, ranks, samples, repeats, params)
    return report(result, describe(result), arguments.output_json) if ranks.rank == 0 else 0


def as_chat(number: int, sample: datasets.Sample) -> datasets.Sample:
    """The same as a conversation of one message; what is one already stays as it is."""
    if sample.conversation is not None:
        return sample
    return replace(sample, prompt=[{"role": "user", "content": sample.prompt}], conversation=number)


def describe(result: dict[str, Any]) -> list[str]:
    limit = result["output_tokens_per_second_limit"]
    lines = [
        throughput_line(result),
        f"Total num prompt tokens:  {result['total_prompt_tokens']}",
        f"Total num output tokens:  {result['total_output_tokens']}",
        f"Limit: {limit:.0f} output tokens/s, {100 * result['output_tokens_per_second'] / limit:.0f}% of it reached; "
        + used(result),
    ]
    if len(result["elapsed_times"]) > 1:
        median, least, most = result["output_tokens_per_second_spread"].values()
        lines.append(
            f"Of {len(result['elapsed_times'])} runs: median {median:.2f} ({least:.2f} to {most:.2f}) output tokens/s"
        )
    lines += [f"Rank {each['rank']}: {throughput_line(each)}; {used(each)}" for each in result.get("ranks", [])]
    return lines + last_lines(result)


def throughput_line(result: dict[str, Any]) -> str:
    return (
        f"Throughput: {result['requests_per_second']:.2f} requests/s, "
        f"{result['tokens_per_second']:.2f} total tokens/s, {result['output_tokens_per_second']:.2f} output tokens/s"
    )
