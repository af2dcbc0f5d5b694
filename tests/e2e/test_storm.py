"""Many requests of all kinds, in an engine that is short of everything, say what each says alone in a roomy one.

Here the real runner and sampler go through what test_scheduler.py puts the scheduler through with a fake one:
preemption, shared prefixes, prompts in pieces, steps in flight.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace import LLM, SamplingParams
from headrace.engine.kv_cache import blocks_for
from headrace.types import CompletionOutput, PositionLogprobs
from tests.models.util import random_model

LENGTH = 96
SIZES = {"vocab_size": 128, "max_position_embeddings": LENGTH, "num_hidden_layers": 2}
HYBRID = {"sliding_window": 9, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
MODELS: dict[str, tuple[dict[str, Any], list[int | None]]] = {  # beside SIZES, and the windows of its KV groups
    "LlamaForCausalLM": ({}, [None]),
    "MistralForCausalLM": ({"sliding_window": 12}, [12]),
    "Gemma3ForCausalLM": (HYBRID, [9, None]),
    "Qwen3MoeForCausalLM": (EXPERTS, [None]),
}
SHORTAGES: list[dict[str, Any]] = [
    {"block_size": 4, "max_num_batched_tokens": 24, "max_num_seqs": 6},
    {"block_size": 1, "max_num_batched_tokens": 200, "max_num_seqs": 16, "scheduling_policy": "priority"},
    {"block_size": 16, "max_num_batched_tokens": 5, "max_num_seqs": 8, "enable_prefix_caching": False},
]


def random_request(rng: random.Random) -> tuple[list[int], SamplingParams]:
    """Prompts begin alike in one of two ways; whatever may be asked for is, of every few of them."""
    length = rng.choice([1, 2, rng.randrange(1, 70), rng.randrange(1, 70)])
    shared = random.Random(rng.randrange(2)).choices(range(3, 128), k=length)
    same = rng.randrange(length + 1)
    wishes: list[dict[str, Any]] = [
        {"top_p": rng.choice([0.3, 0.9])},
        {"top_k": rng.choice([1, 5, 100])},
        {"min_p": rng.choice([0.05, 0.5])},
        {"presence_penalty": 1.5, "frequency_penalty": -0.5},
        {"repetition_penalty": rng.choice([0.8, 2.0])},
        {"logit_bias": {2: rng.choice([4, 8.0]), rng.randrange(128): -100}},
        {"allowed_token_ids": rng.sample(range(128), 40)},
        {"min_tokens": 3, "stop_token_ids": rng.sample(range(128), 30)},
        {"logprobs": rng.choice([0, 3])},
        {"prompt_logprobs": rng.choice([0, 2])},
        {"ignore_eos": True},
        {"n": 3},
    ]
    params: dict[str, Any] = {"max_tokens": rng.choice([3, 12, 25]), "detokenize": False}
    for wish in rng.sample(wishes, 4):
        params |= wish
    params |= {"temperature": 0.0} if rng.random() < 0.4 and "n" not in params else {"seed": rng.getrandbits(40)}
    return shared[:same] + rng.choices(range(3, 128), k=length - same), SamplingParams(**params)


def new_llm(path: Path, **options: Any) -> LLM:
    return LLM(str(path), skip_tokenizer_init=True, dtype="float32", device="cpu", max_model_len=LENGTH, **options)


def told(output: CompletionOutput) -> tuple[Any, ...]:
    return list(output.token_ids), output.finish_reason, output.stop_reason


def alike(some: Sequence[PositionLogprobs | None] | None, others: Sequence[PositionLogprobs | None] | None) -> bool:
    """Whether logprobs are those of the same tokens, within what sums in another order may make of them."""

    def numbers(positions: Sequence[PositionLogprobs | None] | None) -> list[dict[int, float]]:
        return [{token: entry.logprob for token, entry in (one or {}).items()} for one in positions or ()]

    pairs = zip(numbers(some), numbers(others), strict=True)
    return all(one == pytest.approx(other, abs=1e-3) for one, other in pairs)


@pytest.mark.parametrize("architecture", MODELS)
def test_storm(architecture: str, tmp_path: Path) -> None:
    (extra, windows), rng = MODELS[architecture], random.Random(architecture)
    random_model(architecture, **SIZES | extra).save_pretrained(tmp_path)
    alone = new_llm(tmp_path, max_num_seqs=1, enable_prefix_caching=False, kv_cache_memory_bytes=2**24)
    preempted = 0
    for shortage in SHORTAGES:
        blocks = blocks_for(windows, shortage["block_size"], LENGTH, shortage["max_num_batched_tokens"])
        crowded = new_llm(tmp_path, num_gpu_blocks_override=blocks, **shortage)
        assert crowded._engine is not None
        crowded._engine.runner.steps_in_flight = 2
        prompts, params = zip(*(random_request(rng) for _ in range(24)), strict=True)
        urgency = [rng.randrange(3) for _ in prompts] if "scheduling_policy" in shortage else None
        outputs = crowded.generate(prompts, params, use_tqdm=False, priority=urgency)
        scheduler = crowded._engine.scheduler
        scheduler.check_integrity()
        stats = scheduler.stats()
        assert not scheduler.has_work and stats.kv_cache_usage == 0.0
        lengths = [len(prompt) * one.n for prompt, one in zip(prompts, params, strict=True)]
        assert stats.prompt_tokens + stats.prefix_cache_hits == sum(lengths)
        assert stats.generation_tokens == sum(len(one.token_ids) for output in outputs for one in output.outputs)
        preempted += stats.num_preemptions
        assert stats.num_preemptions == sum(output.metrics.num_preemptions for output in outputs if output.metrics)
        for prompt, wanted, output in zip(prompts, params, outputs, strict=True):
            for index, sequence in enumerate(output.outputs):
                seed = None if wanted.seed is None else wanted.seed + index
                [same] = alone.generate(prompt, wanted.clone(n=1, seed=seed), use_tqdm=False)
                assert told(sequence) == told(same.outputs[0]), wanted
                assert alike(sequence.logprobs, same.outputs[0].logprobs)
                assert alike(output.prompt_logprobs, same.prompt_logprobs)
    assert preempted > 5
