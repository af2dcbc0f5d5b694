"""The tokenizer's vocabulary as llguidance wants it, for the engine's grammars. Knows no requests."""

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headrace.config import Config
from headrace.models import source
from headrace.models.source import ModelFiles

if TYPE_CHECKING:
    from llguidance import LLTokenizer

logger = logging.getLogger(__name__)


def grammar_vocabulary(
    config: Config, files: ModelFiles, vocab_size: int, eos_token_ids: Sequence[int]
) -> "LLTokenizer":
    """Load the tokenizer; a second of work. Raises ``ValueError`` if its tokens' bytes can't be told."""
    from transformers import PreTrainedTokenizerFast

    began = time.monotonic()
    tokenizer = source.load_tokenizer(files, config.model, config.load)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"Structured outputs can't be had with this model's tokenizer, a {type(tokenizer).__name__}.")
    from llguidance.hf import from_tokenizer

    vocabulary = from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=list(eos_token_ids) or None)
    logger.info("The vocabulary for grammars took %.1f seconds", time.monotonic() - began)
    return vocabulary
