"""Token ids to text as they come, and the stop strings in it. Knows one sequence; does not know the engine."""

from tokenizers.decoders import DecodeStream

from headrace.frontend.tokenizer import Tokenizer
from headrace.types import SamplingParams

PROMPT_TAIL = 6  # prompt tokens the first new token may depend on (leading spaces, merged characters)
REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one sequence, growing token by token; text that may still turn into a stop string is held back."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int], params: SamplingParams):
        self.text = ""
        self.stopped_by: str | None = None
        self._stop, self._min_tokens = params.stop, params.min_tokens
        self._include_stop = params.include_stop_str_in_output
        self._num_tokens = 0
        self._hold = 0 if self._include_stop else max(map(len, params.stop), default=1) - 1
        self._num_given = 0
        spaced = params.skip_special_tokens or params.spaces_between_special_tokens
        added = {} if spaced else tokenizer.hf.added_tokens_decoder
        self._close_set = {token_id: token.content for token_id, token in added.items()}  # no space between two of them
        self._last_token = -1
        kind = _Stream if tokenizer.hf.is_fast else _Window
        self._decode = kind(tokenizer, prompt_token_ids[-PROMPT_TAIL:], params.skip_special_tokens)

    def add(self, token_ids: list[int], *, ends: bool) -> bool:
        """Take new tokens, the last of which (if ``ends``) is a stop token, shown only if stops are; True at a stop
        string.
        """
        for token_id in token_ids[:-1] if ends and not self._include_stop else token_ids:
            self._num_tokens += 1
            before = len(self.text)
            text = self._decode(token_id)
            self.text += self._close_set.get(token_id, text) if self._last_token in self._close_set else text
            self._last_token = token_id
            if self._stop and self._num_tokens > self._min_tokens and self._find_stop(before):
                return True
        return False

    def take(self, *, finished: bool) -> str:
        """The text that is new since the last call and can't be part of a stop string to come."""
        end = len(self.text) if finished else max(self._num_given, len(self.text) - self._hold)
        piece, self._num_given = self.text[self._num_given : end], end
        return piece

    @property
    def given(self) -> str:
        """All text handed out so far."""
        return self.text[: self._num_given]

    def _find_stop(self, before: int) -> bool:
        """Look for the first stop string that ends in what was added after ``before`` characters, and cut there."""
        hits = []
        for string in self._stop:
            place = self.text.find(string, max(0, before - len(string) + 1))
            if place >= 0:
                hits.append((place, string))
        if not hits:
            return False
        place, self.stopped_by = min(hits)
        self.text = self.text[: place + len(self.stopped_by) if self._include_stop else place]
        return True


class _Stream:
    """Decodes with the fast tokenizer's own incremental decoder."""

    def __init__(self, tokenizer: Tokenizer, context: list[int], skip_special_tokens: bool):
        self._tokenizer = tokenizer.hf._tokenizer
        self._skip = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        given = "".join(map(self._step, context))
        # The end of the context, if that is half of a character: of its text the output has what it makes whole.
        self._held = self._tokenizer.decode(context, skip_special_tokens=skip_special_tokens).removeprefix(given)

    def __call__(self, token_id: int) -> str:
        text = self._step(token_id)
        if text and self._held:
            text, self._held = _gained(self._held, text), ""
        return text

    def _step(self, token_id: int) -> str:
        try:
            return self._stream.step(self._tokenizer, token_id) or ""
        except Exception as error:
            if "Invalid prefix" not in str(error):
                raise
            # Bytes that never became a character leave the stream stuck: begin anew with this token.
            self._stream = DecodeStream(skip_special_tokens=self._skip)
            return self._stream.step(self._tokenizer, token_id) or ""


class _Window:
    """Decodes with any tokenizer: the text that the last few tokens gained by one more."""

    def __init__(self, tokenizer: Tokenizer, context: list[int], skip_special_tokens: bool):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._ids, self._num_read = list(context), len(context)

    def __call__(self, token_id: int) -> str:
        self._ids.append(token_id)
        before = self._tokenizer.decode(self._ids[: self._num_read], self._skip)
        text = self._tokenizer.decode(self._ids, self._skip)
        gained = _gained(before, text)
        if not gained or text.endswith(REPLACEMENT):
            return ""
        self._ids = self._ids[self._num_read - PROMPT_TAIL if self._num_read > PROMPT_TAIL else 0 :]
        self._num_read = len(self._ids)
        return gained


def _gained(before: str, text: str) -> str:
    """What ``text`` has beyond ``before``, the end of which may have been half of a character that is whole now."""
    while before.endswith(REPLACEMENT) and not text.startswith(before):
        before = before[:-1]
    return text[len(before) :]
