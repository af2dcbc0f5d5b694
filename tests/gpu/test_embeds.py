"""Prompts of embeddings on a GPU: their prefill runs beside captured steps, and the tokens are those of their ids."""

from pathlib import Path

import pytest
import torch

from headrace import LLM, SamplingParams
from tests.models.util import random_model

from .util import NEEDS_GPU

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("options", [{}, {"enforce_eager": True}, {"max_num_batched_tokens": 32, "max_num_seqs": 4}])
def test_the_same_tokens_as_for_ids(options: dict[str, object], tmp_path: Path) -> None:
    model = random_model("LlamaForCausalLM", max_position_embeddings=512)
    model.save_pretrained(tmp_path)
    ids = [torch.randint(3, 128, (length,)).tolist() for length in (5, 40, 17, 200, 1, 33)]
    table = model.get_input_embeddings()
    given = [{"prompt_embeds": table(torch.tensor(prompt))} for prompt in ids]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, detokenize=False)
    llm = LLM(
        str(tmp_path),
        dtype="float32",
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        kv_cache_memory_bytes=2**26,
        **options,
    )
    expected = [output.outputs[0].token_ids for output in llm.generate(ids, params, use_tqdm=False)]
    found = llm.generate(ids[:2] + given + ids[2:], params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in found] == expected[:2] + expected + expected[2:]
    llm.shutdown()
