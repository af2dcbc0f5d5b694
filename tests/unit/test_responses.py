"""The Responses API against a scripted engine: items, events, chains, the store, background, refusals, early ends."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent

from headrace.config import ServerOptions
from headrace.errors import EngineDeadError, RequestError
from headrace.server.responses.bodies import ResponseBody
from headrace.server.responses.items import Message
from headrace.server.responses.store import Record, Store
from headrace.server.responses.tools import warn_hosted

from .app import call_and_leave, client_of, make, serving
from .fake_engine import CHATML, FakeEngine
from .test_tools import CALLS, F_JSON, SCHEMAS

URL = "/v1/responses"
ASK: dict[str, Any] = {"model": "fake", "input": "Hi"}
TOOLS: Any = [{"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()]
LOGPROBS = ["message.output_text.logprobs"]
# shows all that a turn may hold
SHOWING = (
    "{% for m in messages %}[{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}]{{ m.content }}"
    "{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}"
    "{% for c in m.tool_calls or [] %}"
    "({{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}){% endfor %}"
    "{% endfor %}{{ tools | length if tools else '' }}{{ verbosity }}{{ reasoning_effort }}"
)
# the whole answer -> its items, as (type, text or call)
HERMES = [("message", "Hm."), ("function_call", ("f", F_JSON)), ("function_call", ("g", "{}"))]
ANSWERS: list[tuple[str, dict[str, Any], list[Any]]] = [
    ("Hello", {}, [("message", "Hello")]),
    (CALLS["hermes"], {"tool_call_parser": "hermes"}, HERMES),
    (
        f"<think>\nSo.\n</think>\n\n{CALLS['hermes']}\nDone.",
        {"tool_call_parser": "hermes", "reasoning_parser": "qwen3"},
        [("reasoning", "So."), *HERMES, ("message", "Done.")],
    ),
    (
        "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>commentary<|message|>Hm.<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>Or.<|end|>"
        f"<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{F_JSON}<|call|>",
        {"tool_call_parser": "openai", "reasoning_parser": "openai_gptoss"},
        [("reasoning", "So."), ("message", "Hm."), ("reasoning", "Or."), ("function_call", ("f", F_JSON))],
    ),
]


@asynccontextmanager
async def talking(reply: str = "Hello", **options: Any) -> AsyncIterator[tuple[openai.AsyncOpenAI, FakeEngine]]:
    """An openai client and the engine it talks to."""
    template = options.pop("template", CHATML)
    app, engine = make(reply, **options)
    engine.tokenizer.hf.chat_template = template
    async with openai.AsyncOpenAI(
        api_key="k", base_url="http://server/v1", http_client=client_of(app), max_retries=0
    ) as client:
        yield client, engine


def prompts(engine: FakeEngine) -> list[str]:
    return [engine.tokenizer.decode(call["prompt"], False) for call in engine.calls]


def told(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, in OpenAI's framing and each of a type that its SDK knows."""
    assert response.status_code == 200, response.text
    found = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    known = [event for event in found if event["type"] != "response.cancelled"]
    pydantic.TypeAdapter(list[ResponseStreamEvent]).validate_python(known)
    return found


def items_told(events: list[dict[str, Any]]) -> list[Any]:
    """The items that a stream's events make up; fails if an event is out of order or contradicts another one."""
    items: list[Any] = []
    text, part = "", None
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind not in ("created", "queued", "in_progress") and "response" not in event:
            assert event["output_index"] == len(items) - (kind != "output_item.added")
        if kind == "output_item.added":
            assert not items or items[-1]["status"] == "completed"
            assert event["item"]["status"] == "in_progress"
            assert not event["item"].get("content") and not event["item"].get("arguments")
            items.append(event["item"])
            text, part = "", None
        elif kind == "content_part.added":
            assert event["part"]["text"] == ""
        elif kind.endswith(".delta"):
            assert event["delta"] and event["item_id"] == items[-1]["id"]
            text += event["delta"]
        elif kind == "content_part.done":
            part = event["part"]
            assert part["text"] == text
        elif kind == "output_item.done":
            item = event["item"]
            assert item["id"] == items[-1]["id"]
            assert item.get("arguments", text) == text and item.get("content", [part]) == [part]
            items[-1] = item
        elif kind.endswith(("_text.done", "arguments.done")):
            assert event.get("text", event.get("arguments")) == text
    assert [event["type"].rpartition(".")[2] for event in events if "response" in event][-1] in (
        "completed", "incomplete", "failed", "cancelled",
    )  # fmt: skip
    assert items == events[-1]["response"]["output"]
    return items


