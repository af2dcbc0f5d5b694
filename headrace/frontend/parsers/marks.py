"""A format of reasoning as a tokenizer writes it: what the engine and the counting of tokens know it by."""

from dataclasses import dataclass
from functools import cached_property

from msgspec.structs import replace

from headrace.frontend.parsers.choose import Place, place_of
from headrace.frontend.parsers.formats import ReasoningFormat
from headrace.frontend.tokenizer import Tokenizer
from headrace.types import Thinking

TAIL = 1024  # tokens of a prompt that are looked at for whether they open reasoning


@dataclass(frozen=True)
class Marks:
    format: ReasoningFormat
    tokenizer: Tokenizer

    def thinking(self, place: Place, budget: int | None = None) -> Thinking | None:
        """What to look for in an answer, with a budget in tokens (None: no limit); None if it can't reason."""
        return None if place == "over" else replace(self._thinking, inside=place == "inside", budget=budget)

    def place_after(self, prompt: list[int]) -> Place:
        """Where what follows a prompt of token ids begins, of which nobody knows how much is the model's own."""
        text = self.tokenizer.decode(prompt[-TAIL:], skip_special_tokens=False)
        return "inside" if place_of(self.format, text, text) == "inside" else place_of(self.format, text)

    @cached_property
    def _thinking(self) -> Thinking:
        format = self.format
        starts, ends, gates = map(self._ids, (format.starts, format.ends, format.gates))
        closing = self._ids((format.closing,))[0] if format.closing else ends[0]
        return Thinking(starts, ends, gates, closing)

    def _ids(self, texts: tuple[str, ...]) -> list[list[int]]:
        return [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
