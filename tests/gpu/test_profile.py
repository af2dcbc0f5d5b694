"""A profile of a captured model on a GPU: its kernels are told apart, and belong to the steps that launched them."""

from pathlib import Path

import pytest

from headrace import LLM, SamplingParams
from headrace.profiling.read import read_trace
from headrace.profiling.summary import summarize
from headrace.profiling.trace import NO_STEP
from tests.models.util import random_model

from .util import NEEDS_GPU

pytestmark = NEEDS_GPU

STEPS = 20


@pytest.mark.parametrize("profiler", ["torch", "cuda"])
def test_kernels_belong_to_steps(profiler: str, tmp_path: Path) -> None:
    random_model("LlamaForCausalLM").save_pretrained(tmp_path)
    settings = {"profiler": profiler, "torch_profiler_dir": str(tmp_path / "traces"), "max_iterations": STEPS}
    llm = LLM(str(tmp_path), skip_tokenizer_init=True, kv_cache_memory_bytes=2**26, profiler_config=settings)
    params = SamplingParams(temperature=0.0, max_tokens=STEPS + 5, ignore_eos=True, detokenize=False)
    llm.generate([[3, 4, 5]], params, use_tqdm=False)
    llm.start_profile()
    llm.generate([[3, 4, 5]], params, use_tqdm=False)
    files = llm.stop_profile()
    llm.shutdown()
    if profiler == "cuda":  # which leaves it to nsys to write anything
        assert files == []
        return
    trace = read_trace(Path(files[0]))
    assert trace.on_device and len(trace.steps) == STEPS
    assert {activity.step for activity in trace.activities} - {NO_STEP} == set(range(STEPS))
    assert sum(activity.step == NO_STEP for activity in trace.activities) < len(trace.activities) / 10
    summary = summarize(trace)
    assert summary.host_gaps is not None and summary.host_gaps.steps == STEPS
    assert {kernel.kind for kernel in summary.kernels} >= {"GEMM", "attention", "norm and activation", "sampling"}