def gist(items: list[Any]) -> list[Any]:
    """Items without ids."""
    return [
        (item["type"], (item["name"], item["arguments"]) if "name" in item else item["content"][0]["text"])
        for item in items
    ]


# -- answers --------------------------------------------------------------------------------------------------------


async def test_a_response_has_openais_shape() -> None:
    async with serving(reasoning_parser="qwen3") as (client, _):
        answer = (await client.post(URL, json=ASK | {"max_output_tokens": 3, "metadata": {"a": "b"}})).json()
    Response.model_validate(answer, strict=True)
    assert answer.pop("id").startswith("resp_")
    assert answer["output"][0].pop("id").startswith("msg_")
    assert isinstance(answer.pop("created_at"), int)
    nothing = ("completed_at", "error", "instructions", "max_tool_calls", "previous_response_id", "prompt_cache_key")
    part = {"type": "output_text", "text": "Hel", "annotations": [], "logprobs": []}
    assert answer == dict.fromkeys((*nothing, "safety_identifier", "user")) | {
        "object": "response",
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "background": False,
        "max_output_tokens": 3,
        "metadata": {"a": "b"},
        "model": "fake",
        "output": [{"type": "message", "role": "assistant", "content": [part], "status": "incomplete"}],
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 52,
            "input_tokens_details": {"cached_tokens": 1, "cache_write_tokens": 0},
            "output_tokens": 3,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 55,
        },
    }


@pytest.mark.parametrize(("reply", "options", "expected"), ANSWERS, ids=["text", "hermes", "think", "channels"])
@pytest.mark.parametrize("background", [False, True])
async def test_streamed_and_whole_say_the_same(reply: str, options: Any, expected: Any, background: bool) -> None:
    body = ASK | {"tools": TOOLS} if "tool_call_parser" in options else ASK
    async with serving(reply, **options) as (client, _):
        whole = (await client.post(URL, json=body)).json()
        streamed = told(await client.post(URL, json=body | {"stream": True, "background": background}))
    assert [event["type"] for event in streamed[:2]] == [
        "response.created",
        "response." + ("queued" if background else "in_progress"),
    ]
    assert gist(items_told(streamed)) == gist(whole["output"]) == expected
    assert bool(whole["usage"]["output_tokens_details"]["reasoning_tokens"]) is ("reasoning_parser" in options)
    last = streamed[-1]["response"]
    assert {item["status"] for item in last["output"]} == {"completed"} and last["completed_at"]
    for name in whole.keys() - {"id", "output", "created_at", "completed_at", "background"}:
        assert last[name] == whole[name]


@pytest.mark.parametrize(("length", "status"), [(20, "incomplete"), (80, "incomplete"), (None, "completed")])
async def test_the_item_that_a_limit_cuts_is_incomplete(length: int | None, status: str) -> None:
    reply, options, _ = ANSWERS[2]
    async with serving(reply, **options) as (client, _):
        events = told(await client.post(URL, json=ASK | {"tools": TOOLS, "stream": True, "max_output_tokens": length}))
    assert events[-1]["type"] == f"response.{status}"
    *before, last = items_told(events)
    assert last["status"] == status and all(item["status"] == "completed" for item in before)


async def test_the_sdk_streams_typed_events_and_parses() -> None:
    class Answer(pydantic.BaseModel):
        city: str

    async with talking('{"city": "Rome"}') as (client, engine):
        parsed = await client.responses.parse(model="fake", input="Where?", text_format=Answer)
        assert parsed.output_parsed == Answer(city="Rome")
        async with client.responses.stream(model="fake", input="Where?", text_format=Answer) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert final.output_parsed == Answer(city="Rome") and final.output_text == '{"city": "Rome"}'
        assert [e.snapshot for e in events if e.type == "response.output_text.delta"][-1] == final.output_text
        await client.responses.create(model="fake", input="x", text={"format": {"type": "json_object"}})
    wanted = [call["params"].structured_outputs for call in engine.calls]
    assert wanted[0].json["properties"]["city"] and wanted[0] == wanted[1] and wanted[2].json_object


