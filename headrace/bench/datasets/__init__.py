"""What benchmarks send: ``draw`` makes the requests that the flags of ``add_arguments`` ask for.

Knows tokenizers, files and lengths; knows neither engines nor HTTP.
"""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.bench.datasets.flags import add_arguments, settled

if TYPE_CHECKING:
    from headrace.frontend.tokenizer import Tokenizer

__all__ = ["Sample", "add_arguments", "draw"]


@dataclass(frozen=True)
class Sample:
    """One request to send."""

    prompt: str | list[int] | list[dict[str, Any]]  # a text, its token ids, or a conversation's new chat messages
    prompt_len: int  # tokens, with those the tokenizer puts around a text, and of ``documents``; 0 if none can count
    output_len: int | None  # tokens to ask for; None: as many as the model likes, or none (embeddings, rerank)
    at: float | None = None  # seconds after the start at which to send it
    conversation: int | None = None  # samples of one are sent in turn, after the messages and replies so far
    documents: tuple[str, ...] = ()  # to be ranked for the query ``prompt``; for embeddings, further inputs


def draw(arguments: argparse.Namespace, tokenizer: "Tokenizer | None", vocab_size: int) -> list[Sample]:
    """The requests to send, the same for the same ``--seed``.

    Without a tokenizer prompts are ids below ``vocab_size``, where the dataset allows. Raises ConfigError if a file
    can't be used or a flag doesn't fit.
    """
    from headrace.bench.datasets import conversations, files, synthetic, traces
    from headrace.bench.datasets.writer import Writer

    makers = {
        "random": synthetic.random_prompts,
        "random-embeddings": synthetic.embeddings,
        "random-rerank": synthetic.rerank,
        "prefix_repetition": synthetic.prefix_repetition,
        "sharegpt": files.sharegpt,
        "sonnet": files.sonnet,
        "custom": files.custom,
        "multi-turn": conversations.multi_turn,
        "timed_trace": traces.timed_trace,
        "burstgpt": traces.burstgpt,
    }
    arguments = settled(arguments)
    return makers[arguments.dataset_name](arguments, Writer(tokenizer, vocab_size, arguments.seed))
