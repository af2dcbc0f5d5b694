"""Tokenizers in GGUF files against the same vocabulary in the pipelines that the models' makers published."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.constants import TokenType
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE

from headrace.errors import ConfigError
from headrace.models import packaged
from headrace.models.gguf.facts import end_tokens
from headrace.models.gguf.reader import GgufFile
from headrace.models.gguf.tokenizer import gguf_tokenizer

from .gguf_files import write

TRICKY = [
    "",
    " ",
    "Hello, world!",
    "In 2024, 1234567 ≠ 3.14159; ½ + Ⅷ = ٣٤٥?",
    "I'm sure they'll say we've DON'T 'S 'Re it's",
    "  leading,   inner \t tabs\n\n\n  and \r\n trailing  \n ",
    "def f(x):\n    return x[0]**2  # déjà vu\n",
    "日本語とけい中文 한국어 ไทย العربية עברית नमस्ते e\u0301",
    "🚀😶\u200d🌫️ ✅ a\u00a0b\u2003c ﬁ ǅ",
    "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|> <|im_end|><|endoftext|>x<|im_end",
    "CamelCaseHTTPServer!!!???...----====`''\"\"",
    "\x00\x7f\ufffd",
]
ALPHABET = [*"abcXYZ019 \n\t\r.,'!?-_/()<>$+^~|`é中ا٣½🚀\u0301\u00a0", "'s", "'LL", "  ", "123", "<|im_end|>"]


def texts() -> list[str]:
    draw = random.Random(0)
    return TRICKY + ["".join(draw.choices(ALPHABET, k=draw.randint(1, 60))) for _ in range(300)]


def test_default_model_splits_digits_and_takes_special_tokens_whole() -> None:
    """SmolLM2's tokenizer.json: single digits, then GPT-2's pattern on bytes."""
    file = GgufFile(packaged.default_model())
    tokens, kinds = file["tokenizer.ggml.tokens"], file["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in file["tokenizer.ggml.merges"]]
    published = Tokenizer(BPE({text: i for i, text in enumerate(tokens)}, merges))
    published.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    published.decoder = decoders.ByteLevel()
    published.add_special_tokens([text for text, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL])
    ours = gguf_tokenizer(file)
    for text in texts():
        ids = published.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == text
    assert len(ours.encode("2024")) == 4
    assert (ours.eos_token, ours.pad_token, ours.bos_token, len(ours)) == (
        "<|im_end|>",
        "<|im_end|>",
        "<|im_start|>",
        49_152,
    )
    chat = [{"role": "user", "content": "Hi 42"}]
    prompt = ours.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt.startswith("<|im_start|>system\n")
    assert prompt.endswith("<|im_start|>user\nHi 42<|im_end|>\n<|im_start|>assistant\n")
    ids = ours.encode(prompt)
    assert ids[:2] == [1, 9690]
    assert ids.count(1) == 3
    assert ids.count(2) == 2
    assert ours.decode(ids, skip_special_tokens=True).startswith("system\nYou are")


def words(digits: str) -> pre_tokenizers.PreTokenizer:
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    ).replace("DIGITS", digits)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PUBLISHED: list[tuple[str, pre_tokenizers.PreTokenizer, bool]] = [  # and whether whole pieces skip merging
    ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    (
        "starcoder",
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        False,
    ),
    ("llama-bpe", words(r"\p{N}{1,3}"), True),
    ("qwen2", words(r"\p{N}"), False),
]


def trained(pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A small byte-level vocabulary, learnt from the test texts."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str, **special: Any) -> None:
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(vocabulary) - 3))
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    for name, value in special.items():
        getattr(writer, f"add_{name}")(value)


@pytest.mark.parametrize(("pre", "published", "whole"), PUBLISHED, ids=[row[0] for row in PUBLISHED])
def test_pre_tokenizers(tmp_path: Path, pre: str, published: pre_tokenizers.PreTokenizer, whole: bool) -> None:
    reference = trained(published)
    reference.model.ignore_merges = whole
    path = write(tmp_path / "a.gguf", lambda writer: add_vocabulary(writer, reference, pre, add_bos_token=False))
    ours = gguf_tokenizer(GgufFile(path))
    for text in texts():
        assert ours.encode(text) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("pre", "flags", "expected"),
    [
        ("llama-bpe", {}, [0, "x"]),
        ("llama-bpe", {"add_bos_token": False}, ["x"]),
        ("qwen2", {}, ["x"]),
        ("qwen2", {"add_bos_token": True, "add_eos_token": True}, [0, "x", 2]),
    ],
)
def test_tokens_around_a_text(tmp_path: Path, pre: str, flags: dict[str, bool], expected: list[Any]) -> None:
    reference = trained(words(r"\p{N}"))
    path = write(tmp_path / "a.gguf", lambda writer: add_vocabulary(writer, reference, pre, **flags))
    ours = gguf_tokenizer(GgufFile(path))
    assert ours.encode("x") == [reference.token_to_id(one) if one == "x" else one for one in expected]
    assert ours.encode("x", add_special_tokens=False) == [reference.token_to_id("x")]


# -- SentencePiece --------------------------------------------------------------------------------------------------

PIECES = [
    "▁",
    *"abcdehlnorstu",
    "▁t",
    "he",
    "▁the",
    "at",
    "▁cat",
    "▁c",
    "ca",
    "st",
    "▁a",
    "ll",
    "lo",
    "hello",
    "hel",
    "▁▁",
]
SPECIAL = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
BYTES = {f"<0x{i:02X}>": TokenType.BYTE for i in range(256)}


def sentence_piece(writer: gguf.GGUFWriter, prefix: bool) -> None:
    kinds = SPECIAL | BYTES | dict.fromkeys(PIECES, TokenType.NORMAL) | {"[tool]": TokenType.USER_DEFINED}
    scores = [-float(PIECES.index(text)) if text in PIECES else 0.0 for text in kinds]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(kinds))
    writer.add_token_scores(scores)
    writer.add_token_types(list(kinds.values()))
    writer.add_add_space_prefix(prefix)


def by_score(text: str) -> list[str]:
    """SentencePiece's rule: again and again join the neighbours that make the best-scored piece, leftmost first."""
    symbols = list(text.replace(" ", "▁"))
    while joins := [
        (PIECES.index(a + b), i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in PIECES
    ]:
        _, i = min(joins)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return [one for symbol in symbols for one in ([symbol] if symbol in PIECES else _bytes(symbol))]


def _bytes(symbol: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in symbol.encode()]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(tmp_path: Path, prefix: bool) -> None:
    ours = gguf_tokenizer(GgufFile(write(tmp_path / "a.gguf", lambda writer: sentence_piece(writer, prefix))))
    draw = random.Random(1)
    samples = ["the cat hello", "  two  spaces ", "ünï 🚀\n"]
    samples += ["".join(draw.choices("abcdehlnorstu  é", k=30)) for _ in range(50)]
    for text in samples:
        ids = ours.encode(text)
        assert ids[0] == ours.bos_token_id == 1
        assert ours.convert_ids_to_tokens(ids[1:]) == by_score(f" {text}" if prefix else text)
        assert ours.decode(ids, skip_special_tokens=True) == text
    around_added = ["▁a", "[tool]", "▁", "b", "</s>"] if prefix else ["a", "[tool]", "b", "</s>"]
    assert ours.convert_ids_to_tokens(ours.encode("a[tool]b</s>", add_special_tokens=False)) == around_added
    assert ours.convert_ids_to_tokens(ours.encode("<0x41>", add_special_tokens=False))[-6:] == _bytes("<0x41>")


# -- errors and ends ------------------------------------------------------------------------------------------------


def _without_tokens(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")


def _other_kind(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("t5")
    writer.add_token_list(["a"])


def _other_pre(writer: gguf.GGUFWriter) -> None:
    add_vocabulary(writer, trained(words(r"\p{N}")), "klingon")


def _bad_merge(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a"])
    writer.add_token_merges(["a q"])


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (_without_tokens, "holds no tokenizer; name one with --tokenizer"),
        (_other_kind, "kind 't5'"),
        (_other_pre, "pre-tokenizer 'klingon'"),
        (_bad_merge, "is damaged"),
    ],
)
def test_errors(tmp_path: Path, fill: Callable[[gguf.GGUFWriter], None], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        gguf_tokenizer(GgufFile(write(tmp_path / "a.gguf", fill)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "ids"),
    [
        ({}, []),
        (
            {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.eom_token_id": 1},
            [1, 3],
        ),
        (
            {
                "tokenizer.ggml.eos_token_id": 0,
                "tokenizer.ggml.tokens": ["<eos>", "<|end|>", "<end_of_turn>"],
                "tokenizer.chat_template": "{{ x }}<end_of_turn>",
            },
            [0, 2],
        ),
    ],
)
def test_ends_of_text_and_turn(metadata: dict[str, Any], ids: list[int]) -> None:
    assert end_tokens(metadata) == ids
