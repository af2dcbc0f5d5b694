"""vLLM's ways to an engine from Python, on a model of random weights: each gives what ``LLM.generate`` gives."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, AsyncEngineArgs, AsyncLLM, AsyncLLMEngine, EngineArgs, PoolingParams, SamplingParams
from headrace.errors import ConfigError, RequestError

OPTIONS: dict[str, Any] = {"max_model_len": 256, "dtype": "float32", "kv_cache_memory_bytes": 2**26}
PROMPTS = ["To be", "or not to be, that is", {"prompt_token_ids": [5, 6, 7]}]
PARAMS = SamplingParams(n=2, seed=1, max_tokens=9, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Iterator[LLM]:
    llm = LLM(**asdict(EngineArgs(model=str(tiny), **OPTIONS)))
    yield llm
    llm.shutdown()


@pytest.fixture(scope="module")
def expected(llm: LLM) -> list[list[list[int]]]:
    return [tokens(output) for output in llm.generate(PROMPTS, PARAMS, use_tqdm=False)]


def tokens(output: Any) -> list[list[int]]:
    return [list(sequence.token_ids) for sequence in output.outputs]


def test_callers_steps_give_what_generate_gives(llm: LLM, expected: list[list[list[int]]]) -> None:
    engine, found, outputs = llm.llm_engine, {}, 0
    for name, prompt in zip("012", PROMPTS, strict=True):
        engine.add_request(name, prompt, PARAMS)
    engine.add_request("gone", "Hello", PARAMS.clone(max_tokens=100))
    with pytest.raises(RequestError, match="id 0 is in use"):
        engine.add_request("0", "Hello", PARAMS)
    for _ in range(4):
        outputs += len(engine.step())
    [between] = llm.generate("between", PARAMS.clone(max_tokens=20), use_tqdm=False)  # which takes the others along
    assert between.finished and list(llm._tracker.tracks) == [engine._tracks["gone"].request_id]
    engine.abort_request("gone")
    while engine.has_unfinished_requests():
        found |= {output.request_id: tokens(output) for output in engine.step() if output.finished}
    assert outputs > 3
    assert found == dict(zip("012", expected, strict=True))
    assert not llm._tracker.tracks


def test_what_is_enqueued_waits_for_its_completion(llm: LLM, expected: list[list[list[int]]]) -> None:
    ids = [*llm.enqueue(PROMPTS[0], PARAMS), *llm.enqueue(PROMPTS[1:], [PARAMS, PARAMS])]
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [tokens(output) for output in outputs] == expected
    assert [output.request_id for output in outputs] == ids
    assert not llm.wait_for_completion(use_tqdm=False)


async def test_an_engine_starts_with_its_first_request(tiny: Path, expected: list[list[list[int]]]) -> None:
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(tiny), **OPTIONS))
    assert not engine.is_running
    outputs = [output async for output in engine.generate(PROMPTS[1], PARAMS, request_id="a", lora_request=None)]
    assert tokens(outputs[-1]) == expected[1]
    assert engine.is_running and (await engine.get_tokenizer()).vocab_size == 49152
    assert (await engine).num_unfinished == 0
    await engine.shutdown()
    assert engine.errored and not engine.is_running


async def test_a_start_that_fails_says_so_to_each_request() -> None:
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="/no/such/model"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="/no/such/model"):
            await anext(engine.generate("Hello", PARAMS))
    assert engine.errored
    await engine.shutdown()


async def test_steps_and_streams_may_pool(tiny: Path) -> None:
    llm = LLM(str(tiny), convert="embed", **OPTIONS)
    engine = llm.llm_engine
    engine.add_request("v", "Hello you", PoolingParams(task="embed"), tokenization_kwargs={"truncate_prompt_tokens": 1})
    outputs: list[Any] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    [expected] = llm.embed("Hello", use_tqdm=False, lora_request=None)
    llm.shutdown()
    streaming = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=str(tiny), convert="embed", **OPTIONS))
    outputs += [output async for output in streaming.encode("Hello", PoolingParams(task="embed"), request_id="v")]
    await streaming.shutdown()
    assert [output.request_id for output in outputs] == ["v", "v"]
    for output in outputs:
        assert isinstance(output.outputs.data, torch.Tensor)
        assert output.outputs.data.tolist() == expected.outputs.embedding
