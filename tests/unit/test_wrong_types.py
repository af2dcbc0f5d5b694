"""Values of wrong types: each is a result or an error of the project's own, before anything reaches the engine."""

import asyncio
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from headrace import LLM
from headrace.config import Config
from headrace.engine.client import EngineProcess
from headrace.errors import RequestError
from headrace.frontend.async_llm import AsyncLLM
from headrace.frontend.beam import BeamSearchParams
from headrace.frontend.door import Door
from headrace.frontend.llm_engine import LLMEngine
from headrace.frontend.tokenizer import Tokenizer
from headrace.frontend.tracker import Track
from headrace.types import FromEngine, PoolingParams, SamplingParams, StructuredOutputsParams, ToEngine
from tests.unit.fake_engine import CharTokenizer, FakeEngine

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
SCALARS = [None, True, -1, 10**30, 10**400, 2.5, float("nan"), float("inf"), "a", "", "\ud800", b"a", object()]
WRONG = [*SCALARS, [], {}, ENDLESS, *([value] for value in SCALARS), [[1]], [{}], (1, "a"), {"a": b"a"}]
WRONG += [{"a": value} for value in SCALARS] + [{1: 1.0}, {None: 1}, {"json": {"type": 5}}, {"json": object()}]
PROMPT_KEYS = ("prompt", "prompt_token_ids", "prompt_embeds", "cache_salt", 5)
PROMPTS = [*WRONG, *({key: value} for key in PROMPT_KEYS for value in WRONG)]
PROMPTS += [{"prompt": "a", key: value} for key in PROMPT_KEYS for value in WRONG]
PARAMS: dict[type[Any], dict[str, Any]] = {  # with what else they need
    SamplingParams: {},
    PoolingParams: {},
    BeamSearchParams: {"beam_width": 2, "max_tokens": 2},
    StructuredOutputsParams: {"regex": "a"},
}
FIELDS = [(kind, field) for kind in PARAMS for field in kind.__struct_fields__]


class ArrivedError(Exception):
    """The engine would have been asked."""


class Handed(LLM):
    """An LLM up to its engine, for which requests are encoded."""

    def __init__(self, task: str | None = None) -> None:
        self.config = Config.from_kwargs(enable_prompt_embeds=True, scheduling_policy="priority")
        self.info = FakeEngine(self.config).info
        if task is not None:
            self.info.tasks, self.info.embedding_sizes = [task], [8]
        self.door = Door(self.config, self.info, Tokenizer(CharTokenizer().hf))
        self._ids = map(str, itertools.count())

    def _finish(self, tracks: Sequence[Track], use_tqdm: Any) -> None:
        for track in tracks:
            self._submit(track)
        self._step()

    def _submit(self, track: Track) -> None:
        msgspec.msgpack.encode(track.submits())

    def _step(self) -> dict[str, Track]:
        raise ArrivedError

    def _abort(self, request_id: str) -> None:
        pass


class Sink:
    """Stands for EngineProcess: whatever it is sent has arrived."""

    async def send(self, message: ToEngine) -> None:
        msgspec.msgpack.encode(message)
        raise ArrivedError

    async def receive(self) -> list[FromEngine]:
        return await asyncio.Future()

    async def stop(self) -> None:
        pass


@functools.cache
def handed(task: str | None = None) -> Handed:
    return Handed(task)


def refused(call: Callable[[], Any]) -> bool:
    """Whether a call raised ``RequestError``; anything but that is an error of the test's."""
    try:
        call()
    except (RequestError, ArrivedError) as error:
        return isinstance(error, RequestError)
    return False


@pytest.mark.parametrize(("kind", "field"), FIELDS)
def test_a_field_of_any_type_is_taken_or_refused(kind: type[Any], field: str) -> None:
    llm, pooling = handed(), handed("embed")

    def use(value: Any) -> None:
        params = kind(**{name: given for name, given in PARAMS[kind].items() if name != field} | {field: value})
        if kind is BeamSearchParams:
            llm.beam_search("a", params)
        elif kind is PoolingParams:
            pooling.encode("a", params)
        else:
            llm.generate("a", params if kind is SamplingParams else SamplingParams(structured_outputs=params))

    assert sum(refused(lambda value=value: use(value)) for value in WRONG)


@pytest.mark.parametrize("field", SamplingParams.__struct_fields__)
def test_a_field_that_is_changed_later_is_checked_again(field: str) -> None:
    params, llm = SamplingParams(), handed()
    setattr(params, field, object())
    assert refused(lambda: llm.generate("a", params))


