"""``headrace plan`` against the engine: what it predicts of the default model is what the engine measures."""

import json

import pytest

from headrace import LLM
from headrace.cli.main import main


def test_the_default_model_takes_what_was_planned(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--max-model-len", "1024", "--cpu-kv-cache-gb", "0.25"]
    assert main(["plan", "--device", "cpu", "--batch-size", "1", "--json", *flags]) == 0
    plan = json.loads(capsys.readouterr().out)
    info = LLM(max_model_len=1024, cpu_kv_cache_gb=0.25).info
    weights = next(entry.num_bytes for entry in info.ledger if entry.stage == "weights")
    assert plan["weight_bytes"] == pytest.approx(weights, rel=0.03)
    assert plan["kv_cache_tokens"] == pytest.approx(info.kv_cache_tokens, rel=0.03)
    assert plan["max_concurrency"] == pytest.approx(info.max_concurrency, rel=0.03)
    assert plan["kv_bytes_per_token"] == info.cost.kv_bytes
    assert plan["decode"][0]["weight_bytes_read"] == info.cost.weight_bytes
    assert (plan["dtype"], plan["architecture"]) == (info.dtype, info.architecture)
