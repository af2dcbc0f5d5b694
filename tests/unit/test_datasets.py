"""The benchmarks' datasets: exact lengths, shared prefixes, vLLM's files and filters, and what is refused."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from headrace.bench import datasets
from headrace.bench.datasets import Sample
from headrace.cli.parser import FlagParser
from headrace.errors import ConfigError
from headrace.frontend.tokenizer import Tokenizer

VERSE = Path(datasets.__file__).parent / "verse.txt"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Learned from the verse: byte-level BPE, and SentencePiece's way, which also puts a token in front."""
    lines = VERSE.read_text().splitlines()
    if request.param == "bytes":
        fast = Fast(models.BPE())
        fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        fast.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet))
        return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast))
    fast = Fast(models.Unigram())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    fast.train_from_iterator(
        lines, trainers.UnigramTrainer(vocab_size=500, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    )
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", chat_template=CHAT))


def draw(tokenizer: Tokenizer | None, *flags: str, **others: Any) -> list[Sample]:
    parser = FlagParser(prog="bench")
    datasets.add_arguments(parser)
    arguments = parser.parse(flags)
    vars(arguments).update(others)
    return datasets.draw(arguments, tokenizer, 1000)


def ids_of(sample: Sample, tokenizer: Tokenizer) -> list[int]:
    assert isinstance(sample.prompt, str)
    return tokenizer.encode(sample.prompt)


# -- random -----------------------------------------------------------------------------------------------------------


def test_random_texts_have_exactly_as_many_tokens_as_asked_for(tokenizer: Tokenizer) -> None:
    flags = ["--num-prompts", "30", "--random-input-len", "40", "--random-output-len", "8", "--random-prefix-len", "16"]
    flags += ["--random_range_ratio", '{"input": 0.5, "output": 0.25}']
    samples = draw(tokenizer, *flags)
    texts = [ids_of(sample, tokenizer) for sample in samples]
    assert [len(ids) for ids in texts] == [sample.prompt_len for sample in samples]
    lengths = {len(ids) for ids in texts}
    assert min(lengths) >= 36 and max(lengths) <= 76 and len(lengths) > 5
    assert {sample.output_len for sample in samples} == {6, 7, 8, 9, 10}
    assert len({tuple(ids[:16]) for ids in texts}) == 1 and len({tuple(ids[:20]) for ids in texts}) == 30
    assert samples == draw(tokenizer, *flags)
    assert samples != draw(tokenizer, *flags, "--seed", "-1")


def test_without_a_tokenizer_prompts_are_token_ids() -> None:
    samples = draw(None, "--num-prompts", "5", "--input-len", "7", "--output-len", "3")
    assert all(isinstance(sample.prompt, list) and len(sample.prompt) == 7 for sample in samples)
    assert all(0 <= token < 1000 for sample in samples for token in sample.prompt)  # type: ignore[operator]
    assert {sample.output_len for sample in samples} == {3}


def test_repeated_prefixes_are_used_as_often_each(tokenizer: Tokenizer) -> None:
    lengths = ["--prefix-repetition-prefix-len", "12", "--prefix-repetition-suffix-len", "6"]
    flags = ["--dataset-name", "prefix_repetition", "--prefix-repetition-num-prefixes", "4", "--num-prompts", "20"]
    texts = [ids_of(sample, tokenizer) for sample in draw(tokenizer, *flags, *lengths)]
    assert {len(ids) for ids in texts} == {18}
    assert sorted(Counter(tuple(ids[:12]) for ids in texts).values()) == [5, 5, 5, 5]
    assert len({tuple(ids) for ids in texts}) == 20


def test_rerank_and_embeddings_come_in_batches(tokenizer: Tokenizer) -> None:
    batches = ["--num-prompts", "5", "--random-batch-size", "2", "--random-input-len", "20"]
    samples = draw(tokenizer, "--dataset-name", "random-rerank", *batches)
    assert [len(sample.documents) for sample in samples] == [2, 2, 1] and len({s.prompt for s in samples}) == 1
    # a query of 20/2 - 1 tokens with every document of 20 - 9 - 1, and a separator
    assert [sample.prompt_len for sample in samples] == [40, 40, 20]
    assert len(tokenizer.encode(samples[0].documents[1], add_special_tokens=False)) == 10
    for flags, backend in ((["--dataset-name", "random-embeddings"], None), ([], "openai-embeddings")):
        inputs = [[str(s.prompt), *s.documents] for s in draw(tokenizer, *flags, *batches, backend=backend)]
        assert [len(texts) for texts in inputs] == [2, 2, 1]
        assert all(len(tokenizer.encode(text)) == 20 for texts in inputs for text in texts)
    for flags in (["--dataset-name", "random-rerank"], []):
        with pytest.raises(ConfigError, match="--backend openai can't take these requests"):
            draw(tokenizer, *flags, *batches, backend="openai")


# -- files ------------------------------------------------------------------------------------------------------------


def file(path: Path, content: Any) -> str:
    """JSON, or JSONL for a list in a .jsonl file."""
    lines = content if path.suffix == ".jsonl" else [content]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(path)


def said(prompt: str, answer: str) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]}


