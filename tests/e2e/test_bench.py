"""``headrace bench`` as a user runs it, on a tiny model of random weights."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from headrace.cli.main import main

MODEL = LlamaConfig(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    architectures=["LlamaForCausalLM"],
)


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    MODEL.save_pretrained(tmp_path)
    shared = ["--load-format", "dummy", "--skip-tokenizer-init", "--kv-cache-memory-bytes", "64M"]
    return [str(tmp_path), *shared, "--output-json", str(tmp_path / "result.json")]


def result_of(flags: list[str]) -> dict[str, object]:
    return json.loads(Path(flags[-1]).read_text())


def test_latency(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--input-len", "20", "--output-len", "5", "--batch-size", "3", "--num-iters", "2"]
    assert main(["bench", "latency", *flags, *lengths, "--num-iters-warmup", "1"]) == 0
    printed, result = capsys.readouterr().out, result_of(flags)
    assert "Avg latency:" in printed and "99% percentile latency:" in printed and "Decoding step:" in printed
    assert len(result["latencies"]) == 2 and set(result["percentiles"]) == {"10", "25", "50", "75", "90", "99"}
    assert 0 < result["decode_step_limit"] < result["decode_step"]["median"] < result["avg_latency"]


def test_throughput(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--input-len", "20", "--output-len", "10", "--random-range-ratio", "0.5", "--num-prompts", "7"]
    assert main(["bench", "throughput", *flags, *lengths]) == 0
    printed, result = capsys.readouterr().out, result_of(flags)
    assert "Throughput:" in printed and "output tokens/s" in printed
    assert result["num_requests"] == 7
    assert 7 * 10 <= result["total_prompt_tokens"] <= 7 * 30 and 7 * 5 <= result["total_output_tokens"] <= 7 * 15
    assert result["total_num_tokens"] == result["total_prompt_tokens"] + result["total_output_tokens"]
    assert result["output_tokens_per_second"] < result["output_tokens_per_second_limit"]


def test_startup(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    starts = ["--num-iters-cold", "1", "--num-iters-warm", "1", "--num-iters-warmup", "0"]
    assert main(["bench", "startup", *flags, *starts]) == 0
    printed, result = capsys.readouterr().out, result_of(flags)
    assert "Avg cold startup:" in printed and "Avg warm startup:" in printed
    assert result["avg_cold_total_startup_time"] > sum(result["cold_ledger"].values()) > 0


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--input-len", "250", "--output-len", "20"], "more than --max-model-len 256"),
        (["--input-len", "0"], "no number above 0"),
        (["--random-range-ratio", "1.5"], "--random-range-ratio must be at least 0 and below 1."),
    ],
)
def test_what_cannot_be_measured(
    flags: list[str], extra: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "throughput", *flags, *extra]) == 2
    assert sentence in capsys.readouterr().err
