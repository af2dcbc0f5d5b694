"""vLLM's ways to an engine from Python, on a model of random weights: each gives what ``LLM.generate`` gives."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace import LLM, AsyncEngineArgs, AsyncLLM, AsyncLLMEngine, EngineArgs, PoolingParams, SamplingParams
from headrace.errors import ConfigError, RequestError
from headrace.frontend.readings import Counter, Gauge, Histogram

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


def test_overrides_may_be_a_function_of_the_configuration(tiny: Path) -> None:
    def shorter(hf_config: Any) -> Any:
        hf_config.update({"max_position_embeddings": 128, "rope_parameters": hf_config.rope_parameters | {"factor": 2}})
        return hf_config

    options = OPTIONS | {"max_model_len": None, "hf_overrides": shorter}
    assert EngineArgs(model=str(tiny), **options).create_engine_config().model.hf_overrides.keys() == {
        "max_position_embeddings",
        "rope_parameters",
    }
    llm = LLM(str(tiny), **options)
    model_config = llm.llm_engine.vllm_config.model_config
    llm.shutdown()
    assert model_config.max_model_len == 128
    assert (model_config.hf_config.max_position_embeddings, model_config.hf_config.vocab_size) == (128, 49152)
    with pytest.raises(ConfigError, match="hf_overrides must return the model's configuration, got None"):
        LLM(str(tiny), hf_overrides=lambda hf_config: None)


def test_a_request_may_stream_seldom_and_pass_the_prefix_cache_by(llm: LLM) -> None:
    params = PARAMS.clone(n=1, stream_interval=4)
    assert [len(output.outputs[0].token_ids) for output in llm.stream("To be", params)] == [1, 4, 4]
    cached = [
        llm.generate("or not to be, " * 8, params.clone(skip_reading_prefix_cache=skip), use_tqdm=False)[0]
        for skip in (None, None, True)
    ]
    assert [bool(output.num_cached_tokens) for output in cached] == [False, True, False]
    assert tokens(cached[1]) == tokens(cached[2])


def test_metrics_are_read_as_objects(llm: LLM) -> None:
    keeping = LLM(llm.config.model.model, disable_log_stats=False, **OPTIONS)
    keeping.generate(PROMPTS, PARAMS, use_tqdm=False)
    found = {metric.name: metric for metric in keeping.llm_engine.get_metrics()}
    keeping.shutdown()
    tokens, running, lengths = (
        found[f"vllm:{name}"] for name in ("generation_tokens", "num_requests_running", "request_generation_tokens")
    )
    assert isinstance(tokens, Counter) and tokens.value == 3 * 2 * 9
    assert isinstance(running, Gauge) and running.labels["engine"] == "0"
    assert isinstance(lengths, Histogram) and (lengths.count, lengths.sum) == (3, 54)
    assert (lengths.buckets["10.0"], lengths.buckets["20.0"], lengths.buckets["+Inf"]) == (0, 3, 3)


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
    with pytest.raises(RequestError, match="disable_log_stats=False"):
        llm.get_metrics()
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