async def test_logprobs_come_with_the_text_they_belong_to() -> None:
    body = ASK | {"include": LOGPROBS, "top_logprobs": 2}
    async with serving("<think>So.</think>Yes", reasoning_parser="qwen3") as (client, _):
        for stream in (False, True):
            response = await client.post(URL, json=body | {"stream": stream})
            events = told(response) if stream else []
            output = (events[-1]["response"] if stream else response.json())["output"]
            logprobs = output[1]["content"][0]["logprobs"]
            assert [entry["token"] for entry in logprobs][-3:] == list("Yes")
            assert [len(entry["top_logprobs"]) for entry in logprobs] == [2] * len(logprobs)
            for event in events:
                assert event["type"] != "response.output_text.delta" or event["logprobs"][-1]["token"] == event["delta"]


async def test_requests_reach_the_engine_as_they_say() -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3, "stop": "x", "max_output_tokens": 4}
    more = {
        "skip_special_tokens": False,
        "cache_salt": "s",
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "high", "summary": "detailed"},
        "top_logprobs": 0,
        "service_tier": "flex",
    }
    async with talking(template=SHOWING) as (client, engine):
        await client.post("/responses", cast_to=object, body=ASK | fields | more)
        only_g = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
        for choice in ("none", "required", {"type": "function", "name": "f"}, only_g):
            await client.responses.create(**ASK, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)  # type: ignore[call-overload]
    params = engine.calls[0]["params"]
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.max_tokens) == (0.5, 0.9, 7, 3, 4)
    assert (params.stop, params.skip_special_tokens, engine.calls[0]["cache_salt"]) == (["x"], False, "s")
    assert prompts(engine)[0] == "[user]Hilowhigh"
    free, required, named, allowed = [call["params"].structured_outputs for call in engine.calls[1:]]
    assert free is None and named.json == SCHEMAS["f"]
    assert [call["properties"]["name"]["const"] for call in required.json["items"]["anyOf"]] == ["f", "g"]
    assert [call["properties"]["name"]["const"] for call in allowed.json["items"]["anyOf"]] == ["g"]
    assert [prompt[-1] for prompt in prompts(engine)[2:]] == ["2", "2", "1"]


async def test_hosted_tools_are_left_out_and_namespaces_taken_apart(caplog: pytest.LogCaptureFixture) -> None:
    """As Codex sends them."""
    warn_hosted.cache_clear()
    agents: Any = {"type": "namespace", "name": "agents", "description": "Those to ask.", "tools": TOOLS}
    ask: Any = ASK | {"tools": [{"type": "web_search", "external_web_access": False}, TOOLS[0], agents]}
    reply = CALLS["hermes"].replace('"g"', '"agents__g"')
    async with talking(reply, tool_call_parser="hermes", template=SHOWING) as (client, engine):
        first = await client.responses.create(**ask)
        async with client.responses.stream(**ask) as stream:
            streamed = await stream.get_final_response()
        outputs = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "x"}
            for item in first.output
            if item.type == "function_call"
        ]
        await client.responses.create(**ask | {"input": [*(item.to_dict() for item in first.output), *outputs]})
    for response in (first, streamed):
        called = [(item.name, item.namespace) for item in response.output if item.type == "function_call"]
        assert called == [("f", None), ("g", "agents")]
    assert [tool.type for tool in first.tools] == ["function", "namespace"]
    assert prompts(engine)[0].endswith("3") and "[tool agents__g]x" in prompts(engine)[2]
    (warning,) = caplog.messages
    assert "web_search" in warning


# -- conversations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [True, False])
async def test_a_loop_of_tool_calls(stored: bool) -> None:
    """The second turn's prompt is the same, whether the items are sent back or the response is named."""
    reply = f"<think>So.</think>{CALLS['hermes']}"
    options = {"tool_call_parser": "hermes", "reasoning_parser": "qwen3", "template": SHOWING}
    async with talking(reply, **options) as (client, engine):
        encrypted: Any = {"include": ["reasoning.encrypted_content"]}
        first = await client.responses.create(**ASK, tools=TOOLS, store=stored, **({} if stored else encrypted))
        calls = [item for item in first.output if item.type == "function_call"]
        outputs: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": f"of {call.name}"} for call in calls
        ]
        if stored:
            again: Any = {"input": outputs, "previous_response_id": first.id}
        else:
            sent = [item.model_dump(exclude={"content"} if item.type == "reasoning" else None) for item in first.output]
            again = {"input": [{"role": "user", "content": "Hi"}, *sent, *outputs]}
        await client.responses.create(model="fake", tools=TOOLS, **again)
    f, g = [call.call_id for call in calls]
    turn = f"[user]Hi[assistant]Hm.<So.>({f} f {F_JSON})({g} g {{}})[tool f]of f[tool g]of g2"
    assert json.loads(F_JSON) and prompts(engine)[1] == turn.replace(F_JSON, json.dumps(json.loads(F_JSON)))


