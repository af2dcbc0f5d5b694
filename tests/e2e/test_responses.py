"""The Responses API with the default model through OpenAI's client."""

import json
import time
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.e2e.server import SECONDS, Server

QUESTION = "What will the weather be in Rome this week?"


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


@pytest.mark.parametrize("background", [False, True])
def test_streamed_equals_whole(client: openai.OpenAI, model: str, background: bool) -> None:
    options: Any = {
        "model": model,
        "input": QUESTION,
        "max_output_tokens": 40,
        "extra_body": {"seed": 7, "stop": " to"},
    }
    options |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "temperature": 1.2}
    client.responses.create(**options)  # the others find its prompt in the cache, and so compute in the same shapes
    whole = client.responses.create(**options)
    with client.responses.stream(background=background, **options) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response() if whole.status == "completed" else None
    assert whole.output_text == text and whole.usage
    chat = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=40,
        seed=7,
        stop=" to",
        temperature=1.2,
        logprobs=True,
    )
    assert chat.choices[0].message.content == text and chat.usage
    assert chat.usage.completion_tokens == whole.usage.output_tokens
    logprobs = whole.output[0].content[0].logprobs  # type: ignore[union-attr]
    assert [entry.token for entry in logprobs] == [entry.token for entry in chat.choices[0].logprobs.content]  # type: ignore[union-attr]
    if final is not None:
        assert final.output_text == text and final.output[0].content[0].logprobs == logprobs  # type: ignore[union-attr]


class Forecast(pydantic.BaseModel):
    city: Literal["Rome", "Oslo"]
    days: Literal[1, 2, 3]


def test_a_loop_with_tools_and_parsed_text(client: openai.OpenAI, model: str) -> None:
    tool: Any = openai.pydantic_function_tool(Forecast)["function"] | {"type": "function"}
    with client.responses.stream(
        model=model, input=QUESTION, tools=[tool], tool_choice="required", parallel_tool_calls=False
    ) as stream:
        asked = stream.get_final_response()
    call = next(item for item in asked.output if item.type == "function_call")
    Forecast.model_validate_json(call.arguments)
    outputs: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": json.dumps({"sun": True})}
        for item in asked.output
        if item.type == "function_call"
    ]
    told = client.responses.parse(
        model=model,
        previous_response_id=asked.id,
        input=outputs,
        text_format=Forecast,
        temperature=0,
        max_output_tokens=60,
    )
    assert told.output_parsed and told.usage and asked.usage
    assert told.usage.input_tokens > asked.usage.input_tokens
    listed = list(client.responses.input_items.list(told.id, order="asc"))
    assert [item.type for item in listed] == [
        "message",
        *["function_call"] * len(outputs),
        *["function_call_output"] * len(outputs),
    ]
    counted = client.responses.input_tokens.count(model=model, previous_response_id=asked.id, input=outputs)
    assert counted.input_tokens == told.usage.input_tokens
    client.responses.delete(asked.id)
    with pytest.raises(openai.NotFoundError, match=f"{asked.id} not found"):
        client.responses.create(model=model, previous_response_id=told.id, input="Go on.")


def test_cancelling_frees_the_engine(server: Server, client: openai.OpenAI, model: str) -> None:
    long: Any = {"model": model, "input": "Write a novel.", "extra_body": {"ignore_eos": True}}
    begun = client.responses.create(background=True, **long)
    stream = client.responses.create(stream=True, background=True, **long)
    streamed_id = next(event.response.id for event in stream if event.type == "response.in_progress")
    stream.close()
    while client.responses.retrieve(begun.id).status == "queued":
        time.sleep(0.05)
    with pytest.raises(openai.BadRequestError, match="not finished"):
        client.responses.create(model=model, previous_response_id=begun.id, input="Go on.")
    assert client.responses.retrieve(streamed_id).status == "in_progress"  # its client left, and it goes on
    again = client.responses.retrieve(streamed_id, stream=True, starting_after=3)
    assert next(iter(again)).sequence_number == 4
    for response_id in (begun.id, streamed_id):
        assert client.responses.cancel(response_id).status == "cancelled"
    assert list(again)[-1].type == "response.cancelled"
    left = client.responses.create(stream=True, **long)
    next(event for event in left if event.type == "response.output_text.delta")
    left.close()
    server.wait_metric("vllm:num_requests_running", 0)
    too_long: Any = {"model": model, "input": QUESTION, "max_output_tokens": 2000}
    with pytest.raises(openai.BadRequestError, match="max_output_tokens 2000 is too large"):
        client.responses.create(**too_long)


def test_a_server_that_ends_ends_its_background() -> None:
    with Server("--kv-cache-memory-bytes", "256M", "--max-model-len", "1024") as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        model = client.models.list().data[0].id
        client.responses.create(model=model, input="Write.", background=True, extra_body={"ignore_eos": True})
        running.process.terminate()
        assert running.process.wait(SECONDS) == 0
        assert "Traceback" not in running.log
