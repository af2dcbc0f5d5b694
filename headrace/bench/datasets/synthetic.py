"""Datasets that need no file: prompts of random words or tokens, of lengths that are drawn."""

import argparse
import math

from headrace.bench.datasets import Sample
from headrace.bench.datasets.writer import Writer
from headrace.errors import ConfigError

RANK, EMBED = ("vllm-rerank",), ("openai-embeddings", "infinity-embeddings", "vllm-pooling")  # backends


def random_prompts(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """Prompts with a common prefix or none, and outputs; lengths vary evenly around those asked for."""
    if arguments.random_batch_size > 1:
        return embeddings(arguments, writer)
    outputs = lengths(writer, arguments.random_output_len, arguments.random_range_ratio[1], arguments.num_prompts)
    prompts = random_items(arguments, writer, arguments.num_prompts)
    return [
        Sample(writer.prompt(items), len(items), output_len) for items, output_len in zip(prompts, outputs, strict=True)
    ]


def embeddings(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """``--num-prompts`` texts to embed, ``--random-batch-size`` of them in a request."""
    needs_backend(arguments, EMBED)
    samples = []
    for group in groups(random_items(arguments, writer, arguments.num_prompts), arguments.random_batch_size):
        first, *others = (writer.text(items, add_special_tokens=True) for items in group)
        samples.append(Sample(first, sum(map(len, group)), None, documents=tuple(others)))
    return samples


def rerank(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """One query of half the input's length, and ``--num-prompts`` documents, some in each request.

    With ``--no-reranker`` (a model that embeds both) the query has the full length and is one of the inputs.
    """
    joined = not arguments.no_reranker
    needs_backend(arguments, RANK if joined else RANK + EMBED)
    input_len, batch, count = arguments.random_input_len, arguments.random_batch_size, arguments.num_prompts
    if not joined:
        batch, count = batch - 1, count - 1
        if batch < 1 or count < 1:
            raise ConfigError("--no-reranker needs --random-batch-size and --num-prompts of 2 at least.")
    separators = int(joined)  # between query and document, in a model that reads them together
    query_len = input_len // 2 - separators if joined else input_len
    document_len = input_len - query_len - separators if joined else input_len
    if query_len < 1:
        raise ConfigError("random-rerank needs inputs of 4 tokens at least: raise --random-input-len.")
    ratio = arguments.random_range_ratio[0]
    (query_len,) = lengths(writer, query_len, ratio, 1)
    query = writer.text(writer.items(query_len))
    documents = [writer.items(length) for length in lengths(writer, document_len, ratio, count)]
    samples = []
    for group in groups(documents, batch):
        queries = (query_len + separators) * len(group) if joined else query_len
        texts = tuple(writer.text(items) for items in group)
        samples.append(Sample(query, queries + sum(map(len, group)), None, documents=texts))
    return samples


def prefix_repetition(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """Prompts that share a few beginnings, as often each, in random order."""
    count = arguments.num_prompts
    prefixes = [
        writer.items(arguments.prefix_repetition_prefix_len) for _ in range(arguments.prefix_repetition_num_prefixes)
    ]
    if count < len(prefixes):
        raise ConfigError(
            f"--num-prompts {count} is fewer than --prefix-repetition-num-prefixes {len(prefixes)}: each is to be used."
        )
    samples = []
    for index in writer.rng.permutation(count).tolist():
        items = prefixes[index % len(prefixes)] + writer.items(arguments.prefix_repetition_suffix_len)
        samples.append(Sample(writer.prompt(items), len(items), arguments.prefix_repetition_output_len))
    return samples


def random_items(arguments: argparse.Namespace, writer: Writer, count: int) -> list[list[int]]:
    """Items of ``count`` prompts that begin with the prefix that all prompts of this seed share."""
    prefix = writer.block(0, arguments.random_prefix_len)
    drawn = lengths(writer, arguments.random_input_len, arguments.random_range_ratio[0], count)
    return [prefix + writer.items(length) for length in drawn]


def needs_backend(arguments: argparse.Namespace, names: tuple[str, ...]) -> None:
    """Raise ConfigError if the command sends to another API than one of those; not every command has a choice."""
    backend = vars(arguments).get("backend")
    if backend and backend not in names:
        raise ConfigError(
            f"--backend {backend} can't take these requests, of inputs without outputs: use {' or '.join(names)}."
        )


def groups(items: list[list[int]], size: int) -> list[list[list[int]]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


def lengths(writer: Writer, around: int, ratio: float, count: int) -> list[int]:
    """``count`` numbers of tokens, ``around`` give or take a share."""
    low, high = max(math.floor(around * (1 - ratio)), 1), math.ceil(around * (1 + ratio))
    drawn: list[int] = writer.rng.integers(low, high, count, endpoint=True).tolist()
    return drawn
