"""Tokens in and out: a derendered answer is the route's own; aborts, tokenizers, scores, batches of conversations."""

import asyncio
import json
import math
from typing import Any

import pytest

from headrace.frontend.door import Admitted
from headrace.types import CompletionOutput, Logprob, RequestOutput

from .app import CHAT, CHATS, COMPLETIONS, GENERATES, TEXT, client_of, events, make, serving

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = 'Hm.<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
PASSING = ("id", "created", "system_fingerprint")


def lasting(answer: Any) -> Any:
    """An answer without what differs between two equal ones."""
    for name in PASSING:
        answer.pop(name)
    for choice in answer["choices"]:
        for call in choice.get("message", {}).get("tool_calls", []):
            call.pop("id")
    return answer


# -- derender -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "fields"),
    [
        ("Hello", {}),
        ("Hello", {"n": 2, "temperature": 0.5}),
        ("Hello", {"logprobs": True, "top_logprobs": 2, "prompt_logprobs": 1}),
        ("Hello", {"return_token_ids": True, "return_prompt_text": True}),
        ("Hello", {"max_tokens": 2}),
        (CALL, {"tools": [TOOL]}),
        (CALL, {"tools": [TOOL], "tool_choice": "none"}),
        ('[{"name": "f", "arguments": {}}]', {"tools": [TOOL], "tool_choice": "required"}),
        ("Why?</think>So.", {}),
        ("Why?</think>So.", {"include_reasoning": False, "stream": True}),
    ],
)
async def test_a_derendered_chat_is_the_routes_own_answer(reply: str, fields: Any) -> None:
    body = CHAT | fields
    async with serving(reply, tool_call_parser="hermes", reasoning_parser="deepseek_r1") as (client, _):
        own = (await client.post(CHATS, json=body | {"stream": False})).json()
        rendered = (await client.post(f"{CHATS}/render", json=body | {"stream": False})).json()
        generated = (await client.post(GENERATES, json=rendered)).json()
        asked = {"model": "fake", "generate_response": generated, "chat_request": body}
        answer = (await client.post(f"{CHATS}/derender", json=asked)).json()
    assert lasting(answer) == lasting(own)


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": ["One", "Two"], "n": 2}, {"logprobs": 2, "echo": True, "prompt_logprobs": 2}]
)
async def test_a_derendered_completion_is_the_routes_own_answer(fields: Any) -> None:
    body = TEXT | fields
    async with serving() as (client, _):
        own = (await client.post(COMPLETIONS, json=body)).json()
        rendered = (await client.post(f"{COMPLETIONS}/render", json=body)).json()
        generated = [(await client.post(GENERATES, json=one)).json() for one in rendered]
        asked = {"generate_responses": generated, "completion_request": body}
        answer = (await client.post(f"{COMPLETIONS}/derender", json=asked)).json()
    assert lasting(answer) == lasting(own)


async def test_tokens_alone_are_derendered_as_text() -> None:
    generated = {
        "choices": [{"index": 0, "token_ids": [72, 105], "finish_reason": "length"}],
        "kv_transfer_params": None,
    }
    async with serving(tool_call_parser="hermes") as (client, engine):
        chat = (
            await client.post(f"{CHATS}/derender", json={"generate_response": generated, "prompt_tokens": 9})
        ).json()
        text = (
            await client.post(
                f"{COMPLETIONS}/derender", json={"generate_responses": [generated] * 2, "prompt_tokens": [3, 4]}
            )
        ).json()
    assert (chat["choices"][0]["message"]["content"], chat["choices"][0]["finish_reason"]) == ("Hi", "length")
    assert (chat["usage"]["prompt_tokens"], chat["usage"]["total_tokens"]) == (9, 11)
    assert [(choice["index"], choice["text"]) for choice in text["choices"]] == [(0, "Hi"), (1, "Hi")]
    assert (text["usage"]["prompt_tokens"], text["usage"]["completion_tokens"]) == (7, 4)
    assert not engine.calls


