"""Tool calls of the default model, which has to call what it is told to call."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

from tests.e2e.server import Server

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "units": {"type": "array", "items": {"enum": ["C", "F"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "days", "units"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "maxLength": 12}},
}
CLOCK = {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}
SCHEMAS = {"forecast": SCHEMA, "clock": CLOCK | {"additionalProperties": False}}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()
]
QUESTION: Any = [{"role": "user", "content": "What will the weather be in Rome this week?"}]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "forecast"}}])
def test_forced_calls_satisfy_their_schemas(client: openai.OpenAI, choice: Any) -> None:
    model = client.models.list().data[0].id
    options = {"model": model, "messages": QUESTION, "tools": TOOLS, "tool_choice": choice, "max_tokens": 200}
    wanted = [options | {"seed": seed, "parallel_tool_calls": bool(seed % 2)} for seed in range(4)]
    asked = [(ask, one) for one in wanted for ask in (streamed, whole)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda pair: pair[0](client, pair[1]), asked))
    num_finished = 0
    for (_, one), answer in zip(asked, answers, strict=True):
        reason, calls = answer.choices[0].finish_reason, answer.choices[0].message.tool_calls or []
        assert reason in ("tool_calls", "length")
        assert one["parallel_tool_calls"] or len(calls) <= 1
        num_finished += reason == "tool_calls"
        for call in calls if reason == "tool_calls" else calls[:-1]:
            jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    assert num_finished


def whole(client: openai.OpenAI, options: Any) -> Any:
    return client.chat.completions.create(**options)


def streamed(client: openai.OpenAI, options: Any) -> Any:
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        try:
            return stream.get_final_completion()
        except openai.LengthFinishReasonError as error:
            return error.completion


class Forecast(pydantic.BaseModel):
    city: Literal["Rome", "Oslo"]
    days: int


def test_the_sdk_parses_arguments(client: openai.OpenAI) -> None:
    tool = openai.pydantic_function_tool(Forecast)
    answer = client.chat.completions.parse(
        model=client.models.list().data[0].id,
        messages=QUESTION,
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "Forecast"}},
        temperature=0,
        max_tokens=64,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Forecast)


def test_a_model_that_is_free_to_call_may_answer(client: openai.OpenAI) -> None:
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(model=model, messages=QUESTION, tools=TOOLS, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls
