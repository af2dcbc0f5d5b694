"""Texts of random words that have exactly as many tokens as asked for."""

from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.frontend.tokenizer import Tokenizer

TRIED = 8192  # tokens of the vocabulary that may make a word
FEWEST = 64  # words below which a text would be too uniform
ROUNDS = 8  # of counting a text's tokens and mending its end


class Writer:
    """Draws items, words or else token ids, and makes prompts of them.

    A word is a space and letters that are one token next to any other word, so that texts that begin with the same
    items begin with the same tokens. Without a tokenizer, or if it has no such words, items are token ids.
    """

    def __init__(self, tokenizer: "Tokenizer | None", vocab_size: int, seed: int):
        self._seed = seed % 2**64  # NumPy takes no negative one
        self.tokenizer, self.rng = tokenizer, np.random.default_rng(self._seed)
        self._words = one_token_words(tokenizer) if tokenizer else np.array([])
        self.writes = len(self._words) >= FEWEST
        self._kinds = len(self._words) if self.writes else vocab_size

    def items(self, count: int) -> list[int]:
        """``count`` random items."""
        drawn: list[int] = self.rng.integers(0, self._kinds, count).tolist()
        return drawn

    def block(self, name: int, count: int) -> list[int]:
        """``count`` random items that are the same whenever ``name`` is."""
        drawn: list[int] = np.random.default_rng((self._seed, name)).integers(0, self._kinds, count).tolist()
        return drawn

    def count(self, text: str) -> int:
        """The tokens of ``text`` with those that the tokenizer adds; 0 without a tokenizer."""
        return len(self.tokenizer.encode(text)) if self.tokenizer else 0

    def prompt(self, items: list[int]) -> str | list[int]:
        """A prompt of as many tokens as there are items, those counted that the tokenizer adds to a text.

        Too short for any such text, it is token ids.
        """
        if not self.writes:
            return items
        text, ids = self._exact(items, add_special_tokens=True)
        return text if len(ids) == len(items) else ids[: len(items)]

    def text(self, items: list[int], add_special_tokens: bool = False) -> str:
        """A text of as many tokens as there are items. Raises ConfigError if there can't be one."""
        if not self.writes:
            raise ConfigError("this dataset sends texts, so it needs a tokenizer whose vocabulary has whole words.")
        text, ids = self._exact(items, add_special_tokens)
        if len(ids) != len(items):
            raise ConfigError(f"no text of {len(items)} tokens can be made for this tokenizer: ask for more.")
        return text

    def _exact(self, items: list[int], add_special_tokens: bool) -> tuple[str, list[int]]:
        """The text of ``items``, its end mended until it has as many tokens; and its tokens."""
        assert self.tokenizer is not None
        words = self._words[items].tolist()
        for _ in range(ROUNDS):
            text = "".join(words).lstrip()
            ids = self.tokenizer.encode(text, add_special_tokens)
            excess = len(ids) - len(items)
            if not excess:
                break
            words = words[: max(len(words) - excess, 1)] if excess > 0 else words + words[:-excess]
        return text, ids


def one_token_words(tokenizer: "Tokenizer") -> np.ndarray:
    """Words that add one token each to a text of them, among a sample of the vocabulary."""
    ids = np.random.default_rng(0).permutation(tokenizer.vocab_size)[:TRIED].tolist()
    texts = {tokenizer.decode([token_id]).strip() for token_id in ids}
    words = [" " + text for text in sorted(texts) if len(text) > 1 and text.isalpha()]
    lengths = []
    for times in (2, 5):
        encoded = tokenizer.hf([word * times for word in words], add_special_tokens=False)["input_ids"] if words else []
        lengths.append([len(ids) for ids in encoded])
    return np.array([word for word, two, five in zip(words, *lengths, strict=True) if five - two == 3])