CALLS: dict[str, Callable[[Any], Any]] = {
    "generate": lambda given: handed().generate(given),
    "generate by": lambda given: handed().generate("a", given),
    "priority": lambda given: handed().generate("a", priority=given),
    "tokenization": lambda given: handed().generate("a", tokenization_kwargs=given),
    "chat": lambda given: handed().chat(given),
    "chat's message": lambda given: handed().chat([{"role": "user", "content": given}]),
    "chat's role": lambda given: handed().chat([{"role": given, "content": ""}]),
    "chat_template": lambda given: handed().chat([{"role": "user"}], chat_template=given),
    "chat_template_kwargs": lambda given: handed().chat([{"role": "user"}], chat_template_kwargs=given),
    "tools": lambda given: handed().chat([{"role": "user"}], tools=given),
    "content format": lambda given: handed().chat([{"role": "user"}], chat_template_content_format=given),
    "continued": lambda given: handed().chat([{"role": "user"}], continue_final_message=given),
    "stream": lambda given: next(handed().stream(given)),
    "stream by": lambda given: next(handed().stream("a", given)),
    "beam_search": lambda given: handed().beam_search(given, BeamSearchParams(2, 2)),
    "beam_search by": lambda given: handed().beam_search("a", given),
    "beams at once": lambda given: handed().beam_search("a", BeamSearchParams(2, 2), concurrency_limit=given),
    "embed": lambda given: handed("embed").embed(given),
    "embed by": lambda given: handed("embed").embed("a", pooling_params=given),
    "encode": lambda given: handed("embed").encode(given),
    "encode by": lambda given: handed("embed").encode("a", given),
    "encode's task": lambda given: handed("embed").encode("a", pooling_task=given),
    "classify": lambda given: handed("classify").classify(given),
    "score": lambda given: handed("embed").score(given, "a"),
    "score of": lambda given: handed("classify").score("a", given),
    "score's instruction": lambda given: handed("classify").score("a", "b", instruction=given),
    "add_request": lambda given: LLMEngine(handed()).add_request("1", given, SamplingParams()),
    "add_request by": lambda given: LLMEngine(handed()).add_request("1", "a", given),
    "add_request's id": lambda given: LLMEngine(handed()).add_request(given, "a", SamplingParams()),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_any_type_is_taken_or_refused(name: str) -> None:
    assert sum(refused(lambda given=given: CALLS[name](given)) for given in PROMPTS)


GENERATE = {"prompt": "a", "sampling_params": SamplingParams(), "request_id": "1"}
OPTIONS = ("priority", "cache_salt", "add_special_tokens", "truncate_prompt_tokens", "tokenization_kwargs")


@pytest.mark.parametrize("name", [*GENERATE, *OPTIONS])
async def test_an_argument_of_the_asynchronous_handle_is_taken_or_refused(name: str) -> None:
    door, was_refused = handed().door, False
    async with AsyncLLM(door.config, ["m"], cast(EngineProcess, Sink()), door) as llm:
        for given in PROMPTS:
            try:
                await anext(llm.generate(**GENERATE | {name: given}))  # type: ignore[arg-type]
            except (RequestError, ArrivedError) as error:
                was_refused |= isinstance(error, RequestError)
    assert was_refused


@pytest.mark.parametrize("name", ["prompt", "pooling_params", "request_id"])
async def test_an_argument_of_its_encode_is_taken_or_refused(name: str) -> None:
    door, was_refused = handed("embed").door, False
    async with AsyncLLM(door.config, ["m"], cast(EngineProcess, Sink()), door) as llm:
        for given in PROMPTS:
            try:
                await anext(llm.encode(**{"prompt": "a", name: given}))
            except (RequestError, ArrivedError) as error:
                was_refused |= isinstance(error, RequestError)
    assert was_refused


def test_numbers_of_numpy_are_plain_ones() -> None:
    params = SamplingParams(
        seed=cast(int, np.int64(5)),
        temperature=cast(float, np.float32(0.5)),
        top_p=cast(float, np.float64(0.5)),
        ignore_eos=cast(bool, np.bool_(True)),
        stop_token_ids=cast(list[int], np.array([3, 4])),
        allowed_token_ids=[cast(int, np.int32(3))],
    )
    assert msgspec.to_builtins(params) == {
        "seed": 5,
        "temperature": 0.5,
        "top_p": 0.5,
        "ignore_eos": True,
        "stop_token_ids": [3, 4],
        "allowed_token_ids": [3],
    }
    with pytest.raises(RequestError, match="temperature"):
        SamplingParams(temperature=cast(float, np.zeros(2)))
