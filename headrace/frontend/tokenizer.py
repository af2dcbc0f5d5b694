"""Text to token ids and back, over transformers' tokenizers. Owns nothing but the tokenizer; knows no requests."""

from functools import cached_property
from typing import TYPE_CHECKING

from headrace.config import Config
from headrace.errors import RequestError
from headrace.models import source
from headrace.models.source import ModelFiles

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


class Tokenizer:
    """A thin, thread-safe view of ``hf``, the transformers tokenizer."""

    def __init__(self, hf: "PreTrainedTokenizerBase"):
        self.hf = hf

    @classmethod
    def load(cls, files: ModelFiles, config: Config) -> "Tokenizer":
        return cls(source.load_tokenizer(files, config.model, config.load))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of ``text``, between the special tokens the model expects if they are to be added."""
        check_characters(text)
        ids: list[int] = self.hf(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return ids

    def encode_pair(self, first: str, second: str) -> tuple[list[int], int | None]:
        """The token ids of two texts as the model expects a pair; where the second begins, if that must be marked."""
        check_characters(first + second)
        found = self.hf(first, second, return_token_type_ids=True, verbose=False)
        types: list[int] = found["token_type_ids"]
        return found["input_ids"], types.index(1) if 1 in types else None

    @cached_property
    def num_closing(self) -> int:
        """How many special tokens the model expects after a text."""
        bare, whole = self.encode("a", add_special_tokens=False), self.encode("a")
        starts = (start for start in range(len(whole)) if whole[start : start + len(bare)] == bare)
        return len(whole) - len(bare) - next(starts, len(whole) - len(bare))

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return str(self.hf.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False))

    def token_text(self, token_id: int) -> str:
        """One token as text; a replacement character stands for bytes that are no character by themselves."""
        return self.decode([token_id], skip_special_tokens=False)

    def token_strings(self, ids: list[int]) -> list[str]:
        """The vocabulary's own spelling of each token."""
        return [str(token) for token in self.hf.convert_ids_to_tokens(ids)]

    @cached_property
    def vocab_size(self) -> int:
        return len(self.hf)

    @cached_property
    def longest_token(self) -> int:
        """Characters of the vocabulary's longest entry."""
        return max(map(len, self.hf.get_vocab()), default=0)

    @property
    def chat_template(self) -> str | None:
        template: str | None = self.hf.chat_template
        return template

    def bad_word_ids(self, words: list[str]) -> list[list[int]]:
        """Every spelling of ``words`` as tokens: at the beginning of a text and after a space."""
        found = []
        for word in words:
            bare = word.lstrip()
            for text in (bare, " " + bare):
                ids = self.encode(text, add_special_tokens=False)
                if ids and ids not in found:
                    found.append(ids)
        return found


def check_characters(text: str) -> None:
    """Raise ``RequestError`` for half of a character, which JSON can spell and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("The text has half of a character (a lone surrogate).", "prompt") from None
