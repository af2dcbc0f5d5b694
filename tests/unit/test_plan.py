"""``headrace plan``: memory and limits against published figures and figures worked out by hand; what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.main import main

GIB = 2**30


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command and returns its JSON."""

    def run(command: str) -> dict[str, Any]:
        code = main(["plan", *command.split(), "--json"])
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert code == (0 if result["fits"] else 1)
        return result

    return run


def test_a_lab_on_two_l40s_is_predicted(plan: Any) -> None:
    """What vLLM 0.16 logged of Llama 3 70B AWQ: 18.55 GiB of weights, a cache of 132,128 tokens, 16.13 requests."""
    result = plan("llama-3-70b-awq --device l40s --tp 2")
    assert result["weight_bytes_per_gpu"] == pytest.approx(18.55 * GIB, rel=0.01)
    assert result["kv_cache_tokens"] == pytest.approx(132_128, rel=0.02)
    assert result["max_concurrency"] == pytest.approx(16.13, rel=0.02)
    assert "tensor parallelism" in " ".join(result["notes"]) or not result["notes"]


@pytest.mark.parametrize(
    ("shape", "parameters"),  # as the models' cards have them
    [
        ("smollm2-135m", 134_515_008),
        ("qwen3-0.6b", 596_049_920),
        ("qwen2.5-7b", 7_615_616_512),
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen3-14b", 14_768_307_200),
        ("deepseek-v2-lite", 15_706_484_224),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("llama-3-70b-awq", 70_553_706_496),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_shapes_have_the_parameters_of_their_models(plan: Any, shape: str, parameters: int) -> None:
    result = plan(f"{shape} --device b200 --batch-size 1")
    assert result["parameters"] == parameters
    if shape != "llama-3-70b-awq":
        assert result["weight_bytes"] == 2 * parameters


def test_limits_are_the_data_sheets(plan: Any) -> None:
    result = plan("llama-3.1-8b --device h200 --max-model-len 2048 --batch-size 1 256 --context 1000")
    one, many = result["decode"]
    matrices = 8_030_261_248 - 128256 * 4096  # of the embeddings only a row is read
    kv_bytes = 32 * 2 * 8 * 128 * 2
    assert result["kv_bytes_per_token"] == kv_bytes
    assert one["weights_ms"] == pytest.approx(2e3 * matrices / 4.8e12, rel=1e-3)
    assert one["cache_ms"] == pytest.approx(1e3 * 1000 * kv_bytes / 4.8e12)
    assert one["tpot_ms"] == pytest.approx(one["weights_ms"] + one["cache_ms"])
    assert many["products_ms"] == pytest.approx(256 * 2e3 * matrices / 989.4e12, rel=1e-3)
    assert many["tpot_ms"] == pytest.approx(many["products_ms"] + 256 * one["cache_ms"])
    assert many["output_tokens_per_second"] == pytest.approx(256e3 / many["tpot_ms"])
    assert one["fits"] and many["fits"] and not result["notes"] and one["link_ms"] == 0


def test_memory_adds_up_to_what_may_be_used(plan: Any) -> None:
    result = plan("llama-3.1-8b --device h200 --max-model-len 2048 --batch-size 1")
    memory = result["memory_per_gpu"]
    assert sum(memory.values()) == int(result["device"]["memory_bytes"] * 0.92)
    assert result["kv_cache_tokens"] == pytest.approx(memory["kv_cache_bytes"] / result["kv_bytes_per_token"], rel=1e-3)
    assert result["largest_context"] == 131_072


def test_ranks_and_stages_share_a_model(plan: Any) -> None:
    whole = plan("llama-3.1-70b --device b200 --batch-size 16")
    ranks = plan("llama-3.1-70b --device b200 --batch-size 16 --tp 4")
    stages = plan("llama-3.1-70b --device b200 --batch-size 16 --pp 4")
    assert 4 * ranks["weight_bytes_per_gpu"] == pytest.approx(whole["weight_bytes"], rel=1e-3)
    assert 4 * stages["weight_bytes_per_gpu"] == pytest.approx(
        whole["weight_bytes"], rel=0.05
    )  # one has the embeddings
    assert 4 * ranks["kv_bytes_per_token_per_gpu"] == 4 * stages["kv_bytes_per_token_per_gpu"]
    alone, four, piped = (result["decode"][0] for result in (whole, ranks, stages))
    assert four["all_reduce_bytes"] == 2 * 80 * 16 * 8192 * 2 * 2 * 3 // 4
    assert four["tpot_ms"] == pytest.approx(alone["tpot_ms"] / 4 + four["link_ms"], rel=1e-3)
    assert piped["tpot_ms"] == pytest.approx(alone["tpot_ms"] + piped["link_ms"], rel=1e-3)
    assert piped["output_tokens_per_second"] > 3.5 * alone["output_tokens_per_second"]
    many = plan("llama-3.1-8b --device h200 --tp 16 --batch-size 1")  # more ranks than KV heads: some hold the same
    assert many["kv_bytes_per_token_per_gpu"] == many["kv_bytes_per_token"] / 8


@pytest.mark.parametrize(
    ("flags", "bits"),
    [
        ("awq", 4 + 20 / 128),
        ("gptq", 4 + 20 / 128),
        ("fp8", 8),
        ("int8", 8 + 32 / 4096),
        ("q4_k", 4.5),
        ("q8_0", 8.5),
    ],
)
def test_quantized_weights_take_their_bits_and_their_scales(plan: Any, flags: str, bits: float) -> None:
    result = plan(f"llama-3.1-8b --device h100 --batch-size 1 256 -q {flags}")
    plain = plan("llama-3.1-8b --device h100 --batch-size 1 256")
    others = 2 * (0 if flags.startswith("q") else 2 * 128256 * 4096)
    assert result["weight_bytes"] == pytest.approx((8_030_261_248 - others / 2) * bits / 8 + others, rel=2e-3)
    faster = plain["decode"][1]["products_ms"] / result["decode"][1]["products_ms"]
    assert faster == pytest.approx(1.875 if flags in ("fp8", "int8") else 1.0, rel=0.01)  # all products but the head's


def test_latent_attention_caches_one_vector_a_token_and_layer(plan: Any) -> None:
    result = plan("deepseek-v2-lite --device h200 --tp 2 --batch-size 1 --kv-cache-dtype fp8")
    assert result["kv_bytes_per_token"] == result["kv_bytes_per_token_per_gpu"] == 27 * (512 + 64)
    assert any("DeepseekV2ForCausalLM" in note for note in result["notes"])


def test_a_step_of_few_tokens_reads_few_experts(plan: Any) -> None:
    steps = plan("qwen3-30b-a3b --device h200 --batch-size 1 8 256")["decode"]
    few, some, all_of_them = (step["weight_bytes_read"] for step in steps)
    assert few < 7e9 < some < 30e9 < 60e9 < all_of_them < 61e9


def test_another_device_can_be_described(plan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = plan("qwen3-0.6b --device l40s --batch-size 4")
    (tmp_path / "card.json").write_text(json.dumps(known["device"]))
    assert plan(f"qwen3-0.6b --device-spec {tmp_path / 'card.json'} --batch-size 4") == known
    (tmp_path / "card.yaml").write_text("name: x\nmemory_bytes: 16e9\nbytes_per_second: 1e12\nbf16_flops: 1e14\n")
    result = plan(f"qwen3-0.6b --device-spec {tmp_path / 'card.yaml'} --batch-size 4")
    assert result["device"]["memory_bytes"] == 16e9 and result["fits"]
    (tmp_path / "card.yaml").write_text("name: x\nmemory: 16e9\n")
    assert main(["plan", "qwen3-0.6b", "--device-spec", str(tmp_path / "card.yaml")]) == 2
    assert re.search("describes no device .*`memory`.* may have the keys name, memory_bytes", capsys.readouterr().err)
    (tmp_path / "card.yaml").write_text("name: x\nmemory_bytes: 16e9\nbytes_per_second: 0\nbf16_flops: 1e14\n")
    assert main(["plan", "qwen3-0.6b", "--device-spec", str(tmp_path / "card.yaml")]) == 2
    assert re.search("describes no device .*bytes_per_second", capsys.readouterr().err)


def test_what_does_not_fit_is_said(plan: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-3.1-70b", "--device", "h100"]) == 1
    printed = capsys.readouterr().out
    assert "It doesn't fit: use more devices" in printed
    assert "GiB a device are missing" in printed and "* more than the KV cache holds" in printed
    result = plan("llama-3.1-8b --device arc-b60")
    assert not result["fits"] and 1000 < result["largest_context"] < 131_072
    fitting = plan("llama-3.1-8b --device arc-b60 --max-model-len auto")
    assert fitting["max_model_len"] == fitting["largest_context"] >= result["largest_context"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("llama-3.1-8b", "a plan needs a device: --device, such as h200"),
        (
            "llama-3.1-8b --device h20",
            r"--device h20 is not known; did you mean h200\? Known are l40s, .*--device-spec",
        ),
        ("llama-3.1-8b --device h200 -q awk", r"quantization awk is not known; did you mean awq\? Known are none"),
        ("llama-3.1-8b --device h200 -q gguf", "needs a GGUF file"),
        ("llama-3.1-8b --device h200 --kv-cache-dtype fp4", "--kv-cache-dtype fp4 is not known"),
        ("llama-3.1-8b --device h200 --tp 3", "8 KV heads can't be cut into --tensor-parallel-size 3 equal parts"),
        ("llama-3.1-8b --device h200 --pp 33", "32 layers can't be cut into --pipeline-parallel-size 33 stages"),
        ("./nowhere --device h200", "There is no file or directory ./nowhere"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    assert main(["plan", *command.split()]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
