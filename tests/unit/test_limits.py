"""The arithmetic of limits, on numbers that can be checked by hand."""

from dataclasses import dataclass

import pytest

from headrace.bench.limits import Ceilings, utilization
from headrace.types import StepCost


@dataclass(frozen=True)
class Model:
    cost: StepCost


CEILINGS = Ceilings(bytes_per_second=1000.0, flops_per_second=10_000.0)
DENSE = Model(StepCost(weight_bytes=1000, layer_flops=900, head_flops=100, kv_bytes=2, attention_flops=4))
EXPERTS = Model(StepCost(1000, 900, 100, 2, 4, expert_bytes=800, expert_share=0.25))


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
    assert CEILINGS.decode_step(Model(cost), 1, 20).cache == pytest.approx(20 * 6 / 1000)
    assert CEILINGS.decode_step(Model(cost), 1, 50).cache == pytest.approx((50 * 2 + 30 * 4) / 1000)
    seen = 100**2 / 2 * 4 + (30 * 100 - 30**2 / 2) * 8
    assert CEILINGS.prefill_step(Model(cost), 100).products == pytest.approx((90_000 + 100 + seen) / 10_000)


def test_work_at_the_limit_is_full_use_of_what_limits_it() -> None:
    seconds = CEILINGS.decode_step(DENSE, 1, 50).total
    decoding = utilization(DENSE, CEILINGS, seconds=10 * seconds, steps=10, output_tokens=10, context=50)
    assert decoding.mbu == pytest.approx(1.0)
    assert decoding.mfu == pytest.approx(10 * (1000 + 50 * 4) / (10 * seconds) / 10_000)
    prompts = utilization(DENSE, CEILINGS, seconds=CEILINGS.prefill_step(DENSE, 100).total, steps=1, prompts=[100])
    assert prompts.mfu == pytest.approx(1.0)
    assert 0 < prompts.mbu < 1
