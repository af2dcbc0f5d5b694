"""Anthropic's Messages API against a scripted engine, mostly as its own client sees it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config import Config
from headrace.errors import EngineDeadError, RequestError
from headrace.frontend.parsers.choose import choose_formats
from headrace.server.answers import Reading
from headrace.server.messages.blocks import Blocks, begins_object
from headrace.server.messages.bodies import BlockDelta, BlockStart, BlockStop, InputDelta, TextDelta, ToolUseBlock
from headrace.server.messages.conversation import generating_request
from headrace.server.messages.schema import MessagesRequest
from headrace.types import CompletionOutput, StructuredOutputsParams

from .app import call_and_leave, make, serving
from .fake_engine import MODEL_LEN, FakeEngine
from .test_tools import CALLS, SCHEMAS, cut

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
HI: Any = {"model": "fake", "max_tokens": 400, "messages": [{"role": "user", "content": "Hi"}]}
TOOLS: Any = [{"name": name, "description": "Does it.", "input_schema": schema} for name, schema in SCHEMAS.items()]
THINK = "<think>\nSo.\n</think>\n\n"
AGENT = {"reasoning_parser": "qwen3", "tool_call_parser": "hermes"}


@asynccontextmanager
async def sdk(reply: str = "Hello", key: str = "k", **options: Any) -> AsyncIterator[tuple[Any, FakeEngine]]:
    app, engine = make(reply, **options)
    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    http = httpx2.AsyncClient(transport=transport, base_url="http://server")
    async with anthropic.AsyncAnthropic(
        base_url="http://server", api_key=key, http_client=http, max_retries=0
    ) as client:
        yield client, engine


def events(response: httpx.Response) -> list[Any]:
    """The events of a stream; each is named by its line and by itself."""
    bodies = []
    *blocks, end = response.text.split("\n\n")
    assert not end
    for block in blocks:
        name, data = block.split("\n")
        bodies.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {bodies[-1]['type']}"
    return bodies


def without_ids(message: Any) -> Any:
    """What two answers to one request have in common."""
    dump = message.model_dump(exclude={"id"})
    return dump | {"content": [{**block, "id": None} for block in dump["content"]]}


# -- answers --------------------------------------------------------------------------------------------------------


async def test_a_message_has_anthropics_shape() -> None:
    async with serving() as (client, engine):
        response = await client.post(MESSAGES, json=HI | {"system": "Be brief.", "max_tokens": 3})
    body = response.json()
    assert response.headers["request-id"].startswith("req_")
    assert body.pop("id").startswith("msg_")
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "fake",
        "content": [{"type": "text", "text": "Hel"}],
        "stop_reason": "max_tokens",
        "stop_sequence": None,
        "usage": {
            "input_tokens": len(engine.prepared[0]),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 3,
            "service_tier": "standard",
        },
    }
    assert engine.tokenizer.decode(engine.prepared[0], False).startswith("<|im_start|>system\nBe brief.<|im_end|>")


async def test_a_stream_has_anthropics_events() -> None:
    async with serving(THINK + 'Y<tool_call>{"name": "g", "arguments": {}}</tool_call>', **AGENT) as (client, _):
        response = await client.post(MESSAGES, json=HI | {"tools": TOOLS, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    start, ping, *middle, delta, stop = events(response)
    assert start["message"]["content"] == [] and start["message"]["stop_reason"] is None
    assert start["message"]["usage"]["input_tokens"] > 0 and ping == {"type": "ping"}
    thoughts = [event["delta"].get("thinking") for event in middle[1:4]]
    assert "".join(thoughts) == "So."
    assert middle[0] == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    }
    assert [event | {"content_block": None} if "content_block" in event else event for event in middle[4:]] == [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": ""}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": None},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Y"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": None},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{"}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "}"}},
        {"type": "content_block_stop", "index": 2},
    ]
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] > 9 and stop == {"type": "message_stop"}


@pytest.mark.parametrize("reply", [*CALLS.values(), THINK + CALLS["hermes"] + "\nAfter.", "  Just text.\n", ""])
async def test_a_stream_says_what_the_whole_answer_says(reply: str) -> None:
    parser = next((name for name, text in CALLS.items() if text == reply), "hermes").split(",")[0]
    reasoning = "openai_gptoss" if parser == "openai" else "qwen3"
    async with sdk(reply or "\n", tool_call_parser=parser, reasoning_parser=reasoning) as (client, _):
        whole = await client.messages.create(**HI, tools=TOOLS)
        async with client.messages.stream(**HI, tools=TOOLS) as stream:
            text = "".join([text async for text in stream.text_stream])
            streamed = await stream.get_final_message()
        assert stream.request_id.startswith("req_") and whole._request_id.startswith("req_")
    assert without_ids(whole) == without_ids(streamed)
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    calls = [(block.name, block.input) for block in whole.content if block.type == "tool_use"]
    if "Just" in reply or not reply:
        assert text == (reply or "\n") and whole.stop_reason == "end_turn"
    else:
        assert calls == [("f", {"a": 'x "y"\n', "b": 3}), ("g", {})] and whole.stop_reason == "tool_use"
        assert all(len(block.id) == 9 or block.id.startswith("toolu_") for block in whole.content[-2:-1])
    if THINK in reply:
        assert [block.type for block in whole.content] == ["thinking", "text", "tool_use", "tool_use", "text"]
        assert whole.content[-1].text == "After."


async def test_two_turns_with_a_tool_and_the_thoughts_before_it() -> None:
    """The template sees what the first answer held, in the words of a chat."""
    call = "{% for c in m.tool_calls %}{{ c.id }} {{ c.function.name }}{{ c.function.arguments | tojson }} {% endfor %}"
    said = "{{ m.role }}: {{ m.reasoning_content }}|{{ m.content }}|" + call + "{{ m.tool_call_id }}\n"
    template = "{% for m in messages %}" + said + "{% endfor %}"
    async with sdk(THINK + CALLS["hermes"], chat_template=template, **AGENT) as (client, engine):
        first = await client.messages.create(**HI, tools=TOOLS)
        f, g = (block.id for block in first.content if block.type == "tool_use")
        results = [
            {"type": "tool_result", "tool_use_id": f, "content": "Fine."},
            {"type": "tool_result", "tool_use_id": g, "content": text("Gone."), "is_error": True},
        ]
        messages = [*HI["messages"], first.to_param(), {"role": "user", "content": [*results, *text("So?")]}]
        second = await client.messages.create(**HI | {"messages": messages}, tools=TOOLS)
    assert second.stop_reason == "tool_use"
    assert engine.tokenizer.decode(engine.prepared[1], False).splitlines() == [
        "user: |Hi|",
        f'assistant: So.|Hm.|{f} f{{"a": "x \\"y\\"\\n", "b": 3}} {g} g{{}} ',
        f"tool: |Fine.|{f}",
        f"tool: |Error: Gone.|{g}",
        "user: |So?|",
    ]


# -- arguments that are no JSON -------------------------------------------------------------------------------------

FORMATS = choose_formats(Config.from_kwargs(tool_call_parser="hermes"), "")


def blocks() -> Blocks:
    assert FORMATS.tools is not None
    return Blocks(Reading(sections=FORMATS.tools.sections, tools=SCHEMAS))


def output(text: str, reason: str | None = None) -> CompletionOutput:
    return CompletionOutput(0, text, [], finish_reason=reason)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"a": "x", "b": 3}', {"a": "x", "b": 3}),
        ('{"a": "x", "b": }', {"a": "x"}),
        ('{"a": "x" "b": 3}', {"a": "x"}),
        ("{'a': 'x'}", {}),
        ('{"a": [1, {"b": tru', {"a": [1, {}]}),
        ('{"a": NaN}', {}),
        ('{"a": 123456789012345678901234567890}', {"a": 123456789012345678901234567890}),
        ('"{\\"a\\": 1}"', {"a": 1}),
    ],
)
def test_arguments_are_read_as_far_as_they_are_json(written: str, expected: Any) -> None:
    (block,) = blocks().whole(output(f'<tool_call>{{"name": "f", "arguments": {written}}}</tool_call>', "stop"))
    assert isinstance(block, ToolUseBlock) and block.input == expected


PIECES = st.sampled_from(
    ['<tool_call>{"name": "f", "arguments": ', "</tool_call>", '{"a": ', '"x"', "3", "[", "]", "}", ",", "\\", '"']
)


@settings(max_examples=200)
@given(st.lists(PIECES, max_size=12).map("".join), st.lists(st.integers(0, 300), max_size=6))
def test_blocks_do_not_depend_on_how_the_text_was_cut(text: str, places: list[int]) -> None:
    whole, stream = blocks(), blocks()
    pieces = cut(text, places)
    sent: list[Any] = [e for piece in pieces[:-1] for e in stream.events(output(piece))]
    sent += stream.events(output(pieces[-1], "stop"))
    begun: list[Any] = []
    for event in sent:
        match event:
            case BlockStart(index=index, content_block=block):
                assert index == len(begun)
                begun.append([block, ""])
            case BlockDelta(index=index, delta=TextDelta(text=news) | InputDelta(partial_json=news)):
                assert index == len(begun) - 1 and news
                begun[-1][1] += news
            case BlockStop(index=index):
                assert index == len(begun) - 1
    for (block, written), expected in zip(begun, whole.whole(output(text, "stop")), strict=True):
        if isinstance(expected, ToolUseBlock):
            assert begins_object(written or "{") and block.name == expected.name
        else:
            assert written == expected.text  # type: ignore[union-attr]


# -- requests -------------------------------------------------------------------------------------------------------


def asked(**fields: Any) -> Any:
    return generating_request(MessagesRequest.model_validate(HI | fields))


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_messages_become_those_of_a_chat() -> None:
    cached = {"type": "text", "text": "Two.", "cache_control": {"type": "ephemeral"}}
    paper = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Body"}, "title": "T"}
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [*text("R"), paper]}
    chat = asked(
        system=[{"type": "text", "text": "x-anthropic-billing-header: cch=1;"}, *text("One."), cached],
        messages=[
            {"role": "user", "content": "A"},
            {"role": "user", "content": [paper]},
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}, *text("B"), call]},
            {"role": "user", "content": [result, {"type": "tool_result", "tool_use_id": "t2"}, *text("C")]},
            {"role": "system", "content": "D"},
        ],
    )
    function = {"name": "f", "arguments": {"a": 1}}
    assert chat.messages == [
        {"role": "system", "content": text("One.", "Two.")},
        {"role": "user", "content": text("A", "T\nBody")},
        {
            "role": "assistant",
            "content": text("B"),
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "R\nT\nBody"},
        {"role": "tool", "tool_call_id": "t2", "content": ""},
        {"role": "user", "content": text("C")},
        {"role": "system", "content": text("D")},
    ]
    assert chat.add_generation_prompt and not chat.continue_final_message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop_sequences": list("abcdef")}, {"stop": list("abcdef")}),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.5}, {"temperature": 0.5, "top_k": 3, "top_p": 0.5}),
        ({"tools": TOOLS, "tool_choice": {"type": "auto"}}, {"tool_choice": "auto", "parallel_tool_calls": True}),
        ({"tools": TOOLS, "tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tools": TOOLS, "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1025},
            {"include_reasoning": True, "thinking_token_budget": 1024},
        ),
        (
            {"thinking": {"type": "adaptive"}},
            {"include_reasoning": True, "chat_template_kwargs": {"enable_thinking": True, "thinking": True}},
        ),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, {"include_reasoning": False}),
        (
            {"thinking": {"type": "disabled"}},
            {"include_reasoning": False, "chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        (
            {"thinking": {"type": "disabled"}, "chat_template_kwargs": {"thinking": True, "a": 1}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": True, "a": 1}},
        ),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}},
        ),
        (
            {"messages": [*HI["messages"], {"role": "assistant", "content": "Well,"}]},
            {"add_generation_prompt": False, "continue_final_message": True},
        ),
        ({"metadata": {"user_id": "u"}, "service_tier": "auto", "speed": "standard", "x": 1}, {}),
    ],
)
def test_fields_become_those_of_a_chat(fields: Any, expected: Any) -> None:
    chat = asked(**fields)
    assert {name: getattr(chat, name) for name in expected} == expected


def test_tools_become_those_of_a_chat() -> None:
    (tool,) = asked(tools=[TOOLS[0] | {"type": "custom", "strict": True, "cache_control": None}]).tools
    function = {"name": "f", "description": "Does it.", "parameters": SCHEMAS["f"], "strict": True}
    assert tool == {"type": "function", "function": function}


async def test_a_format_holds_and_a_begun_answer_goes_on() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    begun = [*HI["messages"], {"role": "assistant", "content": '{"a":'}]
    async with serving(" 3}") as (client, engine):
        form = {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
        answer = (await client.post(MESSAGES, json=HI | form | {"messages": begun})).json()
    assert answer["content"] == [{"type": "text", "text": " 3}"}]
    assert engine.calls[0]["params"].structured_outputs == StructuredOutputsParams(json=schema)
    assert engine.tokenizer.decode(engine.prepared[0], False).endswith('assistant\n{"a":')


@pytest.mark.parametrize("details", [False, True])
async def test_counted_tokens_are_those_of_the_prompt(details: bool) -> None:
    """The scripted engine finds one token in its prefix cache, which is told apart where details are asked for."""
    asked = HI | {"system": "S", "tools": TOOLS, "thinking": {"type": "adaptive"}}
    del asked["max_tokens"]
    async with sdk(enable_prompt_tokens_details=details, **AGENT) as (client, _):
        counted = await client.messages.count_tokens(**asked)
        answer = await client.messages.create(**asked, max_tokens=9)
    assert counted.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens
    assert answer.usage.cache_read_input_tokens == details


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("finish", "stop", "limit", "expected"),
    [
        ("stop", None, 400, ("end_turn", None)),
        ("stop", "END", 400, ("stop_sequence", "END")),
        ("length", None, 5, ("max_tokens", None)),
        ("length", None, 400, ("model_context_window_exceeded", None)),
    ],
)
async def test_stop_reasons(finish: str, stop: str | None, limit: int, expected: Any, stream: bool) -> None:
    async with serving() as (client, engine):
        engine.finish_reason, engine.stop_reason = finish, stop
        response = await client.post(MESSAGES, json=HI | {"max_tokens": limit, "stream": stream})
    end = events(response)[-2]["delta"] if stream else response.json()
    assert (end["stop_reason"], end["stop_sequence"]) == expected


@pytest.mark.parametrize("reasons", [False, True])
async def test_a_model_that_does_not_think_keeps_any_budget(reasons: bool) -> None:
    async with sdk("<think>So.</think>Yes.", **(AGENT if reasons else {})) as (client, engine):
        options = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}
        answer = await client.messages.create(**HI | options)
    assert [block.type for block in answer.content] == ["thinking", "text"][not reasons :]
    assert engine.calls[0]["params"].thinking_token_budget == (1024 if reasons else None)
    thought = answer.usage.output_tokens_details
    assert 0 < thought.thinking_tokens < answer.usage.output_tokens if reasons else thought is None


async def test_rendered_bodies_generate_the_same() -> None:
    async with serving() as (client, engine):
        await client.post(MESSAGES, json=HI)
        rendered = (await client.post(MESSAGES + "/render", json=HI)).json()
        await client.post("/inference/v1/generate", json=rendered | {"output_mode": "text"})
    assert engine.calls[0]["prompt"] == engine.calls[1]["prompt"]
    assert engine.calls[0]["params"].max_tokens == engine.calls[1]["params"].max_tokens == 400


async def test_what_is_not_cleared_is_said() -> None:
    async with sdk() as (client, _):
        beta = {"betas": ["context-management-2025-06-27"], "context_management": {"edits": [{"type": "clear_all"}]}}
        whole = await client.beta.messages.create(**HI, **beta)
        async with client.beta.messages.stream(**HI, **beta) as stream:
            streamed = await stream.get_final_message()
    assert whole.context_management.applied_edits == streamed.context_management.applied_edits == []


# -- errors ---------------------------------------------------------------------------------------------------------

IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x"}}
CALL = {"type": "tool_use", "id": "t", "name": "f", "input": {}}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"max_tokens": None}, "max_tokens is required"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"messages": []}, "messages is invalid"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, r"messages\.0\.content\.0 is .*server takes text"),
        ({"messages": [{"role": "user", "content": [CALL]}]}, r"messages\.0\.content\.0 is invalid"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, r"messages\.0\.content\.0\.text is required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\.0 is .*: a message is an object whose role"),
        ({"messages": ["Hi"]}, r"messages\.0 is invalid"),
        ({"messages": [*HI["messages"], {"role": "assistant", "content": [CALL]}]}, "must bring their tool_result"),
        ({"system": [IMAGE]}, r"system\.0\.type is invalid"),
        ({"temperature": -1}, "temperature must be non-negative"),
        ({"stop_sequences": [""]}, r"stop_sequences\.0 is invalid"),
        ({"stop_sequences": ["x"] * 65}, r"stop_sequences is invalid"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "runs no tools itself"),
        ({"tools": [{"name": "f"}]}, r"tools\.0\.input_schema is required"),
        ({"tool_choice": {"type": "any"}}, "needs tools to choose from"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "needs the tool's name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "h"}}, "not among tools"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens belongs to the type enabled"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, r"thinking\.budget_tokens is invalid"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2048}}, "must be less than max_tokens"),
        ({"output_config": {"task_budget": {}}}, r"output_config\.task_budget is invalid"),
        ({"container": "c"}, "runs no tools itself; leave `container` out"),
        ({"mcp_servers": [{"url": "http://x"}]}, "leave `mcp_servers` out"),
        ({"speed": "fast"}, "`speed` is not supported"),
    ],
)  # fmt: skip
async def test_wrong_requests_get_one_sentence_and_queue_nothing(fields: Any, sentence: str) -> None:
    async with sdk() as (client, engine):
        with pytest.raises(anthropic.BadRequestError, match=sentence) as raised:
            await client.messages.create(**HI, extra_body=fields)
        if "max_tokens" not in fields and "temperature" not in fields and "stop_sequences" not in fields:
            assert (raised.value.type, raised.value.api_message[-1]) == ("invalid_request_error", ".")
    assert not engine.calls


async def test_errors_are_the_clients_typed_ones() -> None:
    def kind(raised: Any) -> Any:
        error = raised.value
        assert error.body == {
            "type": "error",
            "error": {"type": error.type, "message": error.api_message},
            "request_id": error.response.headers["request-id"],
        }
        return error.type

    async with sdk(api_key=["k"], max_request_bytes=5000) as (client, engine):
        with pytest.raises(anthropic.NotFoundError, match="Valid aliases: fake") as raised:
            await client.messages.create(**HI | {"model": "other"})
        assert kind(raised) == "not_found_error"
        with pytest.raises(anthropic.AuthenticationError) as raised:
            await client.with_options(api_key="wrong").messages.create(**HI)
        assert kind(raised) == "authentication_error"
        bearer = anthropic.AsyncAnthropic(base_url="http://server", auth_token="k", http_client=client._client)
        assert (await bearer.messages.count_tokens(model="fake", messages=HI["messages"])).input_tokens
        with pytest.raises(anthropic.RequestTooLargeError) as raised:
            await client.messages.create(**HI, system="x" * 5000)
        assert kind(raised) == "request_too_large"
        with pytest.raises(anthropic.BadRequestError, match="The prompt has") as raised:
            await client.messages.create(**HI, system="x" * MODEL_LEN)
        assert kind(raised) == "invalid_request_error"
        engine.fail = ZeroDivisionError("secret")
        with pytest.raises(anthropic.InternalServerError, match="its log says why") as raised:
            await client.messages.create(**HI)
        assert kind(raised) == "api_error"
        engine.queue_full = True
        with pytest.raises(anthropic.RateLimitError) as raised:
            await client.messages.create(**HI, stream=True)
        assert kind(raised) == "rate_limit_error" and raised.value.response.headers["retry-after"] == "7"
        engine.draining = True
        with pytest.raises(anthropic.ServiceUnavailableError) as raised:
            await client.messages.create(**HI)
        assert kind(raised) == "overloaded_error"
    async with serving() as (plain, _):
        for response in (
            await plain.get(MESSAGES),
            await plain.post(COUNT, content="{", headers={"content-type": "application/json"}),
            await plain.post(COUNT, content="{}", headers={"content-type": "text/plain"}),
        ):
            assert set(response.json()) == {"type", "error", "request_id"}


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(EngineDeadError("It was killed."), "overloaded_error"), (ZeroDivisionError("secret"), "api_error")],
)
async def test_a_failure_ends_the_stream_with_an_error_event(failure: Exception, kind: str) -> None:
    async with sdk() as (client, engine):
        engine.fail = failure
        seen: list[str] = []

        async def read() -> None:
            async with client.messages.stream(**HI) as stream:
                async for event in stream:
                    seen.append(event.type)

        with pytest.raises(anthropic.APIStatusError) as raised:
            await read()
    assert seen[:3] == ["message_start", "content_block_start", "content_block_delta"] and "message_stop" not in seen
    assert raised.value.type == kind and "secret" not in str(raised.value)
    assert raised.value.body["request_id"] == raised.value.request_id


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_its_request(stream: bool) -> None:
    app, engine = make()
    leave = asyncio.Event()

    async def gate() -> None:
        leave.set()
        await asyncio.Event().wait()

    engine.gate = gate
    async with asyncio.timeout(10):
        sent = await call_and_leave(app, MESSAGES, HI | {"stream": stream}, leave)
    assert len(engine.aborted) == len(engine.calls) == 1 and engine.num_unfinished == 0
    assert not any(b"message_stop" in message.get("body", b"") for message in sent)


async def test_more_tokens_than_the_context_leaves_may_be_asked_for() -> None:
    async with serving() as (client, engine):
        prepare = engine.prepare

        async def full(prompt: Any, params: Any, **options: Any) -> Any:
            if params.max_tokens is not None:
                raise RequestError("max_tokens is too large.", "max_tokens")
            return await prepare(prompt, params, **options)

        engine.prepare = full  # type: ignore[method-assign]
        response = await client.post(MESSAGES, json=HI)
    assert response.status_code == 200 and engine.calls[0]["params"].max_tokens is None