def test_sharegpt_keeps_what_vllm_keeps(tmp_path: Path, tokenizer: Tokenizer) -> None:
    word = " river"
    conversations = [said(word * 20, word * 9), said("O", word * 9), said(word * 1500, word * 9)]
    conversations += [said(word * 20, "O"), said(word * 900, word * 1200), {"conversations": [{"value": word * 20}]}]
    flags = ["--dataset-path", file(tmp_path / "chats.json", conversations), "--num-prompts", "3"]
    (only,) = draw(tokenizer, *flags, "--no-oversample")
    assert only.prompt == word * 20 and only.output_len == len(tokenizer.encode(word * 9))
    assert draw(tokenizer, *flags) == [only] * 3
    lengths = {sample.output_len for sample in draw(tokenizer, *flags, "--sharegpt-output-len", "2")}
    assert lengths == {2}


def test_custom_prompts_get_the_chat_template_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = file(tmp_path / "own.jsonl", [{"prompt": "the river", "output_tokens": 5}, {"prompt": "a weir"}])
    flags = ["--dataset-name", "custom", "--dataset-path", path, "--disable-shuffle"]
    two, templated = ["--num-prompts", "2"], "<user>the river" if tokenizer.chat_template else "the river"
    first, second = draw(tokenizer, *flags, *two)
    assert (first.prompt, first.output_len, second.output_len) == (templated, 256, 256)
    assert draw(tokenizer, *flags, *two, "--custom-skip-chat-template")[0].prompt == "the river"
    assert draw(tokenizer, *flags, *two, backend="openai-chat")[0].prompt == "the river"
    (only,) = draw(tokenizer, *flags, "--num-prompts", "1", "--custom-output-len", "-1")
    assert only.output_len == 5
    with pytest.raises(ConfigError, match="output_tokens for --custom-output-len -1"):
        draw(tokenizer, *flags, *two, "--custom-output-len", "-1")


def test_verse_fills_the_prompts(tokenizer: Tokenizer) -> None:
    flags = ["--dataset-name", "sonnet", "--num-prompts", "6", "--sonnet-input-len", "200", "--sonnet-prefix-len", "90"]
    samples = draw(tokenizer, *flags)
    texts = [ids_of(sample, tokenizer) for sample in samples]
    assert [len(ids) for ids in texts] == [sample.prompt_len for sample in samples]
    assert all(190 <= len(ids) <= 200 for ids in texts)
    assert len({tuple(ids[:70]) for ids in texts}) == 1 and len({tuple(ids) for ids in texts}) == 6
    lines = VERSE.read_text().splitlines()
    assert len(lines) > 300 and len(set(lines)) == len(lines)


# -- conversations ----------------------------------------------------------------------------------------------------


def test_recorded_conversations_come_turn_by_turn(tmp_path: Path, tokenizer: Tokenizer) -> None:
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": f"the river {number}"} for number, role in enumerate(roles)]
    path = file(tmp_path / "talks.json", [{"id": "a", "messages": messages}, {"id": "b", "messages": messages[1:3]}])
    samples = draw(tokenizer, "--dataset-name", "multi-turn", "--dataset-path", path, "--disable-shuffle")
    assert [(sample.conversation, sample.prompt) for sample in samples] == [
        (0, messages[:2]),
        (0, messages[3:4]),
        (1, messages[1:2]),
    ]
    assert samples[1].output_len == len(tokenizer.encode("the river 4", add_special_tokens=False))


def test_conversations_are_made_up_from_flags_or_distributions(tmp_path: Path, tokenizer: Tokenizer) -> None:
    flags = ["--dataset-name", "multi-turn", "--num-prompts", "5"]
    own = draw(tokenizer, *flags, "--multi-turn-num-turns", "2", "--input-len", "10", "--prefix-len", "4")
    assert [(sample.conversation, sample.prompt_len) for sample in own] == [(0, 14), (0, 10), (1, 14), (1, 10), (2, 14)]
    (tmp_path / "words.txt").write_text(VERSE.read_text())
    spec = {
        "filetype": "generate_conversations",
        "num_conversations": 40,
        "text_files": ["words.txt"],
        "prompt_input": {
            "num_turns": {"distribution": "uniform", "min": 3, "max": 6},
            "common_prefix_num_tokens": {"distribution": "constant", "value": 20},
            "prefix_num_tokens": {"distribution": "lognormal", "average": 30, "max": 60},
            "num_tokens": {"distribution": "poisson", "alpha": 12},
        },
        "prompt_output": {"num_tokens": {"distribution": "zipf", "alpha": 1.5, "max": 9}},
    }
    path = file(tmp_path / "spec.json", spec)
    made = draw(tokenizer, *flags[:2], "--dataset-path", path)
    assert {s.output_len for s in draw(tokenizer, *flags[:2], "--dataset-path", path, "--output-len", "7")} == {7}
    with pytest.raises(ConfigError, match="--multi-turn-input-len is for conversations without a file"):
        draw(tokenizer, *flags[:2], "--dataset-path", path, "--input-len", "7")
    assert {sample.conversation for sample in made} == set(range(40))
    assert set(Counter(sample.conversation for sample in made).values()) == {2, 3}
    assert {sample.output_len for sample in made} <= set(range(1, 10))
    firsts = [
        sample.prompt for number, sample in enumerate(made) if sample.conversation != made[number - 1].conversation
    ]
    begin = {first[0]["content"][:40] for first in firsts}  # type: ignore[index]
    assert len(begin) == 1  # the common prefix


