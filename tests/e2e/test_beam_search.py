"""Beam search finds what transformers' finds, with the same scores; best_of gives the best of what it samples."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from headrace import LLM, BeamSearchParams, SamplingParams
from headrace.errors import RequestError
from tests.models.util import random_model

from .reference import DEVICE, Reference
from .server import SECONDS, Server

EOS = 2
NO_TOKEN = 10**6
PROMPTS = [
    "The capital of France is",
    "1, 1, 2, 3, 5, 8,",
    "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nSay hello.<|im_end|>\n<|im_start|>assistant\n",
]
OPTIONS: dict[str, Any] = {"max_model_len": 512, "dtype": "float32", "kv_cache_memory_bytes": 2**28}
KINDS: list[dict[str, Any]] = [
    {"beam_width": 4},
    {"beam_width": 3, "length_penalty": 0.0},
    {"beam_width": 3, "length_penalty": -1.0, "early_stopping": True},
    {"beam_width": 2, "length_penalty": 2.0, "early_stopping": "never"},
    {"beam_width": 4, "early_stopping": "never", "length_penalty": 0.0},
    {"beam_width": 2, "ignore_eos": True},
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(**OPTIONS)
    yield llm
    llm._engine.scheduler.check_integrity()
    assert llm._engine.scheduler.kv.pool.usage == 0.0
    llm.shutdown()


def compare(
    llm: LLM, model: PreTrainedModel, prompts: list[list[int]], params: BeamSearchParams, eos: list[int]
) -> set[str | None]:
    """Assert that ``llm`` finds what ``model`` finds, with the same scores; the reasons why sequences end."""
    ends = set()
    outputs = llm.beam_search([{"prompt_token_ids": ids} for ids in prompts], params, concurrency_limit=3)
    for ids, output in zip(prompts, outputs, strict=True):
        config = GenerationConfig(
            num_beams=params.beam_width,
            num_return_sequences=params.beam_width,
            do_sample=False,
            max_new_tokens=params.max_tokens,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            eos_token_id=NO_TOKEN if params.ignore_eos else eos,
            pad_token_id=NO_TOKEN,
            return_dict_in_generate=True,
            output_scores=True,
        )
        prompt = torch.tensor([ids], device=DEVICE)
        wanted = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
        tokens = [[token for token in sequence if token != NO_TOKEN] for sequence in wanted.sequences.tolist()]
        assert [one.tokens for one in output.sequences] == tokens, (params, ids)
        scores = [one.cum_logprob / (len(one.tokens) - len(ids)) ** params.length_penalty for one in output.sequences]
        assert scores == pytest.approx(wanted.sequences_scores.tolist(), rel=1e-4)
        ends |= {one.finish_reason for one in output.sequences}
    return ends


def test_finds_what_transformers_finds(llm: LLM) -> None:
    model, prompts = Reference()._model, [llm.tokenizer.encode(prompt) for prompt in PROMPTS[:3]]
    ends = [  # a prompt for each; a small model gets all of them, below
        compare(llm, model, [prompt], BeamSearchParams(max_tokens=16, **kind), [EOS])
        for prompt, kind in zip(prompts, KINDS[:3], strict=True)
    ]
    assert set.union(*ends) == {"stop", "length"}


def test_finds_what_a_random_model_finds(tmp_path: Path) -> None:
    """Every token is about as likely as the next, those that end a sequence too, and there are two of them."""
    model = random_model("LlamaForCausalLM", eos_token_id=[2, 9])
    model.save_pretrained(tmp_path)
    llm = LLM(str(tmp_path), dtype="float32", skip_tokenizer_init=True, block_size=4, num_gpu_blocks_override=64)
    prompts = [[5, 6, 7], [11, 12, 13, 14, 15, 16], [99]]
    kinds = [BeamSearchParams(max_tokens=12, **kind) for kind in [*KINDS, {"beam_width": 40}]]
    ends = [compare(llm, model.to(DEVICE), prompts, params, [2, 9]) for params in kinds]
    assert set.union(*ends) == {"stop", "length"}
    [output] = llm.beam_search([prompts[0]], BeamSearchParams(4, 5))
    assert output.sequences[0].text is None
    llm.shutdown()


def test_fields_are_vllms(llm: LLM) -> None:
    params = BeamSearchParams(2, 30, length_penalty=0.0)
    [output] = llm.beam_search([{"prompt_token_ids": llm.tokenizer.encode(PROMPTS[2])}], params)
    best = output.sequences[0]
    assert best.finish_reason == "stop"
    assert best.text is not None and best.text.startswith(PROMPTS[2]) and not best.text.endswith("<|im_end|>")
    assert best.tokens[-1] == EOS
    assert best.cum_logprob == pytest.approx(sum(next(iter(p.values())).logprob for p in best.logprobs))
    greedy = llm.generate(PROMPTS[3], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)[0].outputs[0]
    [output] = llm.beam_search(PROMPTS[3], BeamSearchParams(1, 8))
    assert output.sequences[0].text == PROMPTS[3] + greedy.text
    with pytest.raises(RequestError, match="concurrency_limit"):
        llm.beam_search("a", BeamSearchParams(2, 2), concurrency_limit=0)


def test_best_of_gives_the_likeliest(llm: LLM) -> None:
    params = SamplingParams(n=2, best_of=6, max_tokens=12, seed=3, logprobs=1)
    [best] = llm.generate(PROMPTS[0], params, use_tqdm=False)
    [every] = llm.generate(PROMPTS[0], params.clone(n=6, best_of=None), use_tqdm=False)

    def mean(one: Any) -> float:
        return float(one.cumulative_logprob / len(one.token_ids))

    ranked = sorted(every.outputs, key=mean, reverse=True)
    assert [one.token_ids for one in best.outputs] == [one.token_ids for one in ranked[:2]]
    assert [one.index for one in best.outputs] == [0, 1]
    assert best.num_rejected_tokens == sum(len(one.token_ids) for one in ranked[2:])


def test_the_server_searches_and_stops_when_its_client_leaves(server: Server) -> None:
    finished = server.metric("vllm:request_success_total")
    body = {"prompt": PROMPTS[:2], "use_beam_search": True, "n": 2, "best_of": 3, "max_tokens": 8, "logprobs": 1}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=SECONDS).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for choice in answer["choices"]:
        assert len(choice["logprobs"]["tokens"]) == 8
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert answer["usage"]["completion_tokens"] == 2 * 3 * 8
    assert answer["usage"]["prompt_tokens"] == 5 + 17
    scores = [sum(choice["logprobs"]["token_logprobs"]) for choice in answer["choices"]]
    assert scores[0] >= scores[1] and scores[2] >= scores[3]  # bfloat16 has ties

    chat = {"messages": [{"role": "user", "content": "Say hello."}], "use_beam_search": True, "n": 3}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=chat | {"max_tokens": 6}, timeout=SECONDS).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) == 3 and answer["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.metric("vllm:request_success_total") - finished == 2 * 3 + 3

    first = server.metric("vllm:iteration_tokens_total_count")
    long = {"prompt": "Once", "use_beam_search": True, "n": 8, "ignore_eos": True, "max_tokens": 480}

    async def leave_once_it_searches() -> None:
        async with httpx.AsyncClient(timeout=SECONDS) as client:
            asking = asyncio.ensure_future(client.post(f"{server.url}/v1/completions", json=long))
            while server.metric("vllm:iteration_tokens_total_count") == first:
                await asyncio.sleep(0.05)
            assert asking.cancel()

    asyncio.run(leave_once_it_searches())
    steps, before = server.metric("vllm:iteration_tokens_total_count"), -1.0
    while steps != before:
        time.sleep(1)
        steps, before = server.metric("vllm:iteration_tokens_total_count"), steps
    assert steps - first < 480  # as many as the whole search takes