async def test_chains_carry_items_but_no_instructions() -> None:
    async with talking(template=SHOWING) as (client, engine):
        first = await client.responses.create(**ASK, instructions="Be brief.")
        second = await client.responses.create(
            model="fake",
            previous_response_id=first.id,
            instructions="Be long.",
            input=[
                {"role": "developer", "content": "Now."},
                {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
            ],
        )
        await client.responses.create(model="fake", input=[{"type": "item_reference", "id": second.output[0].id}])
        listed = [item async for item in client.responses.input_items.list(second.id, limit=2)]
        page = await client.responses.input_items.list(second.id, order="asc", limit=2)
        ResponseItemList.model_validate(await client.get(f"/responses/{second.id}/input_items", cast_to=dict))
    first_prompt, second_prompt, third_prompt = prompts(engine)
    assert first_prompt == "[system]Be brief.[user]Hi"
    assert second_prompt == "[system]Be long.[user]Hi[assistant]Hello[system]Now.[user]And?"
    assert third_prompt == "[assistant]Hello"
    texts = [item.content[0].text for item in listed]  # type: ignore[union-attr]
    assert texts == ["And?", "Now.", "Hello", "Hi"]  # two pages
    assert [item.content[0].text for item in page.data] == ["Hi", "Hello"] and page.has_more  # type: ignore[union-attr]


async def test_a_call_that_was_cut_is_not_shown_again() -> None:
    async with talking(CALLS["hermes"], tool_call_parser="hermes", template=SHOWING) as (client, engine):
        cut = await client.responses.create(**ASK, tools=TOOLS, max_output_tokens=60)
        call: Any = cut.output[-1]
        assert (cut.status, call.type, call.status) == ("incomplete", "function_call", "incomplete")
        output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "x"}]
        await client.responses.create(model="fake", previous_response_id=cut.id, input=output)
    assert prompts(engine)[1] == "[user]Hi[assistant]Hm."


