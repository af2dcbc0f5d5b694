"""Anthropic's client with the default model."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import jsonschema
import pydantic
import pytest

from tests.e2e.server import Server

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "forecast", "description": "The weather to come", "input_schema": SCHEMA}
QUESTION: Any = [{"role": "user", "content": "Will it rain in Rome this week?"}]
CONTEXT = 1024  # of the shared server


@pytest.fixture
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def asked(client: anthropic.Anthropic) -> dict[str, Any]:
    """A greedy request: this API has no seeds."""
    model = client.models.list().data[0].id
    return {"model": model, "max_tokens": 24, "messages": QUESTION, "extra_body": {"temperature": 0}}


def test_a_stream_says_what_the_whole_answer_says(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    asked |= {"system": [{"type": "text", "text": "Be brief."}]}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        streamed = stream.get_final_message()
    assert [block.model_dump() for block in streamed.content] == [block.model_dump() for block in whole.content]
    assert text == whole.content[0].text and text and whole.stop_reason == streamed.stop_reason  # type: ignore[union-attr]
    assert streamed.usage == whole.usage


def test_two_turns_with_a_tool(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    first = client.messages.create(
        **asked | {"max_tokens": 100}, tools=[TOOL], tool_choice={"type": "any", "disable_parallel_tool_use": True}
    )
    (call,) = first.content
    assert first.stop_reason == "tool_use" and call.type == "tool_use"
    jsonschema.validate(call.input, SCHEMA)
    result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}
    asked |= {"messages": [*QUESTION, first.to_param(), {"role": "user", "content": [result]}], "tools": [TOOL]}
    counted = client.messages.count_tokens(**{key: asked[key] for key in ("model", "messages", "tools")})
    with client.messages.stream(**asked) as stream:
        second = stream.get_final_message()
    assert counted.input_tokens == second.usage.input_tokens > first.usage.input_tokens
    assert second.content[0].type == "text"


def test_a_named_tool_streams_its_input(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    choice: Any = {"type": "tool", "name": "forecast"}
    pieces: list[str] = []
    with client.messages.stream(**asked | {"max_tokens": 100}, tools=[TOOL], tool_choice=choice) as stream:
        for event in stream:
            if event.type == "input_json":
                pieces.append(event.partial_json)
        (call,) = stream.get_final_message().content
    assert len(pieces) > 3 and call.type == "tool_use" and json.loads("".join(pieces)) == call.input
    jsonschema.validate(call.input, SCHEMA)


class Forecast(pydantic.BaseModel):
    city: Literal["Rome", "Oslo"]
    days: int


def test_the_client_parses_an_answer(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    answer = client.messages.parse(**asked | {"max_tokens": 60}, output_format=Forecast)
    assert isinstance(answer.parsed_output, Forecast)


def test_begun_answers_stop_texts_and_ends(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    begun: Any = [{"role": "user", "content": "Count to ten."}, {"role": "assistant", "content": "1, 2, 3,"}]
    stopped = client.messages.create(**asked | {"messages": begun}, stop_sequences=["6", "7"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "6")
    assert stopped.content[0].text.strip() == "4, 5,"  # type: ignore[union-attr]
    assert client.messages.create(**asked | {"max_tokens": 2}).stop_reason == "max_tokens"
    endless: Any = [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "on and" + " on and" * 470}]
    full = client.messages.create(**asked | {"messages": endless, "max_tokens": 9000})
    assert full.stop_reason == "model_context_window_exceeded"
    assert full.usage.input_tokens + full.usage.output_tokens == CONTEXT


def test_errors_are_the_clients_typed_ones(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    with pytest.raises(anthropic.NotFoundError, match="does not exist"):
        client.messages.create(**asked | {"model": "claude"})
    with pytest.raises(anthropic.BadRequestError, match="must be less than max_tokens") as raised:
        client.messages.create(**asked, thinking={"type": "enabled", "budget_tokens": 2048})
    assert raised.value.request_id and raised.value.type == "invalid_request_error"
