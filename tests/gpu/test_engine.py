"""The whole engine on a GPU: greedy tokens of tiny checkpoints are transformers', with and without captured steps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, SamplingParams
from tests.models.util import random_model

from .util import GPU, NEEDS_GPU

pytestmark = NEEDS_GPU

SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
MODELS: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {"num_local_experts": 4, "num_experts_per_tok": 2},  # never captured
    "Gemma3ForCausalLM": {"head_dim": 32} | SLIDING,
    "MistralForCausalLM": {"sliding_window": 7},
    "Qwen3ForCausalLM": {"head_dim": 32},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"enforce_eager": True},
    {"max_num_batched_tokens": 32, "max_num_seqs": 4},
    {"max_model_len": -1},
    {"block_size": 64, "max_num_seqs": 3, "cudagraph_capture_sizes": [2, 64]},
]


@pytest.mark.parametrize("architecture", MODELS)
def test_greedy_tokens(architecture: str, tmp_path: Path) -> None:
    model = random_model(architecture, **MODELS[architecture] | {"max_position_embeddings": 512})
    model.save_pretrained(tmp_path)
    model.to(GPU)
    prompts = [torch.randint(3, 128, (length,)).tolist() for length in (5, 40, 17, 200, 1, 33)]
    expected = [greedy(model, prompt, 24) for prompt in prompts]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, detokenize=False)
    shared = {"dtype": "float32", "skip_tokenizer_init": True, "kv_cache_memory_bytes": 2**26, "max_model_len": 400}
    for options in VARIANTS:
        llm = LLM(str(tmp_path), **shared | options)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert [list(output.outputs[0].token_ids) for output in outputs] == expected, options
        llm.shutdown()


@torch.inference_mode()
def greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt], device=GPU)
    for _ in range(count):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
    tokens: list[int] = ids[0, len(prompt) :].tolist()
    return tokens
