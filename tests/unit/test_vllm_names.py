"""Scripts written for vLLM's Python API: its modules and names, its EngineArgs, its parser, its methods' arguments."""

import asyncio
import importlib
from dataclasses import asdict
from typing import Any, cast

import pytest

import headrace
from headrace import Config, EngineArgs, SamplingParams, TokensPrompt, vllm_names
from headrace.config import PoolerConfig
from headrace.engine.client import EngineProcess
from headrace.errors import RequestError
from headrace.frontend.async_llm import AsyncLLM
from headrace.frontend.door import Door
from headrace.frontend.progress import prompt_progress
from headrace.frontend.tokenizer import Tokenizer
from headrace.frontend.validation import tokenization
from headrace.types import FinishReason, Submit, TokenDelta
from tests.unit.fake_engine import CharTokenizer, FakeEngine
from tests.unit.test_async_llm import ScriptedProcess


def test_every_module_of_vllm_holds_every_public_name() -> None:
    for module in vllm_names.MODULES:
        found = importlib.import_module(f"headrace.{module}")
        assert found.SamplingParams is SamplingParams
    names = {*headrace.__all__, *vllm_names.NAMES}
    assert all(getattr(headrace, name) is not None for name in names)
    with pytest.raises(ImportError, match="cannot import name 'Sampling'"):
        exec("from headrace.sampling_params import Sampling")
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        importlib.import_module("headrace.sampling")


def test_engine_args_are_flat_and_become_the_configuration() -> None:
    parser = EngineArgs.add_cli_args(own_parser())
    parser.set_defaults(seed=7)
    parser.add_argument("--profile", choices=["none", "prefill"])  # which is an option of the engine, too
    line = ["--max_model_len=2K", "--no-enable-prefix-caching", "--hf-overrides.a.b", "5", "--my_own", "3"]
    arguments = parser.parse_args([*line, "--profile", "prefill", "--served-model-name", "x", "y", "-tp", "1"])
    assert arguments.profile == "prefill"
    del arguments.profile
    args = EngineArgs.from_cli_args(arguments)
    assert (args.max_model_len, args.seed, args.hf_overrides, arguments.my_own) == (2048, 7, {"a": {"b": 5}}, 3)
    args.dtype = "float32"
    expected = {"max_model_len": 2048, "seed": 7, "hf_overrides": {"a": {"b": 5}}, "served_model_name": ["x", "y"]}
    args.pooler_config = PoolerConfig(pooling_type="MEAN")
    expected["pooler_config"] = {"pooling_type": "MEAN"}
    config = Config.from_kwargs(**expected, enable_prefix_caching=False, dtype="float32")
    assert Config.from_kwargs(**asdict(args)) == args.create_engine_config() == config


def test_a_wrong_flag_ends_the_script_as_argparse_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        EngineArgs.add_cli_args(own_parser()).parse_args(["--max-model-len", "long"])
    assert "--max-model-len must be a whole number of at least 1" in capsys.readouterr().err


def own_parser() -> Any:
    parser = headrace.FlexibleArgumentParser(description="mine")  # type: ignore[attr-defined]
    parser.add_argument("--my_own", type=int)
    return parser


@pytest.mark.parametrize(
    ("others", "refusal"),
    [
        ({"lora_request": None, "tokenization_kwargs": None}, None),
        ({"lora_request": [None, None]}, None),
        ({"lora_request": [None, "sql"]}, "lora_request needs LoRA"),
        ({"mm_processor_kwargs": {"fps": 1}}, "needs media in prompts"),
        (
            {"tokenization_kwargs": {"padding": True}},
            "`padding`; it may hold add_special_tokens, truncate_prompt_tokens",
        ),
        ({"tokenization_kwargs": {"truncate_prompt_tokens": "x"}}, "truncate_prompt_tokens is invalid: .* got `str`"),
        ({"tokenization_kwargs": {"truncate_prompt_tokens": -2}}, ">= -1"),
        ({"tokenization_kwargs": {"add_special_tokens": None}}, "got `null`"),
        ({"tokenization_kwargs": "x"}, "got `str`"),
        ({"tokenization_kwargs": [1]}, "got `array`"),
    ],
)
def test_what_vllms_methods_take_is_taken_or_refused(others: dict[str, Any], refusal: str | None) -> None:
    if refusal is None:
        assert tokenization(others) == {}
        return
    with pytest.raises(RequestError, match=refusal):
        tokenization(others)


def test_what_tokenization_kwargs_leave_out_is_left_to_the_method() -> None:
    for given in ({"add_special_tokens": False}, {"truncate_prompt_tokens": None}, {}):
        assert tokenization({"tokenization_kwargs": given}) == given


def test_an_argument_of_nobody_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'lora'"):
        tokenization({"lora": None})


async def test_a_prompt_may_bring_its_salt_and_be_cut() -> None:
    process, config = ScriptedProcess(), Config()
    door = Door(config, FakeEngine(config).info, Tokenizer(CharTokenizer().hf))
    prompt = TokensPrompt(prompt_token_ids=[65, 66, 67], prompt="ABC", cache_salt="mine")
    async with AsyncLLM(config, ["m"], cast(EngineProcess, process), door) as llm:
        for wrong, others in ((prompt, {"lora_request": 5}), ({"prompt": "A", "cache_salt": 5}, {})):
            with pytest.raises(RequestError, match=r"lora_request needs|cache_salt is invalid"):
                await anext(llm.generate(wrong, SamplingParams(), **others))
        stream = llm.generate(prompt, SamplingParams(), tokenization_kwargs={"truncate_prompt_tokens": 2})
        first = asyncio.ensure_future(anext(stream))
        submit = cast(Submit, await process.sent.get())
        assert (submit.prompt_token_ids, submit.cache_salt) == ([66, 67], "mine")
        process.say(TokenDelta(submit.request_id, [68], finish_reason=FinishReason.STOP))
        assert (await first).prompt == "ABC"


def test_what_only_vllms_parameters_can_is_refused_by_name() -> None:
    assert SamplingParams(flat_logprobs=False, watermarking=False) == SamplingParams(watermarking=False)
    with pytest.raises(RequestError, match="repetition_detection must be left out: this version does not look for"):
        SamplingParams(repetition_detection={"max_pattern_size": 3, "min_count": 3})


def test_none_is_the_default_where_it_is_optional() -> None:
    params = SamplingParams.from_optional(n=None, temperature=None, seed=3, max_tokens=None)
    assert params == SamplingParams(seed=3, max_tokens=None)


def test_whoever_calls_may_bring_the_bar() -> None:
    told: list[Any] = []

    class Bar:
        def __init__(self, **facts: Any):
            told.append(facts["total"])

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            told.append("closed")

        def update(self, count: int) -> None:
            told.append(count)

    with prompt_progress(2, Bar) as ended:
        ended(30)
        ended(20)
    assert told == [2, 1, 1, "closed"]
