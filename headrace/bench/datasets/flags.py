"""The datasets' names and flags, with vLLM's names and defaults; the flags of one dataset begin with its name."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.bench.numbers import above_zero, natural, positive, reader
from headrace.errors import ConfigError

WITHOUT_FILE = ("random", "random-embeddings", "random-rerank", "prefix_repetition")
NAMES = (*WITHOUT_FILE, "sharegpt", "sonnet", "custom", "multi-turn", "timed_trace", "burstgpt")
ELSEWHERE = {  # datasets of vLLM's, and what they need that these benchmarks have not
    "hf": "a dataset of a hub",
    "spec_bench": "a dataset of a hub",
    "speed_bench": "a dataset of a hub",
    "random-mm": "images or video",
    "custom_image": "images",
    "custom_mm": "images",
    "custom_audio": "audio",
}
LENGTHS = ("input_len", "output_len", "prefix_len")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the datasets' flags, and ``--seed`` unless it has one."""
    general = parser.add_argument_group("dataset")
    if "--seed" not in parser._option_string_actions:
        general.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of all that is drawn.")
    names = ", ".join(NAMES)
    general.add_argument("--dataset-name", type=known, metavar="NAME", help=f"{names}. [random; sharegpt with a file]")
    general.add_argument("--dataset-path", type=existing, metavar="FILE", help="The dataset's file.")
    general.add_argument("--num-prompts", type=positive, default=1000, metavar="N", help="Requests.")
    general.add_argument("--input-len", type=positive, metavar="N", help="Prompt tokens of a dataset that draws them.")
    general.add_argument("--output-len", type=positive, metavar="N", help="Output tokens of such a dataset.")
    general.add_argument("--prefix-len", type=natural, metavar="N", help="Common first tokens of such a dataset.")
    for flag, help in (
        ("--disable-shuffle", "Take a file's entries in their order."),
        ("--no-oversample", "Send fewer requests if a file has fewer, none twice."),
        ("--no-reranker", "random-rerank is for a model that embeds queries and documents."),
    ):
        general.add_argument(flag, action="store_true", help=help)
    general.add_argument(
        "--skip-chat-template",
        "--custom-skip-chat-template",
        action="store_true",
        help="Prompts of a custom dataset are sent as they stand.",
    )
    general.add_argument(
        "--self-timed",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Send a timed_trace's requests at its own times. [on]",
    )
    own = parser.add_argument_group("one dataset's own")
    for flag, kind, default, help in OWN:
        own.add_argument(f"--{flag}", type=kind, default=default, metavar="N", help=help)
    own.add_argument(
        "--random-range-ratio",
        type=ratios,
        default=(0.0, 0.0),
        metavar="X",
        help='Lengths vary by up to this share, or {"input": X, "output": X}. [0]',
    )


def settled(arguments: argparse.Namespace) -> argparse.Namespace:
    """The same with a dataset, and the general lengths in place of its own; ConfigError if one does not fit it."""
    values = dict(vars(arguments))
    values["dataset_name"] = name = arguments.dataset_name or ("sharegpt" if arguments.dataset_path else "random")
    if arguments.dataset_path and name in WITHOUT_FILE:
        raise ConfigError(f"--dataset-name {name} reads no file: leave out --dataset-path, or name another dataset.")
    prefix = "random" if name.startswith("random") else name.replace("-", "_")  # of its own flags
    for length in LENGTHS:
        if values[length] is None:
            continue
        own = f"{prefix}_{length}"
        if own not in values:
            raise ConfigError(
                f"--{length.replace('_', '-')} does not suit --dataset-name {name}, which draws no such length."
            )
        values[own] = values[length]
    return argparse.Namespace(**values)


def known(text: str) -> str:
    """The dataset of that name, with dashes or underscores."""
    name = {spelling.replace("_", "-"): spelling for spelling in (*NAMES, *ELSEWHERE)}.get(text.replace("_", "-"), text)
    if name in ELSEWHERE:
        raise argparse.ArgumentTypeError(f"{name} needs {ELSEWHERE[name]}, which these benchmarks don't take")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"there is no dataset {name!r}; there are {', '.join(NAMES)}")
    return name


def existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def ratios(text: str) -> tuple[float, float]:
    """By how much inputs' and outputs' lengths vary: one number for both, or an object that names them."""
    try:
        value = json.loads(text)
        pair = (value["input"], value["output"]) if isinstance(value, dict) else (value, value)
        inputs, outputs = map(float, pair)
    except (ValueError, TypeError, KeyError):
        raise argparse.ArgumentTypeError(f'{text!r} is neither a number nor {{"input": X, "output": X}}') from None
    if not (0 <= inputs < 1 and 0 <= outputs < 1):
        raise argparse.ArgumentTypeError("must be at least 0 and below 1")
    return inputs, outputs


positive_or_filed = reader(int, lambda value: value > 0 or value == -1, "number above 0")
OWN: tuple[tuple[str, Callable[[str], Any], int | None, str], ...] = (
    ("random-input-len", positive, 1024, "Prompt tokens, after the prefix."),
    ("random-output-len", positive, 128, "Output tokens."),
    ("random-prefix-len", natural, 0, "Tokens that all prompts begin with."),
    ("random-batch-size", positive, 1, "Inputs or documents in a request (embeddings, rerank)."),
    ("prefix-repetition-prefix-len", positive, 256, "Tokens of each common beginning."),
    ("prefix-repetition-suffix-len", positive, 256, "Tokens after it, different in each prompt."),
    ("prefix-repetition-num-prefixes", positive, 10, "Different beginnings."),
    ("prefix-repetition-output-len", positive, 128, "Output tokens."),
    ("sharegpt-output-len", positive, None, "Output tokens, instead of the answer's own."),
    ("sonnet-input-len", positive, 550, "Prompt tokens, the prefix among them."),
    ("sonnet-output-len", positive, 150, "Output tokens."),
    ("sonnet-prefix-len", positive, 200, "Tokens that all prompts begin with."),
    ("custom-output-len", positive_or_filed, 256, "Output tokens; -1 takes output_tokens from the file."),
    ("multi-turn-num-turns", positive, None, "A user's messages in a conversation, without a file. [4]"),
    ("multi-turn-input-len", positive, None, "Tokens of a user's message, without a file. [128]"),
    ("multi-turn-output-len", positive, None, "Output tokens of an answer. [the file's; 128 without a file]"),
    ("multi-turn-prefix-len", natural, None, "Tokens that conversations begin with, without a file. [0]"),
    ("timed-trace-chunk-hash-size", positive, None, "Tokens that a hash id stands for; else told from the trace."),
    ("timed-trace-sec-multiplier", above_zero, None, "Seconds in a timestamp's unit; else told from the trace."),
)
