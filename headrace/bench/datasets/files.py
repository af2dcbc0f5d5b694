"""Datasets of texts that a file holds: ShareGPT conversations, one's own prompts, the lines of a poem."""

import argparse
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from headrace.bench.datasets import Sample
from headrace.bench.datasets.writer import Writer
from headrace.bench.files import read_json
from headrace.errors import ConfigError
from headrace.frontend.chat import render_chat
from headrace.frontend.tokenizer import Tokenizer

FEWEST, LONGEST_PROMPT, LONGEST = 4, 1024, 2048  # tokens of ShareGPT's prompts and answers, as vLLM selects them
REQUEST = "Which of these lines would you keep?\n"


def sharegpt(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """The first message and answer of each conversation, but for those too short or too long."""
    tokenizer, wanted = needs_tokenizer(arguments, writer), arguments.sharegpt_output_len
    content = read_json(needs_path(arguments))
    if not isinstance(content, list):
        raise ConfigError(f"{arguments.dataset_path} is not a JSON list of conversations, as ShareGPT's files are.")

    def usable() -> Iterator[Sample]:
        for entry in shuffled(arguments, writer, content):
            try:
                prompt, answer = (turn["value"] for turn in entry["conversations"][:2])
            except (TypeError, KeyError, ValueError):  # fewer than two turns, or no conversation
                continue
            prompt_len, output_len = len(tokenizer.encode(prompt)), wanted or len(tokenizer.encode(answer))
            fits = prompt_len <= LONGEST_PROMPT and prompt_len + output_len <= LONGEST
            if fits and prompt_len >= FEWEST and (wanted or output_len >= FEWEST):
                yield Sample(prompt, prompt_len, output_len)

    return filled(arguments, writer, usable())


def custom(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """The prompts of a JSONL file: ``{"prompt": …, "output_tokens": …}`` on each line."""
    path, template, fixed = needs_path(arguments), template_for(arguments, writer), arguments.custom_output_len

    def rows() -> Iterator[Sample]:
        for row in shuffled(arguments, writer, list(read_lines(path))):
            output_len = fixed if fixed > 0 else row.get("output_tokens")
            if not isinstance(row.get("prompt"), str) or not isinstance(output_len, int) or output_len < 1:
                wanted = "a prompt" if fixed > 0 else "a prompt, and output_tokens for --custom-output-len -1"
                raise ConfigError(f"every line of {path} needs {wanted}: {json.dumps(row)[:80]}")
            prompt = row["prompt"]
            if template:
                prompt = render_chat(template, [{"role": "user", "content": prompt}])
            yield Sample(prompt, writer.count(prompt), output_len)

    return filled(arguments, writer, rows())


def sonnet(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """A request and lines of verse, the first of them the same in all prompts: as many as the tokens allow.

    The lines are Headrace's own, or those of ``--dataset-path``.
    """
    tokenizer = needs_tokenizer(arguments, writer)
    input_len, prefix_len = arguments.sonnet_input_len, arguments.sonnet_prefix_len
    if prefix_len >= input_len:
        raise ConfigError(f"--sonnet-prefix-len {prefix_len} must be less than --sonnet-input-len {input_len}.")
    path: Path = arguments.dataset_path or Path(__file__).with_name("verse.txt")
    lines = [line + "\n" for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{path} holds no lines of verse.")
    prefix, next_line = REQUEST, 0
    while next_line < len(lines) and writer.count(prefix + lines[next_line]) <= prefix_len:
        prefix, next_line = prefix + lines[next_line], next_line + 1
    if writer.count(prefix) > prefix_len:
        raise ConfigError(f"--sonnet-prefix-len {prefix_len} is less than the {writer.count(prefix)} of the request.")
    sizes = [len(tokenizer.encode(line, add_special_tokens=False)) for line in lines]
    samples = []
    for _ in range(arguments.num_prompts):
        text, tokens = prefix, writer.count(prefix)
        while tokens < input_len:
            index = int(writer.rng.integers(len(lines)))
            text, tokens = text + lines[index], tokens + sizes[index]
        while (tokens := writer.count(text)) > input_len:
            text = text.rstrip().rpartition(" ")[0]
        samples.append(Sample(text, tokens, arguments.sonnet_output_len))
    return samples


def shuffled(arguments: argparse.Namespace, writer: Writer, entries: list[Any]) -> Iterable[Any]:
    order = range(len(entries)) if arguments.disable_shuffle else writer.rng.permutation(len(entries)).tolist()
    return (entries[index] for index in order)


def filled(arguments: argparse.Namespace, writer: Writer, found: Iterator[Sample]) -> list[Sample]:
    """As many as ``--num-prompts``, some more than once if there are too few."""
    wanted = arguments.num_prompts
    samples = list(islice(found, wanted))
    if not samples:
        raise ConfigError(f"{arguments.dataset_path} holds nothing that --dataset-name {arguments.dataset_name} uses.")
    if arguments.no_oversample:
        return samples
    again = writer.rng.integers(len(samples), size=wanted - len(samples)).tolist()
    return samples + [samples[index] for index in again]


def template_for(arguments: argparse.Namespace, writer: Writer) -> Tokenizer | None:
    """The tokenizer whose chat template is to be put around prompts; a chat API does that itself."""
    chats = "chat" in (vars(arguments).get("backend") or "")
    has = writer.tokenizer is not None and writer.tokenizer.chat_template is not None
    return writer.tokenizer if has and not chats and not arguments.skip_chat_template else None


def needs_tokenizer(arguments: argparse.Namespace, writer: Writer) -> Tokenizer:
    if writer.tokenizer is None:
        raise ConfigError(f"--dataset-name {arguments.dataset_name} counts tokens of texts, so it needs a tokenizer.")
    return writer.tokenizer


def needs_path(arguments: argparse.Namespace) -> Path:
    if arguments.dataset_path is None:
        raise ConfigError(f"--dataset-name {arguments.dataset_name} needs its file: give --dataset-path.")
    path: Path = arguments.dataset_path
    return path


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # of bytes that are no text, too
                raise ConfigError(f"line {number} of {path} is not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise ConfigError(f"line {number} of {path} is not a JSON object.")
            yield row
