"""Text from tokens as they come, with the default model's tokenizer: stop strings, held-back text, split characters."""

from itertools import takewhile
from typing import Any

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from headrace.config import Config
from headrace.frontend.detokenizer import PROMPT_TAIL, Detokenizer, _Stream, _Window
from headrace.frontend.tokenizer import Tokenizer
from headrace.models import source
from headrace.types import SamplingParams

END = 2  # <|im_end|>


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = Config()
    return Tokenizer.load(source.resolve(config.model, config.load), config)


def new(tokenizer: Tokenizer, prompt: str = "", **options: Any) -> Detokenizer:
    return Detokenizer(tokenizer, tokenizer.encode(prompt), SamplingParams(max_tokens=None, **options))


def feed(detokenizer: Detokenizer, token_ids: list[int], ends: bool = False) -> tuple[list[str], int]:
    """The pieces given after each token, and how many tokens were taken before a stop string (or the end)."""
    pieces = []
    for count, token_id in enumerate(token_ids, 1):
        last = count == len(token_ids)
        stopped = detokenizer.add([token_id], ends=ends and last)
        pieces.append(detokenizer.take(finished=stopped or last))
        if stopped:
            return pieces, count
    return pieces, len(token_ids)


TEXTS = [
    "Hello, world! It's 2024.",
    "  two spaces, a tab\t and\n\n\nlines ",
    "emoji 🚀😶\u200d🌫️ ✅, 日本語, עברית, e\u0301 ½",
    "def f(x):\n    return x[0] ** 2\n",
    "👩\u200d👩\u200d👧\u200d👦" * 3,
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", ["", "A prompt", "A prompt that ends in a space ", "🚀"])
def test_pieces_make_up_the_text(tokenizer: Tokenizer, text: str, prompt: str) -> None:
    ids = tokenizer.encode(text)
    detokenizer = new(tokenizer, prompt)
    pieces, _ = feed(detokenizer, ids)
    assert "".join(pieces) == detokenizer.given == detokenizer.text == text
    assert not any("\ufffd" in piece for piece in pieces)
    window = _Window(tokenizer, tokenizer.encode(prompt), True)
    assert "".join(map(window, ids)) == text


def test_a_character_comes_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🌫")
    assert len(ids) > 1
    assert feed(new(tokenizer), ids)[0] == [""] * (len(ids) - 1) + ["🌫"]


def test_bytes_that_become_no_character_do_not_stop_the_text(tokenizer: Tokenizer) -> None:
    """The first byte of a character again and again, as a small model may well say, and then words."""
    broken = tokenizer.encode("🌫")[:1]
    pieces, _ = feed(new(tokenizer), broken * 7 + tokenizer.encode(" and on it goes"))
    assert "".join(pieces).endswith(" on it goes")


@pytest.mark.parametrize("kind", [_Stream, _Window])
@pytest.mark.parametrize("text", ["half of 🌫 and on", "its own \ufffd\ufffd and on", "🌫👩\u200d🌫\ufffd🌫🌫 and on"])
def test_a_prompt_that_ends_within_a_character_goes_on_with_it(tokenizer: Tokenizer, text: str, kind: Any) -> None:
    ids = tokenizer.encode(text)
    for cut in range(1, len(ids)):
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(tokenizer.decode(ids[:cut]), text, strict=False))
        known = "".join(char for char, _ in alike)  # the output makes the last character whole
        decode = kind(tokenizer, ids[:cut][-PROMPT_TAIL:], True)
        assert known + "".join(map(decode, ids[cut:])) == text


@pytest.mark.parametrize(("spaced", "text"), [(True, "a <x> <y> a <x>"), (False, "a <x><y> a <x>")])
def test_special_tokens_in_a_row(spaced: bool, text: str) -> None:
    """Of a tokenizer that puts a space between any two tokens."""
    fast = FastTokenizer(WordLevel({"a": 0, "<x>": 1, "<y>": 2}, unk_token="a"))
    fast.add_special_tokens(["<x>", "<y>"])
    spacing = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast))
    params = SamplingParams(skip_special_tokens=False, spaces_between_special_tokens=spaced)
    detokenizer = Detokenizer(spacing, [], params)
    assert "".join(feed(detokenizer, [0, 1, 2, 0, 1])[0]) == text


