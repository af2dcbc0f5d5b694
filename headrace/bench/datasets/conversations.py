"""The dataset multi-turn: conversations out of a file, or made up with lengths out of a file or of flags.

Both files are those of vLLM's benchmark_serving_multi_turn. A sample holds what its turn adds; the client sends it
after what came before, the model's own replies among them.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from headrace.bench.datasets import Sample
from headrace.bench.datasets.files import needs_tokenizer, shuffled
from headrace.bench.datasets.writer import Writer
from headrace.bench.files import read_json
from headrace.errors import ConfigError
from headrace.frontend.tokenizer import Tokenizer

GENERATED = "generate_conversations"
NUM_TURNS, INPUT_LEN, OUTPUT_LEN = 4, 128, 128
MEDIAN_RATIO = 0.85  # of a lognormal distribution's median to its average, if nothing else is said


def multi_turn(arguments: argparse.Namespace, writer: Writer) -> list[Sample]:
    """``--num-prompts`` turns, or as many as the file has, conversation by conversation."""
    tokenizer, path = needs_tokenizer(arguments, writer), arguments.dataset_path
    if path is None:
        return list(islice(made_up(from_flags(arguments), writer, tokenizer), arguments.num_prompts))
    for name in ("num_turns", "input_len", "prefix_len"):
        if vars(arguments)[f"multi_turn_{name}"] is not None:
            raise ConfigError(
                f"--multi-turn-{name.replace('_', '-')} is for conversations without a file: leave one out."
            )
    content, output_len = read_json(path), arguments.multi_turn_output_len
    try:
        if isinstance(content, dict) and content["filetype"] == GENERATED:
            given = {"prompt_output": {"num_tokens": always(output_len)}} if output_len else {}
            turns = made_up(content | given, writer, tokenizer, path)
        else:
            turns = recorded(list(shuffled(arguments, writer, content)), tokenizer, output_len)
        samples = list(islice(turns, arguments.num_prompts))
    except ConfigError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f'{path} is neither a list of conversations with "messages" nor complete as a file of filetype '
            f'"{GENERATED}" ({type(error).__name__}: {error}).'
        ) from None
    if not samples:
        raise ConfigError(f"{path} holds no message of a user that an assistant answers.")
    return samples


def recorded(conversations: list[dict[str, Any]], tokenizer: Tokenizer, output_len: int | None) -> Iterator[Sample]:
    """The turns of ``{"messages": [{"role", "content"}, …]}``; answers are to be as long as those recorded."""
    for number, conversation in enumerate(conversations):
        added: list[dict[str, Any]] = []
        for message in conversation["messages"]:
            length = len(tokenizer.encode(message["content"], add_special_tokens=False))
            if message["role"] != "assistant":
                added.append({"role": message["role"], "content": message["content"]})
            elif added:
                prompt_len = sum(len(tokenizer.encode(one["content"], add_special_tokens=False)) for one in added)
                yield Sample(added, prompt_len, output_len or max(length, 1), conversation=number)
                added = []


def made_up(spec: dict[str, Any], writer: Writer, tokenizer: Tokenizer, path: Path | None = None) -> Iterator[Sample]:
    """The turns of conversations whose numbers of turns and tokens ``spec`` draws from distributions.

    A first message begins with tokens that all conversations share, then with some of its own.
    """
    inputs, outputs = spec["prompt_input"], spec["prompt_output"]
    names = spec.get("text_files")
    cut, render = passages(names, writer, tokenizer, path) if names else (writer.items, writer.text)

    def tokens(distribution: dict[str, Any] | None) -> int:
        return drawn(distribution, writer) if distribution else 0

    common = cut(tokens(inputs.get("common_prefix_num_tokens")))
    conversations = range(spec["num_conversations"]) if "num_conversations" in spec else count()
    for number in conversations:
        lead = common + cut(tokens(inputs["prefix_num_tokens"]))
        for _ in range(max((tokens(inputs["num_turns"]) + 1) // 2, 1)):  # the file counts answers, too
            text = render(lead + cut(max(tokens(inputs["num_tokens"]), 1)))
            length = len(tokenizer.encode(text, add_special_tokens=False))
            output_len = max(tokens(outputs["num_tokens"]), 1)
            yield Sample([{"role": "user", "content": text}], length, output_len, conversation=number)
            lead = []


def from_flags(arguments: argparse.Namespace) -> dict[str, Any]:
    inputs = {
        "num_turns": always(2 * (arguments.multi_turn_num_turns or NUM_TURNS)),
        "common_prefix_num_tokens": always(arguments.multi_turn_prefix_len or 0),
        "prefix_num_tokens": always(0),
        "num_tokens": always(arguments.multi_turn_input_len or INPUT_LEN),
    }
    return {
        "prompt_input": inputs,
        "prompt_output": {"num_tokens": always(arguments.multi_turn_output_len or OUTPUT_LEN)},
    }


def always(value: int) -> dict[str, Any]:
    return {"distribution": "constant", "value": value}


def passages(
    names: list[str], writer: Writer, tokenizer: Tokenizer, path: Path | None
) -> tuple[Callable[[int], list[int]], Callable[[list[int]], str]]:
    """What takes so many tokens from somewhere in the files ``names``, and what makes them a text."""
    ids: list[int] = []
    for name in names:
        file = next((place for place in (Path(name), (path or Path()).parent / name) if place.is_file()), None)
        if file is None:
            raise ConfigError(f"{name}, one of the text_files of {path}, is not there.")
        ids += tokenizer.encode(file.read_text("utf-8"), add_special_tokens=False)

    def cut(length: int) -> list[int]:
        if length >= len(ids):
            raise ConfigError(f"the text_files of {path} have {len(ids)} tokens, too few for a message of {length}.")
        begin = int(writer.rng.integers(len(ids) - length))
        return ids[begin : begin + length]

    return cut, tokenizer.decode


def drawn(distribution: dict[str, Any], writer: Writer) -> int:
    """A number from one of the distributions that vLLM's file knows."""
    rng, kind = writer.rng, distribution["distribution"]
    if kind == "constant":
        return int(distribution["value"])
    if kind == "uniform":
        return int(rng.integers(distribution["min"], distribution["max"], endpoint=True))
    if kind == "zipf":
        value = float(rng.zipf(distribution["alpha"]))
    elif kind == "poisson":
        value = float(rng.poisson(distribution["alpha"]))
    elif kind == "lognormal":
        if "average" in distribution:  # the median is exp(mean), the average exp(mean + sigma²/2)
            ratio = distribution.get("median_ratio") or MEDIAN_RATIO
            mean, sigma = math.log(distribution["average"] * ratio), math.sqrt(-2 * math.log(ratio))
        else:
            mean, sigma = distribution["mean"], distribution["sigma"]
        value = float(rng.lognormal(mean, sigma))
    else:
        raise ConfigError(f"there is no distribution {kind!r}; there are constant, uniform, lognormal, zipf, poisson.")
    return int(min(value, distribution.get("max") or math.inf))
