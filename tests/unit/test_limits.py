"""The arithmetic of limits, on numbers that can be checked by hand."""

import pytest

from headrace.bench.devices import device_called, device_reported
from headrace.bench.limits import Ceilings, Work
from headrace.bench.load import Outcome
from headrace.bench.measures import measure
from headrace.bench.metrics import cached_share
from headrace.bench.reached import lines_of, reached, served
from headrace.bench.roofline import Setting, speed_of
from headrace.config import Config
from headrace.types import StepCost

CEILINGS = Ceilings(bytes_per_second=1000.0, flops_per_second=10_000.0)
DENSE = StepCost(weight_bytes=1000, layer_flops=900, head_flops=100, kv_bytes=2, attention_flops=4)
EXPERTS = StepCost(1000, 900, 100, 2, 4, expert_bytes=800, expert_share=0.25)


def test_a_step_reads_or_multiplies_its_weights_whichever_takes_longer_and_then_the_cache() -> None:
    assert CEILINGS.decode_step(DENSE, batch=1, context=50).total == pytest.approx(1.0 + 0.1)
    assert CEILINGS.decode_step(DENSE, batch=20, context=50).total == pytest.approx(2.0 + 2.0)
    assert CEILINGS.prefill_step(DENSE, tokens=100).total == pytest.approx((90_000 + 20_000 + 100) / 10_000)


def test_a_step_reads_the_experts_that_its_tokens_are_expected_to_choose() -> None:
    assert CEILINGS.decode_step(EXPERTS, 1, 0).weights == pytest.approx(0.2 + 0.8 * 0.25)
    assert CEILINGS.decode_step(EXPERTS, 2, 0).weights == pytest.approx(0.2 + 0.8 * (1 - 0.75**2))
    assert CEILINGS.decode_step(EXPERTS, 1000, 0).weights == pytest.approx(1.0)


def test_layers_with_a_window_see_no_more_tokens() -> None:
    cost = StepCost(1000, 900, 100, kv_bytes=6, attention_flops=12, windowed=[(30, 4, 8)])
    assert CEILINGS.decode_step(cost, 1, 20).cache == pytest.approx(20 * 6 / 1000)
    assert CEILINGS.decode_step(cost, 1, 50).cache == pytest.approx((50 * 2 + 30 * 4) / 1000)
    seen = 100**2 / 2 * 4 + (30 * 100 - 30**2 / 2) * 8
    assert CEILINGS.prefill_step(cost, 100).products == pytest.approx((90_000 + 100 + seen) / 10_000)


def test_work_at_the_limit_is_full_use_of_what_limits_it() -> None:
    seconds = CEILINGS.decode_step(DENSE, 1, 50).total
    decoding = CEILINGS.used(DENSE, Work(10, (), 10, 50), 10 * seconds)
    assert decoding.mbu == pytest.approx(1.0)
    assert decoding.mfu == pytest.approx(10 * (1000 + 50 * 4) / (10 * seconds) / 10_000)
    prompts = CEILINGS.used(DENSE, Work(1, [100]), CEILINGS.prefill_step(DENSE, 100).total)
    assert prompts.mfu == pytest.approx(1.0)
    assert 0 < prompts.mbu < 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_server_is_judged_by_what_its_requests_needed(ranks: int) -> None:
    options = {"load_format": "dummy", "max_model_len": 4096, "tensor_parallel_size": ranks}
    speed = speed_of(Setting(Config.planned(model="llama-3.1-8b", **options), device_called("h200")))
    ttft, tpot = 4 * speed.prefill(500)["ttft_ms"] / 1000, 2 * speed.decode(3, 1050)["tpot_ms"] / 1000
    outcomes = [
        Outcome(index=i, prompt_len=1000, output_len=101, due=7.0, late=0, start=7.0, end=9.0, ttft=ttft,
                latency=ttft + 100 * tpot, error="" if i < 3 else "HTTP 500")
        for i in range(4)
    ]  # fmt: skip
    counted = "vllm:prefix_cache_hits_total{{}} {}\nvllm:prefix_cache_queries_total{{}} {}\n".format
    assert cached_share(counted(10, 20), counted(60, 120)) == 0.5 and cached_share(None, "x_total 1\n") == 0
    load = served(measure(outcomes, 2 * (ttft + 100 * tpot), [], [], {}), cached=0.5)
    assert (
        load.batch == pytest.approx(3) and load.work.prompts == [500] * 3 and load.work.context == pytest.approx(1050.5)
    )
    result = reached(speed, load)
    assert result["limit_tpot_ms"] == pytest.approx(1000 * tpot / 2, rel=1e-3)
    assert result["limit_ttft_ms"] == pytest.approx(1000 * ttft / 4)
    link = speed.decode(3, 1050)["link_ms"] / speed.decode(3, 1050)["tpot_ms"]
    assert result["decode_mbu"] == pytest.approx(0.5 * (1 - link), rel=1e-3)
    assert 0.2 < result["prefill_mfu"] <= 0.25 and 0 < result["mfu"] < result["mbu"] < 0.26
    for outcome in outcomes:
        outcome.latency = outcome.ttft  # whole answers, in one piece
    whole = reached(speed, served(measure(outcomes, 1.0, [], [], {}), 0))
    assert "limit_tpot_ms" not in whole and whole["mean_prompt"] == 1000 and 0 < whole["mfu"] < 1
    name = "h200" if ranks == 1 else "2 × h200"
    assert f"Limits of {name}" in lines_of(result, load)[0] and "50.0% of it reached" in lines_of(result, load)[1]


def test_drivers_names_of_devices() -> None:
    names = {
        "NVIDIA H200": "h200",
        "NVIDIA GH200 480GB": "gh200",
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA A100-SXM4-40GB": "a100-40gb",
        "NVIDIA A100 80GB PCIe": "a100-80gb",
        "NVIDIA L40S": "l40s",
        "Intel(R) Arc(TM) Pro B60 Graphics": "arc-b60",
    }
    assert {name: device.name if (device := device_reported(name)) else None for name in names} == names
    assert device_reported("NVIDIA H100 NVL") is device_reported("NVIDIA GeForce RTX 4090") is None