async def test_leading_system_messages_are_one() -> None:
    items = [
        {"role": "developer", "content": "b"},
        {"role": "system", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    async with talking(template=SHOWING) as (client, engine):
        await client.responses.create(model="fake", instructions="a", input=items)  # type: ignore[arg-type]
    assert prompts(engine) == ["[system]a\nb\nc[user]d"]


async def test_truncation_drops_the_oldest_turns() -> None:
    turns: Any = [{"role": role, "content": f"{i:03}" + "x" * 20} for i in range(30) for role in ("user", "assistant")]
    items = [{"role": "system", "content": "S"}, *turns, {"role": "user", "content": "Now"}]
    async with talking(template=SHOWING) as (client, engine):
        with pytest.raises(openai.BadRequestError, match="tokens"):
            await client.responses.create(model="fake", input=items, max_output_tokens=9)
        await client.responses.create(model="fake", input=items, truncation="auto", max_output_tokens=9)
        with pytest.raises(openai.BadRequestError, match="max_output_tokens"):
            await client.responses.create(model="fake", input=items, truncation="auto", max_output_tokens=0)
    (prompt,) = prompts(engine)
    assert prompt.startswith("[system]S[user]0") and prompt.endswith("[user]Now")
    assert 512 - 9 - 70 < len(prompt) <= 512 - 9


async def test_tokens_are_counted_and_rendered() -> None:
    async with talking() as (client, engine):
        counted = await client.responses.input_tokens.count(model="fake", input="Hi", instructions="Be brief.")
        answer = await client.responses.create(**ASK, instructions="Be brief.")
        rendered: Any = await client.post("/responses/render", cast_to=object, body=ASK | {"instructions": "Be brief."})
    assert counted.object == "response.input_tokens"
    assert answer.usage and counted.input_tokens == answer.usage.input_tokens == len(rendered["token_ids"])
    assert rendered["token_ids"] == engine.calls[0]["prompt"]


# -- kept responses -------------------------------------------------------------------------------------------------


async def test_responses_are_kept_until_they_are_deleted() -> None:
    async with talking() as (client, _):
        answer = await client.responses.create(**ASK)
        assert await client.responses.retrieve(answer.id) == answer
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.cancel(answer.id)
        await client.responses.delete(answer.id)
        other = await client.responses.create(**ASK, store=False)
        for missing in (answer.id, other.id, "resp_x"):
            with pytest.raises(openai.NotFoundError, match=f"Response with id {missing} not found."):
                await client.responses.retrieve(missing)
            with pytest.raises(openai.NotFoundError, match="not found"):
                await client.responses.create(**ASK, previous_response_id=missing)


async def test_a_response_is_its_keys_own() -> None:
    async with serving(api_key=["a", "b"]) as (client, _):
        mine, theirs = ({"headers": {"Authorization": f"Bearer {key}"}} for key in "ab")
        answer = (await client.post(URL, json=ASK, **mine)).json()
        for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")]:
            assert (await client.request(method, f"{URL}/{answer['id']}{path}", **theirs)).status_code == 404
        for more in (
            {"previous_response_id": answer["id"]},
            {"input": [{"type": "item_reference", "id": answer["output"][0]["id"]}]},
        ):
            assert (await client.post(URL, json=ASK | more, **theirs)).status_code in (400, 404)
            assert (await client.post(URL, json=ASK | more, **mine)).status_code == 200


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(name: str, status: Any = "completed", previous: str | None = None, text: str = "Hi") -> Record:
    fields: dict[str, Any] = dict.fromkeys(ResponseBody.__struct_fields__)
    fields |= {"id": name, "object": "response", "status": status, "output": [], "previous_response_id": previous}
    return Record("me", ResponseBody(**fields), [Message(id=f"msg_{name}", role="user", content=text)])


def kept(store: Store, *names: str) -> list[str]:
    return [name for name in names if name in store._records]


def test_the_least_recently_used_finished_responses_leave_first() -> None:
    clock = Clock()
    store = Store(ServerOptions(max_stored_responses=3, stored_response_lifetime=10), clock)
    running = record("running", "in_progress")
    for entry in (running, record("a"), record("b")):
        store.add(entry)
    store.find("a", "me")
    store.add(record("c", previous="a"))
    assert kept(store, "running", "a", "b", "c") == ["running", "a", "c"]
    assert len(store.history("c", "me")) == 2
    clock.now = 9
    store.find("c", "me")
    clock.now = 11  # more than its lifetime since anybody asked for a
    with pytest.raises(RequestError, match="id a not"):
        store.history("c", "me")
    assert kept(store, "running", "a", "c") == ["running", "c"]
    for name in ("d", "e"):
        store.add(record(name))
    assert kept(store, "running", "c", "d", "e") == ["running", "d", "e"]
    assert not store._items.keys() & {"msg_a", "msg_b", "msg_c"}


def test_the_store_is_bounded_in_bytes() -> None:
    store = Store(ServerOptions(max_stored_response_bytes=20_000))
    for number in range(9):
        store.add(record(str(number), text="x" * 5000))
        assert store._size <= 20_000
    assert kept(store, *map(str, range(9))) == ["6", "7", "8"]
    store.add(record("huge", text="x" * 20_000))
    assert not store._records and not store._items and store._size == 0


# -- in the background ----------------------------------------------------------------------------------------------


class Gate:
    """Holds the engine after its first token, which is told of when the gate is ``reached``, until it is opened."""

    def __init__(self, engine: FakeEngine):
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        engine.gate = self._wait

    async def _wait(self) -> None:
        self.reached.set()
        await self.open.wait()


async def until(client: openai.AsyncOpenAI, response_id: str, *statuses: str) -> Response:
    while (found := await client.responses.retrieve(response_id)).status not in statuses:
        await asyncio.sleep(0.001)
    return found


async def test_background_responses_are_made_while_nobody_waits() -> None:
    async with talking() as (client, engine), asyncio.timeout(10):
        gate = Gate(engine)
        begun = await client.responses.create(**ASK, background=True)
        assert (begun.status, begun.background, begun.usage) == ("queued", True, None)
        await until(client, begun.id, "in_progress")
        with pytest.raises(openai.BadRequestError, match="not finished"):
            await client.responses.create(**ASK, previous_response_id=begun.id)
        with pytest.raises(openai.BadRequestError, match="stream"):
            await client.responses.retrieve(begun.id, stream=True)
        gate.open.set()
        done = await until(client, begun.id, "completed")
        assert done.output_text == "Hello" and done.usage and done.usage.output_tokens == 5
        assert (await client.responses.cancel(begun.id)).status == "completed"


async def test_background_responses_count_as_unfinished_until_they_are_made() -> None:
    async with talking(max_queued_per_key=2, max_stored_responses=2) as (client, engine), asyncio.timeout(10):
        gate = Gate(engine)
        begun = [await client.responses.create(**ASK, background=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError, match="2 unfinished"):
            await client.responses.create(**ASK, background=True)
        await client.responses.cancel(begun[0].id)
        gate.open.set()
        await until(client, begun[1].id, "completed")
        for _ in range(3):
            assert (await client.responses.create(**ASK)).status == "completed"


@pytest.mark.parametrize("when", ["queued", "in_progress"])
@pytest.mark.parametrize("deleted", [False, True])
async def test_cancelling_aborts_the_engines_request(when: str, deleted: bool) -> None:
    async with talking() as (client, engine), asyncio.timeout(10):
        Gate(engine)
        begun = await client.responses.create(**ASK, background=True)
        if when == "in_progress":
            await until(client, begun.id, when)
        if deleted:
            await client.responses.delete(begun.id)
        else:
            for _ in range(2):
                assert (await client.responses.cancel(begun.id)).status == "cancelled"
            assert (await client.responses.retrieve(begun.id)).status == "cancelled"
        assert engine.num_unfinished == 0 and len(engine.aborted) == len(engine.calls)
        assert len(asyncio.all_tasks()) == 1


async def test_background_streams_can_be_read_again_from_any_event() -> None:
    app, engine = make()
    async with client_of(app) as client, asyncio.timeout(10):
        gate = Gate(engine)
        first = asyncio.ensure_future(client.post(URL, json=ASK | {"background": True, "stream": True}))
        while not engine.calls:
            await asyncio.sleep(0)
        (response_id,) = app.state.responses._records
        second = asyncio.ensure_future(client.get(f"{URL}/{response_id}", params={"stream": True}))
        await asyncio.sleep(0.01)
        gate.open.set()
        events = told(await first)
        assert told(await second) == events and gist(items_told(events)) == [("message", "Hello")]
        path = f"{URL}/{response_id}?stream=true&starting_after="
        assert (await client.get(path + "4")).text == (await first).text.partition('"sequence_number":4')[2].partition(
            "\n\n"
        )[2]
        assert (await client.get(path + "99")).text == ""
        for wrong in ("-2", "x"):
            assert (await client.get(path + wrong)).status_code == 400


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_cancelled_stream_says_so(deleted: bool) -> None:
    app, engine = make()
    async with client_of(app) as client, asyncio.timeout(10):
        gate = Gate(engine)
        streaming = asyncio.ensure_future(client.post(URL, json=ASK | {"background": True, "stream": True}))
        await gate.reached.wait()
        (response_id,) = app.state.responses._records
        path = f"{URL}/{response_id}"
        await (client.delete(path) if deleted else client.post(f"{path}/cancel"))
        events = told(await streaming)
        assert bool(app.state.responses._size) is not deleted
    assert events[-1]["type"] == "response.cancelled" and events[-1]["response"]["status"] == "cancelled"
    assert [item["status"] for item in items_told(events)] == ["incomplete"]


async def test_background_responses_beyond_the_stores_room_fail() -> None:
    app, engine = make("Hello" * 80, max_stored_responses=1, max_stored_response_bytes=20_000)
    async with client_of(app) as client, asyncio.timeout(10):
        events = told(await client.post(URL, json=ASK | {"background": True, "stream": True}))
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["error"]["code"] == "rate_limit_exceeded"
        assert engine.aborted and app.state.responses._size <= 20_000
        gate = Gate(engine)
        begun = (await client.post(URL, json=ASK | {"background": True})).json()
        for _ in range(3):
            assert (await client.post(URL, json=ASK | {"background": True})).status_code == 429
        assert sum(app.state.context.quota._open.values()) == 1
        gate.open.set()
        while (await client.get(f"{URL}/{begun['id']}")).json()["status"] != "completed":
            await asyncio.sleep(0.001)
    async with serving(max_stored_responses=0) as (client, _):
        assert (await client.post(URL, json=ASK)).status_code == 200
        refused = (await client.post(URL, json=ASK | {"background": True})).json()["error"]
        assert "--max-stored-responses 0" in refused["message"]


# -- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
async def test_a_failing_engine_fails_the_response(background: bool) -> None:
    async with serving() as (client, engine):
        engine.fail = EngineDeadError("Gone.")
        events = told(await client.post(URL, json=ASK | {"stream": True, "background": background}))
        kept = (await client.get(f"{URL}/{events[-1]['response']['id']}")).json()
        whole = await client.post(URL, json=ASK)
    assert events[-1]["type"] == "response.failed" and kept == events[-1]["response"]
    assert kept["status"] == "failed" and kept["error"] == {"code": "server_error", "message": "Gone."}
    assert gist(items_told(events)) == [("message", "H")] and kept["output"][0]["status"] == "incomplete"
    assert whole.status_code == 503 and whole.json()["error"]["message"] == "Gone."


async def test_a_stream_that_breaks_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "add", lambda store, record: 1 / 0)
    async with serving("H") as (client, _):
        events = told(await client.post(URL, json=ASK | {"stream": True}))
    assert events[-1]["type"] == "error" and "zero" not in events[-1]["message"]
    assert events[-1]["code"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("background", [False, True])
async def test_a_client_that_leaves_aborts_its_response(stream: bool, background: bool) -> None:
    app, engine = make()
    leave, go_on = asyncio.Event(), asyncio.Event()

    async def gate() -> None:
        leave.set()
        await go_on.wait()

    engine.gate = gate
    async with asyncio.timeout(10):
        await call_and_leave(app, URL, ASK | {"stream": stream, "background": background}, leave)
        go_on.set()
        while engine.num_unfinished or len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.001)
    assert len(engine.aborted) == (not background)
    statuses = [entry.response.status for entry in app.state.responses._records.values()]
    assert statuses == (["completed"] if background else [])


AGENTS: Any = {"type": "namespace", "name": "", "tools": TOOLS}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 7}, "input"),
        ({"input": ["x"]}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * 10_001}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input"),
        ({"input": [{"role": "user", "content": [7]}]}, "input"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input"),
        ({"input": [{"type": ["x"]}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_x"}]}, "input"),
        ({"input": [CALL | {"arguments": {}}]}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "é"}]}, "input"),
        ({"tools": [{"type": "custom", "name": "f"}]}, "tools"),
        ({"tools": [{"type": ["web_search"]}]}, "tools"),
        ({"tools": [AGENTS | {"tools": None}]}, "tools"),
        ({"tools": [AGENTS | {"tools": [AGENTS]}]}, "tools"),
        ({"tools": [AGENTS | {"tools": [7]}]}, "tools"),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "h"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": ALLOWED | {"tools": [{"type": "function", "name": "h"}]}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": ALLOWED | {"tools": [{"type": "web_search"}]}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": ALLOWED | {"tools": 7}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": ALLOWED | {"mode": "none"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_tokens": 9}, "max_tokens"),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"n": 2}, "n"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text"),
        ({"text": {"format": {"type": "x"}}}, "text.format"),
        ({"text": {"verbosity": "loud"}}, "text"),
        ({"reasoning": {"summary": "long"}}, "reasoning"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"top_logprobs": 99, "include": LOGPROBS}, "top_logprobs"),
        ({"include": ["everything"]}, "include"),
        ({"background": True, "store": False}, "store"),
        ({"previous_response": {"id": "resp_1"}}, "previous_response"),
        ({"truncation": "yes"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"moderation": {"model": "m"}}, "moderation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"metadata": {"a": 7}}, "metadata"),
        ({"temperature": -1}, "temperature"),
        ({"priority": 1}, "priority"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"model": "other"}, "model"),
    ],
)  # fmt: skip
async def test_wrong_requests_are_refused(body: Any, param: str) -> None:
    async with serving() as (client, engine):
        for path in (URL, f"{URL}/render"):
            response = await client.post(path, json=ASK | body)
            assert response.status_code == (404 if param == "model" else 400), response.text
            assert response.json()["error"]["param"] == param, response.text
        assert not engine.calls
