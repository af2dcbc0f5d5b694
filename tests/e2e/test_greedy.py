"""Greedy text of the default model is transformers', token by token, however the work is cut.

Transformers reads each whole output once (teacher forcing): every token must be its argmax there. Floating-point sums
in another order may turn a near tie, after which the texts rightly differ; those are counted, and must stay few.
"""

from typing import Any

import pytest
import torch

from headrace import LLM, SamplingParams
from headrace.types import RequestOutput

from .reference import DEVICE, NEAR_TIE, Reference

TOPICS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "1, 1, 2, 3, 5, 8,",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "Ingredients: flour, butter, sugar.\nMethod:",
    "日本語で自己紹介をすると、",
    "SELECT name, COUNT(*) FROM",
]
OPTIONS: dict[str, Any] = {"max_model_len": 512, "dtype": "float32", "kv_cache_memory_bytes": 2**29}
PROMPTS = [f"{'' if place < 8 else f'{place}. '}{TOPICS[place % 8]}{' and' * (place // 8)}" for place in range(62)]
PROMPTS += ["The quick brown fox jumps over the lazy dog. " * 12, "a"]


def near_ties(reference: Reference, output: RequestOutput) -> int:
    """0 if all tokens are the argmax, 1 if a near tie turned; any other difference is an assertion's failure."""
    gaps = reference.gaps(output.prompt_token_ids, list(output.outputs[0].token_ids)).tolist()
    assert max(gaps) < NEAR_TIE, (output.prompt, output.outputs[0].text, gaps)
    return int(any(gaps))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def greedy(prompts: list[str], max_tokens: int, **options: Any) -> list[RequestOutput]:
    llm = LLM(**(OPTIONS | options))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm._engine.scheduler.check_integrity()
    assert llm._engine.scheduler.kv.pool.usage == 0.0
    llm.shutdown()
    return outputs


def check_ends(outputs: list[RequestOutput], max_tokens: int) -> None:
    for output in outputs:
        [completion] = output.outputs
        ended = len(completion.token_ids) < max_tokens
        assert completion.finish_reason == ("stop" if ended or completion.token_ids[-1] == 2 else "length")
        assert (2 in completion.token_ids) == (completion.finish_reason == "stop")


def test_64_prompts_of_64_tokens(reference: Reference) -> None:
    outputs = greedy(PROMPTS, 64)
    check_ends(outputs, 64)
    assert [output.prompt for output in outputs] == PROMPTS
    assert sum(near_ties(reference, output) for output in outputs) <= 2


VARIANTS: dict[str, dict[str, Any]] = {
    "chunks of 16": {"max_num_batched_tokens": 16, "max_num_seqs": 16},
    "no prefix caching": {"enable_prefix_caching": False, "max_num_batched_tokens": 100, "max_num_seqs": 8},
    "no chunks": {"enable_chunked_prefill": False},
    "blocks of 1": {"block_size": 1},
    "blocks of 64": {"block_size": 64},
}
FEW = [*PROMPTS[:14], *PROMPTS[-2:]]
ONE_BY_ONE = [PROMPTS[0], PROMPTS[4], PROMPTS[6], *PROMPTS[-2:]]  # each on its own takes long


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_same_however_the_work_is_cut(reference: Reference, options: dict[str, Any]) -> None:
    outputs = greedy(FEW, 24, **options)
    check_ends(outputs, 24)
    assert sum(near_ties(reference, output) for output in outputs) <= 1


def test_the_same_one_at_a_time(reference: Reference) -> None:
    outputs = greedy(ONE_BY_ONE, 24, max_num_seqs=1)
    check_ends(outputs, 24)
    assert sum(near_ties(reference, output) for output in outputs) <= 1


def test_the_same_under_preemption(reference: Reference) -> None:
    """The cache holds one request of the longest length; sixteen that share nothing fight for it."""
    outputs = greedy(FEW, 32, num_gpu_blocks_override=32, max_num_seqs=16, enable_prefix_caching=False)
    assert sum(output.metrics.num_preemptions for output in outputs if output.metrics) > 0
    check_ends(outputs, 32)
    assert sum(near_ties(reference, output) for output in outputs) <= 1


def test_cached_prefixes_change_nothing(reference: Reference) -> None:
    """Asked again, prompts are found in the cache but for their ends, and get the same text."""
    llm = LLM(**OPTIONS)
    params = SamplingParams(temperature=0.0, max_tokens=16)
    long = [PROMPTS[-2], PROMPTS[-2] + "It was", PROMPTS[-2][:200]]
    first, again = (llm.generate(long, params, use_tqdm=False) for _ in range(2))
    for output in again:
        assert output.num_cached_tokens == (len(output.prompt_token_ids) - 1) // 16 * 16
    assert sum(near_ties(reference, output) for output in [*first, *again]) <= 1
    llm.reset_prefix_cache()
    assert llm.generate(long[0], params, use_tqdm=False)[0].num_cached_tokens == 0


@pytest.mark.skipif(DEVICE.type != "cpu", reason="quantized weights are expanded there")
def test_weights_that_stay_quantized_say_the_same(reference: Reference) -> None:
    """What ``--dtype auto`` is on a CPU: bfloat16 products with the file's own 4- and 8-bit weights.

    Every token is nearly float32's choice: 97 of 100 are, and the others miss its logit by bfloat16's rounding.
    """
    [paris] = greedy(["The capital of France is"], 8, dtype="auto")
    assert paris.outputs[0].text.startswith(" Paris")
    outputs = greedy(FEW, 24, dtype="auto", max_num_seqs=8)
    gaps = [reference.gaps(output.prompt_token_ids, list(output.outputs[0].token_ids)) for output in outputs]
    assert torch.cat(gaps).max() < 1.0
    assert (torch.cat(gaps) > 0).float().mean() < 0.1
