"""A prompt given as embeddings is answered as its token ids are, however the work is cut."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import save
from transformers import LlamaForCausalLM

from headrace import LLM, SamplingParams
from tests.models.util import random_model

from .server import SECONDS, Server

OPTIONS: dict[str, Any] = {"skip_tokenizer_init": True, "enable_prompt_embeds": True, "dtype": "float32"}
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, detokenize=False)
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {"kv_cache_memory_bytes": 2**22},
    "chunks of 8": {"max_num_batched_tokens": 8, "max_num_seqs": 8, "kv_cache_memory_bytes": 2**22},
    "preemption": {"num_gpu_blocks_override": 20, "block_size": 4, "enable_prefix_caching": False},
    "blocks of 4": {"block_size": 4, "kv_cache_memory_bytes": 2**22},
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "GraniteForCausalLM": {"embedding_multiplier": 3.0},  # transformers scales what it is given, too
    "Gemma2ForCausalLM": {"head_dim": 16},  # and here only what its table gives
    "OPTForCausalLM": {"ffn_dim": 96, "word_embed_proj_dim": 64, "num_key_value_heads": None},
}


def tokens(llm: LLM, prompts: list[Any], params: SamplingParams = GREEDY) -> list[list[int]]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    llm._engine.scheduler.check_integrity()
    return [list(one.token_ids) for output in outputs for one in output.outputs]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_tokens_as_for_ids(architecture: str, tmp_path: Path) -> None:
    model = random_model(architecture, **ARCHITECTURES[architecture])
    model.save_pretrained(tmp_path)
    ids = [torch.randint(3, 128, (length,)).tolist() for length in (5, 30, 1, 23, 17, 40)]
    table = model.get_input_embeddings()
    with torch.inference_mode():
        given = [{"prompt_embeds": table(torch.tensor(prompt))} for prompt in ids]
    for options in VARIANTS.values() if architecture == "LlamaForCausalLM" else [VARIANTS["chunks of 8"]]:
        llm = LLM(str(tmp_path), **OPTIONS | options)
        expected = tokens(llm, ids)
        assert tokens(llm, given) == expected, options
        mixed = [prompt for pair in zip(ids, given, strict=True) for prompt in pair]
        assert tokens(llm, mixed) == [answer for answer in expected for _ in "ab"], options
        assert llm._engine.scheduler.kv.pool.usage == 0.0
        if "num_gpu_blocks_override" in options:
            outputs = llm.generate(given, GREEDY, use_tqdm=False)
            assert sum(output.metrics.num_preemptions for output in outputs if output.metrics) > 0
        llm.shutdown()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, Any]]:
    directory = tmp_path_factory.mktemp("llama")
    model = random_model("LlamaForCausalLM")
    model.save_pretrained(directory)
    llm = LLM(str(directory), **OPTIONS, block_size=4, kv_cache_memory_bytes=2**22)
    yield llm, model.get_input_embeddings().weight.detach()
    llm.shutdown()


def test_what_a_request_asks_for_works_with_embeddings(llama: tuple[LLM, Any]) -> None:
    llm, table = llama
    ids = list(range(20, 41))
    given = {"prompt_embeds": table[ids]}
    several = SamplingParams(n=3, seed=5, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=2)
    penalised = GREEDY.clone(presence_penalty=1.5, frequency_penalty=0.5, min_tokens=3)
    for params in (several, penalised, GREEDY.clone(logit_bias={7: 50.0})):
        assert tokens(llm, [given], params) == tokens(llm, [ids], params)
    [again] = llm.generate([given], GREEDY, use_tqdm=False)
    assert again.num_cached_tokens == 20
    [other] = llm.generate([{"prompt_embeds": table[ids] * 1.01}], GREEDY, use_tqdm=False)
    assert other.num_cached_tokens == 0
    [zeros] = llm.generate([[0] * len(ids)], GREEDY, use_tqdm=False)
    assert zeros.num_cached_tokens == 0


def test_a_repetition_penalty_counts_no_stand_ins(llama: tuple[LLM, Any]) -> None:
    """The token 0 stands for each embedding, and must not be taken for one the prompt has."""
    llm, table = llama
    given = {"prompt_embeds": table[[50, 51, 52]]}
    only_zero = SamplingParams(temperature=0, max_tokens=1, allowed_token_ids=[0, 1], logprobs=2, detokenize=False)
    plain, penalised = (
        tokens(llm, [given], only_zero.clone(repetition_penalty=penalty, logit_bias=bias))
        for penalty, bias in ((1.0, {0: 5.0}), (100.0, {0: 5.0}))
    )
    assert plain == penalised == [[0]]


def test_the_server_takes_them(tiny: Path) -> None:
    table = LlamaForCausalLM.from_pretrained(tiny).get_input_embeddings()
    prompts = ["The capital of France is", "1, 2, 3, 4, 5,"]
    with Server(
        *(str(tiny), "--enable-prompt-embeds", "--max-model-len", "256", "--cpu-kv-cache-gb", "0.1"),
        *("--dtype", "float32"),
    ) as server:

        def answer(**body: Any) -> Any:
            wanted = {"temperature": 0, "max_tokens": 8, "return_token_ids": True}
            return httpx.post(f"{server.url}/v1/completions", json=wanted | body, timeout=SECONDS).json()

        expected = answer(prompt=prompts)
        ids = [choice["prompt_token_ids"] for choice in expected["choices"]]
        sent = [base64.b64encode(save({"x": table(torch.tensor(prompt)).detach()})).decode() for prompt in ids]
        found = answer(prompt_embeds=sent)
        assert [choice["text"] for choice in found["choices"]] == [choice["text"] for choice in expected["choices"]]
        assert found["usage"] == expected["usage"]
        assert found["choices"][0]["prompt_token_ids"] is None
        both = answer(prompt_embeds=sent[1], prompt=prompts[0])
        assert [choice["text"] for choice in both["choices"]] == [expected["choices"][i]["text"] for i in (1, 0)]
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        stream = client.completions.create(
            model="", prompt="", max_tokens=8, temperature=0, stream=True, extra_body={"prompt_embeds": sent[0]}
        )
        assert "".join(chunk.choices[0].text for chunk in stream) == expected["choices"][0]["text"]
        refused = {
            "prompt_embeds": {"prompt_embeds": "AAAA"},
            "echo": {"prompt_embeds": sent[0], "echo": True},
            "prompt_logprobs": {"prompt_embeds": sent[0], "prompt_logprobs": 1},
            "prompt": {},
        }
        for field, body in refused.items():
            assert answer(**body)["error"]["param"] == field
        assert httpx.get(f"{server.url}/health", timeout=SECONDS).status_code == 200