async def test_a_stop_token_has_no_text_and_a_stop_string_is_cut() -> None:
    async def derendered(token_ids: list[int], stop_reason: Any, **fields: Any) -> str:
        choice = {"index": 0, "token_ids": token_ids, "finish_reason": "stop", "stop_reason": stop_reason}
        asked = {"generate_response": {"choices": [choice]}, "chat_request": CHAT | fields}
        answer = (await client.post(f"{CHATS}/derender", json=asked)).json()
        return str(answer["choices"][0]["message"]["content"])

    async with serving() as (client, _):
        assert await derendered([72, 105, 3], None, skip_special_tokens=False) == "Hi"
        assert await derendered([72, 105, 33], 33, stop_token_ids=[33]) == "Hi"
        assert await derendered([72, 105, 33], 33, stop_token_ids=[33], include_stop_str_in_output=True) == "Hi!"
        assert await derendered([72, 105, 33, 34], "!", stop="!") == "Hi"
        assert await derendered([72, 105], None) == "Hi"  # a grammar ended it


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHATS, {"generate_response": {}}, "generate_response"),
        (CHATS, {"generate_response": {"choices": [{"index": 0, "token_ids": [999]}]}}, "generate_response"),
        (CHATS, {"generate_response": {"choices": [{"index": 0, "token_ids": ["a"]}]}}, "generate_response"),
        (CHATS, {"generate_response": {"choices": [{"index": 1, "token_ids": [1]}]}}, "generate_response"),
        (CHATS, {"generate_response": {"choices": []}, "stream": True}, "stream"),
        (CHATS, {"generate_response": {"choices": []}, "model": "other"}, "model"),
        (CHATS, {"generate_response": {"choices": []}, "chat_request": {"messages": []}}, "messages"),
        (COMPLETIONS, {"generate_responses": []}, "generate_responses"),
        (COMPLETIONS, {"generate_responses": [{"choices": []}], "completion_request": {"prompt": ["a", "b"]}}, None),
        (COMPLETIONS, {"generate_responses": [{"choices": []}], "prompt_tokens": [1, 2]}, "prompt_tokens"),
    ],
)
async def test_what_cannot_be_derendered_is_refused(path: str, body: Any, param: str | None) -> None:
    async with serving() as (client, _):
        answer = await client.post(f"{path}/derender", json=body)
    assert answer.status_code in (400, 404)
    assert param in (None, answer.json()["error"]["param"])


# -- generate, abort ------------------------------------------------------------------------------------------------


async def test_requests_are_aborted_by_their_id_or_name_and_by_their_own_key_only() -> None:
    app, engine = make(api_key=["mine", "yours"])
    aborted: list[str] = []
    gate = asyncio.Event()

    async def abort(ids: list[str]) -> None:
        aborted.extend(ids)

    engine.abort, engine.gate = abort, gate.wait  # type: ignore[attr-defined]
    async with client_of(app) as client:

        async def ask(key: str, *names: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            answer = await client.post("/inference/v1/abort_requests", json={"request_ids": names}, headers=headers)
            return answer.status_code

        headers = {"Authorization": "Bearer mine"}
        body = {"token_ids": [5], "request_id": "job 1"}
        running = [
            asyncio.ensure_future(client.post(GENERATES, json=body | {"stream": stream}, headers=headers))
            for stream in (False, True)
        ]
        while len(engine.calls) < 2:
            await asyncio.sleep(0)
        ids = sorted(call["request_id"] for call in engine.calls)
        assert await ask("yours", "job 1", *ids) == 200
        assert await ask("none", "job 1") == 401
        assert aborted == []
        assert await ask("mine", ids[0], "unknown", "") == 200
        assert aborted == [ids[0]]
        assert await ask("mine", "job 1") == 200
        assert sorted(aborted[1:]) == ids
        gate.set()
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        assert await ask("mine", "job 1", *ids) == 200
        assert len(aborted) == 3
        assert (await client.post("/inference/v1/abort_requests", json={}, headers=headers)).status_code == 400


async def test_what_is_asked_of_the_prompt_comes_streamed_or_not() -> None:
    params = {"prompt_logprobs": 0, "detokenize": False}
    body = {"token_ids": [97, 98], "sampling_params": params, "return_token_ids": True, "output_mode": "text"}
    async with serving("ab") as (client, _):
        whole = (await client.post(GENERATES, json=body)).json()
        first, second = events(await client.post(GENERATES, json=body | {"stream": True}))
        bare = (await client.post(GENERATES, json={"token_ids": [97]})).json()
    assert whole["prompt_logprobs"] == first["prompt_logprobs"]
    assert list(whole["prompt_logprobs"][1]) == ["98"]
    assert whole["prompt_token_ids"] == first["prompt_token_ids"] == [97, 98]
    assert "prompt_token_ids" not in second
    assert whole["choices"][0]["text"] == "ab"
    assert (bare["prompt_logprobs"], "prompt_token_ids" in bare) == (None, False)
    async with serving(skip_tokenizer_init=True) as (client, _):
        refused = await client.post(GENERATES, json={"token_ids": [97], "output_mode": "text"})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "output_mode")
        assert (await client.post(GENERATES, json={"token_ids": [97]})).status_code == 200