# -- traces -----------------------------------------------------------------------------------------------------------


def test_a_trace_keeps_its_times_lengths_and_shared_blocks(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"timestamp": 9000, "input_length": 40, "output_length": 3, "hash_ids": [7, 8, 9]},
        {"timestamp": 7500, "input_length": 46, "output_length": 2, "hash_ids": [7, 8, 5]},
        {"timestamp": 9500, "input_length": 50, "output_length": 1, "hash_ids": [7]},
        {"timestamp": 9900, "input_length": 50, "output_length": 1},
    ]
    flags = ["--dataset-name", "timed_trace", "--dataset-path", file(tmp_path / "mooncake.jsonl", rows)]
    blocks = ["--timed-trace-chunk-hash-size", "16"]
    samples = draw(tokenizer, *flags, *blocks, "--num-prompts", "3")
    assert [sample.at for sample in samples] == [0.0, 1.5, 2.0] and [s.output_len for s in samples] == [2, 3, 1]
    first, second, third = (ids_of(sample, tokenizer) for sample in samples)
    assert [len(first), len(second), len(third)] == [46, 40, 50]
    assert first[:32] == second[:32] and first[32:40] != second[32:40]
    assert first[:16] == third[:16] and first[16:32] != third[16:32]
    assert {sample.at for sample in draw(tokenizer, *flags, *blocks, "--no-self-timed")} == {None}
    seconds = [row | {"timestamp": row["timestamp"] / 1000 + 0.25} for row in rows[:2]]  # as Qwen's traces have them
    flags[3] = file(tmp_path / "qwen.jsonl", seconds)
    assert [sample.at for sample in draw(tokenizer, *flags)] == [0.0, 1.5]
    told = [ids_of(sample, tokenizer)[:32] for sample in draw(tokenizer, *flags)]
    assert told == [first[:32]] * 2  # 46 tokens in three blocks: 16 each


def test_burstgpt_takes_lengths_of_answered_gpt4_requests(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    rows = ["5,ChatGPT,472,18,490,API log", "45,GPT-4,107,230,337,API log", "46,GPT-4,50,0,50,API log"]
    path.write_text("\n".join(["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", *rows]) + "\n")
    flags = ["--dataset-name", "burstgpt", "--dataset-path", str(path), "--num-prompts", "2"]
    assert [(sample.prompt_len, sample.output_len) for sample in draw(None, *flags)] == [(107, 230)] * 2


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--dataset-name", "hf"], "hf needs a dataset of a hub"),
        (["--dataset-name", "random-mm"], "random-mm needs images or video"),
        (["--dataset-name", "rnadom"], "there is no dataset 'rnadom'"),
        (["--dataset-path", "nowhere.json"], "there is no file nowhere.json"),
        (["--random-range-ratio", "1.0"], "must be at least 0 and below 1"),
        (["--random-range-ratio", '{"input": 0.1}'], "neither a number nor"),
        (["--dataset-name", "random", "--dataset-path", "BAD"], "random reads no file"),
        (["--dataset-name", "sharegpt"], "needs a tokenizer"),
        (["--dataset-name", "random-rerank"], "needs a tokenizer"),
        (["--dataset-name", "custom"], "give --dataset-path"),
        (["--dataset-name", "timed_trace", "--input-len", "5"], "--input-len does not suit --dataset-name timed_trace"),
        (["--dataset-name", "timed-trace", "--dataset-path", "BAD"], "line 1 of .* is not JSON"),
        (["--dataset-name", "timed_trace", "--dataset-path", "BYTES"], "line 1 of .* is not JSON"),
        (["--dataset-name", "burstgpt", "--dataset-path", "BAD"], "is not BurstGPT's CSV file"),
        (["--dataset-name", "prefix_repetition", "--num-prompts", "3"], "--num-prompts 3 is fewer than"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(tmp_path: Path, flags: list[str], sentence: str) -> None:
    files = {"BAD": b"no dataset\nat all\n", "BYTES": b"\x8a\xff\n"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=sentence):
        draw(None, *(str(tmp_path / flag) if flag in files else flag for flag in flags))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("multi-turn", {"filetype": "generate_conversations", "prompt_input": {}}),
        ("multi-turn", [{"conversations": []}]),
        ("multi-turn", {"a": 1}),
        ("multi-turn", [{"messages": [{"role": "user", "content": "unanswered"}]}]),
        ("sharegpt", {"conversations": []}),
        ("sharegpt", [said("O", "O")]),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, tokenizer: Tokenizer, name: str, content: Any) -> None:
    path = file(tmp_path / "other.json", content)
    with pytest.raises(ConfigError, match=r"other\.json"):
        draw(tokenizer, "--dataset-name", name, "--dataset-path", path)
