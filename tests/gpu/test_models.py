"""Tiny random checkpoints and the default model against transformers on the same GPU, in three dtypes."""

from pathlib import Path

import pytest
import torch
import transformers

from headrace import LLM, SamplingParams
from headrace.models.registry import spec_for
from tests.e2e.reference import Reference
from tests.e2e.test_greedy import PROMPTS
from tests.models.test_architectures import ARCHITECTURES, CASES, Case
from tests.models.util import checkpoint_weights, chunked_logits, full_logits, loaded_decoder, random_model

from .util import GPU, NEEDS_GPU

pytestmark = NEEDS_GPU

# With routed experts a rounding may choose another expert, which makes single logits incomparable.
IN_HALF = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "cohere", "glm4", "gpt2", "starcoder2")


def compare(case: Case, dtype: torch.dtype, directory: Path) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Logits of one sequence: exact (float32, weights rounded to ``dtype``), transformers', and ours, twice."""
    model = random_model(case.architecture, **case.options).to(dtype)
    weights = checkpoint_weights(model, directory)
    ids, other = torch.randint(3, 128, (2, case.length)).tolist()

    def logits() -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids], device=GPU)).logits[0].float().cpu()

    model.to(GPU)
    peer = logits()
    model.float()
    exact = logits()
    served = transformers.AutoConfig.from_pretrained(directory)
    for name, value in case.served.items():
        setattr(served, name, value)
    decoder = loaded_decoder(spec_for(served, case.max_model_len), weights, GPU, dtype)
    return exact, peer, [full_logits(decoder, ids), chunked_logits(decoder, ids, other)[0]]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_logits_in_float32(case: Case, tmp_path: Path) -> None:
    exact, _, ours = compare(case, torch.float32, tmp_path)
    for logits in ours:
        torch.testing.assert_close(logits, exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("case", [case for case in ARCHITECTURES if case.name in IN_HALF], ids=lambda case: case.name)
def test_logits_are_as_exact_as_transformers(case: Case, dtype: torch.dtype, tmp_path: Path) -> None:
    exact, peer, ours = compare(case, dtype, tmp_path)
    for logits in ours:
        assert (logits - exact).norm() < 1.25 * (peer - exact).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_greedy_text_of_the_default_model(dtype: torch.dtype) -> None:
    """Nearly every token is transformers' argmax, the others a near tie of it at this precision."""
    llm = LLM(dtype=str(dtype)[6:], max_model_len=512, kv_cache_memory_bytes=2**29)
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=64), use_tqdm=False)
    reference = Reference(dtype)
    gaps = []
    for output in outputs:
        gaps.append(reference.gaps(output.prompt_token_ids, list(output.outputs[0].token_ids)))
    gap = torch.cat(gaps)
    print(f"{dtype}: {len(gap)} tokens, {(gap > 0).sum()} not the argmax, largest gap {gap.max():.3f}")
    assert (gap > 0).float().mean() < 0.03
    assert gap.max() < 60 * torch.finfo(dtype).eps


def test_the_cache_takes_the_memory_that_is_left() -> None:
    """Without a size the cache takes what --gpu-memory-utilization leaves after weights and a step's peak."""
    total = torch.cuda.mem_get_info()[1]
    before = total - torch.cuda.mem_get_info()[0]
    llm = LLM(gpu_memory_utilization=0.3, max_model_len=2048)
    used = total - torch.cuda.mem_get_info()[0]
    assert 0.25 * total < used <= 0.3 * total + before
    llm.generate(["Hello " * 2000], SamplingParams(max_tokens=4), use_tqdm=False)
    llm.generate([f"{i} Hello" for i in range(256)], SamplingParams(max_tokens=4), use_tqdm=False)
    assert total - torch.cuda.mem_get_info()[0] <= 0.31 * total + before