STOPS: list[tuple[str, list[str], str, str | None]] = [  # text, stop strings, text that remains, the one that hit
    ("one two three", ["two"], "one ", "two"),
    ("one two three", ["wo th"], "one t", "wo th"),
    ("one two three", ["o"], "", "o"),
    ("one two three", ["three", "two"], "one ", "two"),
    ("one two three", ["xyz", "three "], "one two three", None),
    ("one two three", ["one two three"], "", "one two three"),
    ("go 🚀 now", ["🚀"], "go ", "🚀"),
    ("x\n\ny", ["\n\n"], "x", "\n\n"),
    ("Unbelievable stories", ["eva"], "Unbeli", "eva"),
    ("aaab", ["aab"], "a", "aab"),
]


@pytest.mark.parametrize(("text", "stop", "left", "hit"), STOPS)
@pytest.mark.parametrize("include", [False, True])
def test_stop_strings(
    tokenizer: Tokenizer, text: str, stop: list[str], left: str, hit: str | None, include: bool
) -> None:
    if hit is None:
        left = text
    detokenizer = new(tokenizer, stop=stop, include_stop_str_in_output=include)
    pieces, _ = feed(detokenizer, tokenizer.encode(text))
    assert detokenizer.stopped_by == hit
    assert "".join(pieces) == detokenizer.given == left + (hit if include and hit else "")


def test_every_stop_string_of_a_text_is_found_and_never_shown(tokenizer: Tokenizer) -> None:
    """Wherever it begins and ends: across tokens, within one, at either end."""
    text = "The quick brown fox’s naïve 🚀 jump, over\nthe lazy dogs."
    ids = tokenizer.encode(text)
    for start in range(len(text)):
        for length in (1, 2, 5, 11):
            stop = text[start : start + length]
            place = text.find(stop)
            detokenizer = new(tokenizer, stop=[stop])
            pieces, count = feed(detokenizer, ids)
            assert ("".join(pieces), detokenizer.stopped_by) == (text[:place], stop)
            assert stop in tokenizer.decode(ids[:count])


def test_the_earliest_match_of_many_tokens_at_once(tokenizer: Tokenizer) -> None:
    detokenizer = new(tokenizer, stop=["three", "two"])
    assert detokenizer.add(tokenizer.encode("one two three"), ends=False)
    assert (detokenizer.take(finished=True), detokenizer.stopped_by) == ("one ", "two")


def test_only_as_much_is_held_back_as_a_stop_string_could_need(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three four")
    detokenizer = new(tokenizer, stop=["abcd"])
    for count, token_id in enumerate(ids, 1):
        detokenizer.add([token_id], ends=False)
        detokenizer.take(finished=False)
        assert detokenizer.given == tokenizer.decode(ids[:count])[:-3]
    assert detokenizer.take(finished=True) == "our"


def test_nothing_is_held_back_where_the_stop_string_is_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three")
    pieces, _ = feed(new(tokenizer, stop=["three four"], include_stop_str_in_output=True), ids)
    assert pieces == ["one", " two", " three"]


def test_min_tokens_keep_stop_strings_from_ending(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("no no no no no")
    for min_tokens in range(4):
        detokenizer = new(tokenizer, stop=["no"], min_tokens=min_tokens)
        _, count = feed(detokenizer, ids)
        assert count == min_tokens + 1


def test_special_tokens_and_the_token_that_ends(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("Hi"), END]
    for skip, ends, text in ((True, False, "Hi"), (False, False, "Hi<|im_end|>"), (False, True, "Hi")):
        assert "".join(feed(new(tokenizer, skip_special_tokens=skip), ids, ends)[0]) == text


def test_a_stop_string_in_the_prompt_does_not_count(tokenizer: Tokenizer) -> None:
    detokenizer = new(tokenizer, "Say stop st", stop=["stop"])
    assert not detokenizer.add(tokenizer.encode("op it"), ends=False)
    assert detokenizer.take(finished=True) == "op it"
