"""Datasets that are records of a service: when requests came and how long they were, but not what they said."""

import argparse
import csv
from itertools import islice
from typing import Annotated

import msgspec

from headrace.bench.datasets import Sample
from headrace.bench.datasets.files import filled, needs_path, read_lines, shuffled
from headrace.bench.datasets.writer import Writer
from headrace.errors import ConfigError

Natural = Annotated[int, msgspec.Meta(ge=0)]
MODEL, TOKENS_IN, TOKENS_OUT = "Model", "Request tokens", "Response tokens"


class Row(msgspec.Struct):
    """A request of a trace; ``hash_ids``: one for each block of its prompt."""

    timestamp: Annotated[float, msgspec.Meta(ge=0)]
    input_length: Annotated[int, msgspec.Meta(ge=1)]
    output_length: Natural
    hash_ids: list[Natural] = []


def timed_trace(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """The first requests of a trace, in its order and at its times, which count from the first.

    A line holds ``timestamp``, ``input_length``, ``output_length`` and perhaps ``hash_ids``, one for each block of the
    prompt: where ids are equal, so are the tokens. Formats: Mooncake's traces (milliseconds, blocks of 512) and Qwen's
    (seconds with fractions, blocks of 16), told apart by their numbers.
    """
    path = needs_path(arguments)
    try:
        rows = msgspec.convert(list(islice(read_lines(path), arguments.num_prompts)), list[Row])
    except msgspec.ValidationError as error:
        needed = "timestamp, input_length and output_length as numbers"
        raise ConfigError(f"every line of {path} needs {needed}, and whole numbers for hash_ids: {error}.") from None
    if not rows:
        raise ConfigError(f"{path} holds no requests.")
    rows.sort(key=lambda row: row.timestamp)
    size = arguments.timed_trace_chunk_hash_size or block_size(rows)
    unit = arguments.timed_trace_sec_multiplier
    if unit is None:
        unit = 0.001 if all(row.timestamp.is_integer() for row in rows) else 1.0
    samples = []
    for row in rows:
        length = row.input_length
        items: list[int] = []
        for name in row.hash_ids:
            items += writer.block(name, size)
        items = items[:length] + writer.items(max(length - len(items), 0))
        at = (row.timestamp - rows[0].timestamp) * unit if arguments.self_timed else None
        samples.append(Sample(writer.prompt(items), length, max(row.output_length, 1), at=at))
    return samples


def burstgpt(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """Lengths of BurstGPT's CSV file: its GPT-4 requests that got an answer."""
    path = needs_path(arguments)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            pairs = [
                (int(row[TOKENS_IN]), int(row[TOKENS_OUT])) for row in csv.DictReader(file) if row[MODEL] == "GPT-4"
            ]
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            f"{path} is not BurstGPT's CSV file, with {MODEL}, {TOKENS_IN} and {TOKENS_OUT} in each row."
        ) from None
    good = [(tokens_in, tokens_out) for tokens_in, tokens_out in pairs if tokens_in > 0 and tokens_out > 0]
    return filled(
        arguments,
        writer,
        (
            Sample(writer.prompt(writer.items(tokens_in)), tokens_in, tokens_out)
            for tokens_in, tokens_out in shuffled(arguments, writer, good)
        ),
    )


def block_size(rows: list[Row]) -> int:
    """The least power of two with which every prompt's ids cover it."""
    needed = max((-(-row.input_length // len(row.hash_ids)) for row in rows if row.hash_ids), default=1)
    return 1 << (needed - 1).bit_length()
