"""``headrace bench`` as a user runs it, on a tiny model of random weights."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from headrace import LLM, SamplingParams
from headrace.bench import offline, ranks
from headrace.bench.datasets import Sample
from headrace.bench.offline import send
from headrace.bench.startup import one_start
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


def result_of(flags: list[str]) -> dict[str, Any]:
    return json.loads(Path(flags[-1]).read_text())


def test_latency(flags: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lengths = ["--input-len", "20", "--output-len", "5", "--batch-size", "3", "--num-iters", "2", "--n", "2"]
    profile = ["--profiler-config", json.dumps({"profiler": "torch", "torch_profiler_dir": str(tmp_path / "profile")})]
    assert main(["bench", "latency", *flags, *lengths, "--warmup", "1", *profile]) == 0
    printed, result = capsys.readouterr().out, result_of(flags)
    assert "Avg latency:" in printed and "99% percentile latency:" in printed and "Decoding step:" in printed
    assert len(result["latencies"]) == 2 and set(result["percentiles"]) == {"10", "25", "50", "75", "90", "99"}
    step = result["decode_step"]
    assert 0 < step["limit"] < step["min"] <= step["median"] <= step["max"] < result["avg_latency"]
    assert 0 < step["mbu"] < 1 and 0 < result["ttft"]["mfu"] < 1 and "MBU" in printed and "MFU" in printed
    assert result["profile"] and all(Path(path).is_file() for path in result["profile"])


def test_throughput(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--input-len", "20", "--output-len", "10", "--random-range-ratio", "0.5", "--num-prompts", "7"]
    repeats = ["--num-iters", "3", "--warmup", "2", "--n", "2", "--enable-prefix-caching"]
    assert main(["bench", "throughput", *flags, *lengths, *repeats]) == 0
    printed, result = capsys.readouterr().out, result_of(flags)
    assert "Throughput:" in printed and "output tokens/s" in printed and "Of 3 runs: median" in printed
    assert result["num_requests"] == 7
    assert 7 * 10 <= result["total_prompt_tokens"] <= 7 * 30 and 14 * 5 <= result["total_output_tokens"] <= 14 * 15
    assert result["total_num_tokens"] == result["total_prompt_tokens"] + result["total_output_tokens"]
    assert result["output_tokens_per_second"] < result["output_tokens_per_second_limit"]
    assert len(result["elapsed_times"]) == 3 and result["elapsed_time"] == sorted(result["elapsed_times"])[1]


def test_ctrl_c_leaves_the_figures_so_far(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, one_run = [], offline.one_run

    def interrupted(*arguments: Any, **more: Any) -> offline.Run:
        if runs:
            raise KeyboardInterrupt
        runs.append(one_run(*arguments, **more))
        return runs[0]

    monkeypatch.setattr(offline, "one_run", interrupted)
    lengths = ["--input-len", "20", "--output-len", "6", "--num-prompts", "3", "--num-iters", "5"]
    assert main(["bench", "throughput", *flags, *lengths]) == 130
    result = result_of(flags)
    assert result["interrupted"] is True and len(result["elapsed_times"]) == 1 and result["num_requests"] == 3
    assert "Interrupted: these are the figures so far." in capsys.readouterr().out


def test_too_little_memory_is_said(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**options: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr("headrace.frontend.llm.LLM", full)
    assert main(["bench", "latency", *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("headrace: error: Memory ran out (") and "lower --max-num-seqs" in line


def test_torchrun_shares_the_requests(flags: list[str]) -> None:
    lengths = ["--input-len", "20", "--output-len", "6", "--num-prompts", "5", "--num-iters", "2"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "headrace"]
    done = subprocess.run([*launch, "bench", "throughput", *flags, *lengths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = result_of(flags)
    assert [(each["rank"], each["num_requests"]) for each in result["ranks"]] == [(0, 3), (1, 2)]
    assert result["num_requests"] == 5 and result["total_num_tokens"] == 5 * 26
    assert result["elapsed_time"] == max(each["elapsed_time"] for each in result["ranks"])
    assert done.stdout.count("Limit:") == 1 and "Rank 1: Throughput:" in done.stdout


def test_a_batch_has_a_request_for_each_process(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "joined", lambda: nullcontext(ranks.Ranks(rank=1, size=2)))
    assert main(["bench", "latency", *flags, "--batch-size", "1", "--input-len", "20"]) == 2
    assert "--batch-size 1 is less than the 2 processes" in capsys.readouterr().err


def test_a_conversation_goes_on_after_the_replies(flags: list[str]) -> None:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary = {text: token_id for token_id, text in enumerate(sorted(alphabet))}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}|{% endfor %}"
    PreTrainedTokenizerFast(tokenizer_object=fast, chat_template=template).save_pretrained(flags[0])
    llm = LLM(flags[0], load_format="dummy", kv_cache_memory_bytes="64M")
    samples = [
        Sample([{"role": "user", "content": f"turn {turn} of {conversation}"}], 0, 4, conversation=conversation)
        for conversation in range(2)
        for turn in range(2)
    ]
    outputs = send(llm, samples, SamplingParams(ignore_eos=True, allowed_token_ids=list(vocabulary.values())[:64]))
    llm.shutdown()
    assert len(outputs) == 4
    for first, second in zip(outputs[:2], outputs[2:], strict=True):
        assert f"{first.prompt}assistant:{first.outputs[0].text}|user:turn 1" in str(second.prompt)


def test_startup(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    starts = ["--num-iters-cold", "1", "--num-iters-warm", "1", "--num-iters-warmup", "0"]
    assert main(["bench", "startup", *flags, *starts]) == 0
    printed, result = capsys.readouterr().out, result_of(flags)
    assert "Avg cold startup:" in printed and "Avg warm startup:" in printed
    assert result["avg_cold_total_startup_time"] > sum(result["cold_ledger"].values()) > 0
    for metric in ("total_startup", "compilation", "encoder_compilation"):
        assert result[f"avg_warm_{metric}_time"] == result[f"warm_{metric}_times"][0]
        assert set(result[f"warm_{metric}_percentiles"]) == {"10", "25", "50", "75", "90", "99"}


def test_a_start_fills_its_own_caches_and_no_others(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches, usual = tmp_path / "caches", tmp_path / "usual"
    caches.mkdir()
    monkeypatch.setenv("HEADRACE_CACHE_ROOT", str(usual))
    for _ in range(2):
        one_start({"model": flags[0], "load_format": "dummy", "skip_tokenizer_init": True}, caches)
        assert len(list((caches / "configs").iterdir())) == 1
    assert not usual.exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--input-len", "250", "--output-len", "20"], "more than --max-model-len 256"),
        (["--input-len", "0"], "no number above 0"),
        (["--n", "0"], "--n: '0' is no number above 0"),
        (["--temperature", "-1"], "--temperature: '-1' is no number from 0 on"),
        (["--output-json", f"{__file__}/x.json"], "can't be written to: File exists."),
        (["--dataset-name", "custom", "--dataset-path", "/dev/null"], "there is no file /dev/null"),
        (["--random-range-ratio", "1.5"], "--random-range-ratio: must be at least 0 and below 1."),
        (["--dataset-name", "random-rerank"], "random-rerank is for a server"),
        (["--dataset-name", "sonnet"], "needs a tokenizer"),
    ],
)
def test_what_cannot_be_measured(
    flags: list[str], extra: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "throughput", *flags, *extra]) == 2
    assert sentence in capsys.readouterr().err