# -- tokenize -------------------------------------------------------------------------------------------------------

TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}<{{ tool.function.name }}>{% endfor %}{{ style }}{{ messages[0].content }}"
)


async def test_chats_are_tokenized_as_they_are_rendered() -> None:
    body = CHAT | {"tools": [TOOL], "chat_template_kwargs": {"style": "plain "}}
    async with serving(chat_template=TOOL_TEMPLATE) as (client, engine):
        tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
        rendered = (await client.post(f"{CHATS}/render", json=body)).json()["token_ids"]
        hidden = {"tool_choice": "none", "add_special_tokens": True, "return_token_strs": True}
        without = (await client.post("/tokenize", json=CHAT | hidden)).json()
    assert tokens == rendered
    assert engine.tokenizer.decode(tokens) == "<f>plain Hi"
    assert without["token_strs"] == ["\x02", "H", "i"]


async def test_the_tokenizers_settings_are_told_where_that_is_allowed() -> None:
    async with serving() as (client, _):
        assert (await client.get("/tokenizer_info")).status_code == 404
    async with serving(enable_tokenizer_info_endpoint=True, api_key=["k"]) as (client, engine):
        engine.tokenizer.hf.init_kwargs["vocab_file"] = "/secret/place"
        assert (await client.get("/tokenizer_info")).status_code == 401
        answer = await client.get("/tokenizer_info", headers={"Authorization": "Bearer k"})
    told = answer.json()
    assert told["tokenizer_class"]
    assert (told["eos_token"], "<|im_start|>" in told["chat_template"]) == ("\x03", True)
    assert "secret" not in json.dumps(told)


# -- scores ---------------------------------------------------------------------------------------------------------

LOGPROBS = {65: -1.0, 66: -3.0}  # of the labels A and B


def scored(engine: Any) -> None:
    """Let the engine answer with some token, and the log-probabilities it is asked for."""

    async def run(admitted: Admitted, request_id: str, **options: Any) -> Any:
        prompt, labels = admitted.token_ids, admitted.params.logprob_token_ids or []
        engine.calls.append({"prompt": prompt, "params": admitted.params})
        entry = {67: Logprob(-0.5, 1)} | {label: Logprob(LOGPROBS[label]) for label in labels}
        yield RequestOutput(request_id, None, prompt, [CompletionOutput(0, "", [67], None, [entry], "length")], True)

    engine.run = run


async def test_items_are_scored_by_the_labels_probabilities() -> None:
    body = {"query": "Is it? ", "items": ["one", "two"], "label_token_ids": [65, 66]}
    async with serving() as (client, engine):
        scored(engine)
        answer = (await client.post("/generative_scoring", json=body)).json()
        plain = (await client.post("/generative_scoring", json=body | {"apply_softmax": False})).json()
        tokens = {"query": [1, 2], "items": [[3]], "label_token_ids": [66, 65, 66], "item_first": True}
        turned = (await client.post("/generative_scoring", json=tokens)).json()
    a, b = math.exp(-1), math.exp(-3)
    assert [entry["score"] for entry in answer["data"]] == pytest.approx([a / (a + b)] * 2)
    assert [entry["score"] for entry in plain["data"]] == pytest.approx([a] * 2)
    assert turned["data"] == [{"index": 0, "object": "score", "score": pytest.approx(b / (a + b))}]
    counts = {"prompt_tokens": 22, "total_tokens": 24, "completion_tokens": 2, "prompt_tokens_details": None}
    assert answer["usage"] == counts
    assert engine.tokenizer.decode(engine.calls[0]["prompt"]) == "Is it? one"
    assert engine.calls[-1]["prompt"] == [3, 1, 2]


