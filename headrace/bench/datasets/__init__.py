"""What benchmarks send: the datasets, their flags (vLLM's names and defaults), and ``draw``, which makes the requests.

Knows tokenizers, files and lengths; knows neither engines nor HTTP.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.frontend.tokenizer import Tokenizer

NAMES = ("random", "random-embeddings", "random-rerank", "prefix_repetition")
ELSEWHERE = {  # datasets of vLLM's, and what they need that Headrace's benchmarks do without
    "hf": "a data set of a hub",
    "spec_bench": "a data set of a hub",
    "speed_bench": "a data set of a hub",
    "random-mm": "images or video",
    "custom_image": "images",
    "custom_mm": "images",
    "custom_audio": "audio",
}


@dataclass(frozen=True)
class Sample:
    """One request to send."""

    prompt: str | list[int] | list[dict[str, Any]]  # a text, its token ids, or a conversation's new chat messages
    prompt_len: int  # tokens, those included that the model's tokenizer puts around a text; of ``documents`` too
    output_len: int | None  # tokens to ask for; None: as many as the model likes, or none (embeddings, rerank)
    at: float | None = None  # seconds after the start at which to send it
    conversation: int | None = None  # samples of one are sent in turn, after the messages and replies so far
    documents: tuple[str, ...] = ()  # to be ranked for the query ``prompt``; for embeddings, further inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the datasets' flags, and ``--seed`` unless it has one."""
    flags = parser.add_argument_group("dataset")
    if "--seed" not in parser._option_string_actions:
        flags.add_argument("--seed", type=int, default=0, metavar="N", help="Of all that is drawn. [0]")
    flags.add_argument(
        "--dataset-name", type=known, metavar="NAME", help=f"{', '.join(NAMES)}. [sharegpt with a file, else random]"
    )
    flags.add_argument("--dataset-path", type=existing, metavar="FILE", help="The dataset's file.")
    flags.add_argument("--num-prompts", type=positive, default=1000, metavar="N", help="Requests. [1000]")
    flags.add_argument("--input-len", type=positive, metavar="N", help="Prompt tokens, whatever the dataset.")
    flags.add_argument("--output-len", type=positive, metavar="N", help="Output tokens, whatever the dataset.")
    for name, default, help in (
        ("random-input-len", 1024, "Prompt tokens, after the prefix."),
        ("random-output-len", 128, "Output tokens."),
        ("random-prefix-len", 0, "Tokens that all prompts begin with."),
        ("random-batch-size", 1, "Inputs or documents in a request (embeddings, rerank)."),
        ("prefix-repetition-prefix-len", 256, "Tokens of each common beginning."),
        ("prefix-repetition-suffix-len", 256, "Tokens after it, different in each prompt."),
        ("prefix-repetition-num-prefixes", 10, "Different beginnings."),
        ("prefix-repetition-output-len", 128, "Output tokens."),
    ):
        kind = positive if default else natural
        flags.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{help} [{default}]")
    flags.add_argument(
        "--no-reranker", action="store_true", help="random-rerank is for a model that embeds queries and documents."
    )
    flags.add_argument(
        "--random-range-ratio",
        type=ratios,
        default=(0.0, 0.0),
        metavar="X",
        help='Lengths vary by up to this share, or {"input": X, "output": X}. [0]',
    )


def draw(arguments: argparse.Namespace, tokenizer: "Tokenizer | None", vocab_size: int) -> list[Sample]:
    """The requests that the flags of ``add_arguments`` ask for, the same for the same seed.

    Without a tokenizer prompts are ids below ``vocab_size``, where the dataset allows. Raises ConfigError if a file
    can't be used or a flag doesn't fit.
    """
    from headrace.bench.datasets import synthetic
    from headrace.bench.datasets.writer import Writer

    makers = {
        "random": synthetic.random_prompts,
        "random-embeddings": synthetic.embeddings,
        "random-rerank": synthetic.rerank,
        "prefix_repetition": synthetic.prefix_repetition,
    }
    name = arguments.dataset_name or ("sharegpt" if arguments.dataset_path else "random")
    return makers[name](arguments, Writer(tokenizer, vocab_size, arguments.seed))


def known(name: str) -> str:
    if name in ELSEWHERE:
        raise argparse.ArgumentTypeError(f"{name} needs {ELSEWHERE[name]}, which these benchmarks don't take")
    if name not in NAMES:
        raise argparse.ArgumentTypeError(f"there is no dataset {name!r}, but {', '.join(NAMES)}")
    return name


def existing(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return path


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


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