@pytest.mark.parametrize(
    ("options", "fields", "param"),
    [
        ({}, {"items": []}, "items"),
        ({}, {"label_token_ids": []}, "label_token_ids"),
        ({}, {"label_token_ids": [-1]}, "label_token_ids"),
        ({}, {"label_token_ids": [1, 256]}, "label_token_ids"),
        ({}, {"items": ["a", [1]]}, "items"),
        ({}, {"label_token_ids": [1] * 1025}, "label_token_ids"),
        ({}, {"stream": True}, "stream"),
        ({"logprobs_mode": "processed_logprobs"}, {}, "label_token_ids"),
    ],
)
async def test_what_cannot_be_scored_is_refused(options: Any, fields: Any, param: str) -> None:
    body = {"query": "q", "items": ["a"], "label_token_ids": [1]}
    async with serving(**options) as (client, engine):
        answer = await client.post("/generative_scoring", json=body | fields)
    assert (answer.status_code, answer.json()["error"]["param"], engine.calls) == (400, param, [])


# -- several conversations ------------------------------------------------------------------------------------------


async def test_conversations_of_a_batch_have_their_choices_in_one_answer() -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("One", "Three", "Five!")]
    async with serving(enable_prompt_tokens_details=True) as (client, engine):
        body = {"messages": conversations, "n": 2, "max_tokens": 3, "return_token_ids": True}
        answer = (await client.post(f"{CHATS}/batch", json=body)).json()
        single = [(await client.post(CHATS, json=body | {"messages": each})).json() for each in conversations]
    assert [choice.pop("index") for choice in answer["choices"]] == list(range(6))
    expected = [choice for one in single for choice in one["choices"]]
    assert [choice | {"index": None} for choice in answer["choices"]] == [c | {"index": None} for c in expected]
    assert answer["usage"]["total_tokens"] == sum(one["usage"]["total_tokens"] for one in single)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}
    assert answer["object"] == "chat.completion"
    assert len(engine.calls) == 6


async def test_a_batch_of_conversations_is_aborted_as_a_whole() -> None:
    async with serving() as (client, engine):
        engine.fail = ValueError("boom")
        answer = await client.post(f"{CHATS}/batch", json={"messages": [CHAT["messages"]] * 3})
        assert answer.status_code == 500
        assert engine.num_unfinished == 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages"),
        (CHAT, "messages"),
        ({"messages": [CHAT["messages"]], "stream": True}, "stream"),
        ({"messages": [CHAT["messages"]], "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"messages": [CHAT["messages"]] * 200, "n": 100}, "n"),
        ({"messages": [CHAT["messages"]] * 1025}, "messages"),
        ({"messages": [CHAT["messages"], [{"role": "user"}, 5]]}, "messages"),
    ],
)
async def test_what_is_no_batch_of_conversations_is_refused(body: Any, param: str) -> None:
    async with serving() as (client, engine):
        answer = await client.post(f"{CHATS}/batch", json=body)
    assert (answer.status_code, answer.json()["error"]["param"], engine.calls) == (400, param, [])


async def test_generated_tokens_stream_as_they_come() -> None:
    async with serving("abc") as (client, _):
        body = {"token_ids": [5, 6], "stream": True, "stream_options": {"include_usage": True}, "output_mode": "text"}
        chunks = events(await client.post(GENERATES, json=body | {"sampling_params": {"n": 2}}))
    *pieces, last = chunks
    for index in (0, 1):
        own = [choice for chunk in pieces for choice in chunk["choices"] if choice["index"] == index]
        assert "".join(choice["text"] for choice in own) == "abc"
        assert [token for choice in own for token in choice["token_ids"]] == [97, 98, 99]
        assert [choice["finish_reason"] for choice in own] == [None, None, "stop"]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 6)
