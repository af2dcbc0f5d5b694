"""The HTTP server against a scripted engine: shapes, parameters, refusals, guards, streams and early ends."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

from headrace.config import Config
from headrace.errors import EngineDeadError
from headrace.frontend.metrics import Metrics
from headrace.server.app import build_app
from headrace.types import SamplingParams

from .app import CHAT, CHATS, COMPLETIONS, GENERATE, GENERATES, TEXT, call_and_leave, client_of, events, make, serving
from .fake_engine import MODEL_LEN, FakeEngine

# -- answers --------------------------------------------------------------------------------------------------------


async def test_completion_has_vllms_shape() -> None:
    async with serving() as (client, _):
        answer = (await client.post(COMPLETIONS, json=TEXT | {"max_tokens": 3})).json()
    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer.pop("system_fingerprint").startswith("headrace-")
    choice = dict.fromkeys(("logprobs", "stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids"))
    assert answer == {
        "object": "text_completion",
        "model": "fake",
        "choices": [choice | {"index": 0, "text": "Hel", "finish_reason": "length"}],
        "service_tier": None,
        "usage": {"prompt_tokens": 4, "total_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": None},
        "kv_transfer_params": None,
    }


async def test_chat_has_vllms_shape() -> None:
    async with serving(enable_prompt_tokens_details=True) as (client, engine):
        answer = (await client.post(CHATS, json=CHAT)).json()
    assert answer["id"].startswith("chatcmpl-")
    message = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    message |= {"role": "assistant", "content": "Hello", "tool_calls": []}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    assert answer["choices"] == [choice | dict.fromkeys(("logprobs", "stop_reason", "token_ids"))]
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert engine.tokenizer.decode(engine.calls[0]["prompt"], False) == prompt


async def test_openai_client_streams_and_counts() -> None:
    app, _ = make(enable_request_id_headers=True)
    async with openai.AsyncOpenAI(api_key="none", base_url="http://server/v1", http_client=client_of(app)) as client:
        assert [card.id async for card in client.models.list()] == ["fake"]
        assert (await client.models.retrieve("fake")).id == "fake"
        texts, usage = ["", ""], None
        stream = await client.chat.completions.create(
            model="fake", n=2, stream=True, stream_options={"include_usage": True}, **CHAT
        )
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        assert texts == ["Hello", "Hello"]
        assert usage is not None
        assert usage.completion_tokens == 10
        text = ""
        async for part in await client.completions.create(model="fake", prompt="Say", stream=True):
            text += part.choices[0].text
        assert text == "Hello"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.completions.create(model="other", prompt="Say")


async def test_chat_stream_names_the_role_first_and_the_reason_last() -> None:
    async with serving("ab") as (client, _):
        options = {"stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
        chunks = events(await client.post(CHATS, json=CHAT | options))
    first, a, b, last = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(first["prompt_token_ids"]) == last["usage"]["prompt_tokens"]
    assert a["choices"][0]["token_ids"] == [97]
    assert a["choices"][0]["finish_reason"] is None
    assert b["choices"][0]["delta"] == {"content": "b"}
    assert (b["choices"][0]["finish_reason"], b["choices"][0]["stop_reason"]) == ("stop", None)
    assert "usage" not in b
    assert last["choices"] == []


@pytest.mark.parametrize(
    ("forced", "asked"), [(True, None), (False, {"include_usage": True, "continuous_usage_stats": True})]
)
@pytest.mark.parametrize(("path", "body"), [(COMPLETIONS, TEXT), (CHATS, CHAT), (GENERATES, GENERATE)])
async def test_continuous_usage(path: str, body: Any, forced: bool, asked: Any) -> None:
    async with serving(enable_force_include_usage=forced) as (client, _):
        chunks = events(
            await client.post(path, json=body | {"stream": True} | ({"stream_options": asked} if asked else {}))
        )
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-2:] == [5, 5]


async def test_many_prompts_are_numbered_prompt_by_prompt() -> None:
    body = {"prompt": ["a", "b"], "n": 2, "temperature": 1}
    async with serving("xy") as (client, engine):
        whole = (await client.post(COMPLETIONS, json=body)).json()
        streamed = events(await client.post(COMPLETIONS, json=body | {"stream": True}))
        token_ids = (await client.post(COMPLETIONS, json={"prompt": [[7, 8], [9]]})).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["usage"]["completion_tokens"] == 8
    texts = dict.fromkeys(range(4), "")
    for chunk in streamed:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert set(texts.values()) == {"xy"}
    assert len(token_ids["choices"]) == 2
    assert [call["prompt"] for call in engine.calls[-2:]] == [[7, 8], [9]]
    assert len({call["request_id"] for call in engine.calls}) == 6


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_and_logprobs(stream: bool) -> None:
    """Offsets count the tokens as they are shown, those that the text leaves out as well."""
    body = {"prompt": "ab", "echo": True, "logprobs": 2, "stream": stream}
    async with serving("cd") as (client, _):
        response = await client.post(COMPLETIONS, json=body)
    choices = [chunk["choices"][0] for chunk in events(response)] if stream else response.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "abcd"
    joined = {key: [entry for c in choices for entry in c["logprobs"][key]] for key in choices[0]["logprobs"]}
    assert joined == {
        "text_offset": [0, 1, 2, 3, 4],
        "tokens": ["\x02", "a", "b", "c", "d"],
        "token_logprobs": [None, -1.0, -1.0, -1.0, -1.0],
        "top_logprobs": [None, *({c: -1.0, chr(ord(c) - 1): -0.5} for c in "abcd")],
    }


async def test_echo_of_the_prompt_alone() -> None:
    async with serving() as (client, _):
        answer = (await client.post(COMPLETIONS, json={"prompt": "ab", "echo": True, "max_tokens": 0})).json()
        answer_ids = (await client.post(COMPLETIONS, json={"prompt": [97, 98], "echo": True})).json()
    assert answer["choices"][0]["text"] == "ab"
    assert answer["usage"]["completion_tokens"] == 0
    assert answer_ids["choices"][0]["text"] == "abHello"


async def test_chat_logprobs_list_the_likeliest() -> None:
    body = CHAT | {"logprobs": True, "top_logprobs": 4, "max_tokens": 1}
    async with serving() as (client, _):
        answer = (await client.post(CHATS, json=body)).json()
        as_ids = (await client.post(CHATS, json=body | {"return_tokens_as_token_ids": True})).json()
    (entry,) = answer["choices"][0]["logprobs"]["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("H", -1.0, [72])
    assert [(top["token"], top["logprob"]) for top in entry["top_logprobs"]] == [
        ("G", -0.5), ("H", -1.0), ("E", -1.5), ("D", -9999.0)
    ]  # fmt: skip
    assert as_ids["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:72"


async def test_prompt_logprobs_and_prompt_text() -> None:
    async with serving() as (client, _):
        answer = (await client.post(CHATS, json=CHAT | {"prompt_logprobs": 0, "return_prompt_text": True})).json()
    assert answer["prompt_text"].startswith("<|im_start|>user")
    assert answer["prompt_logprobs"][0] is None
    assert answer["prompt_logprobs"][1] == {"124": {"logprob": -1.0, "rank": 2, "decoded_token": "|"}}


async def test_chat_continues_and_echoes_the_final_message() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well, "}]
    body = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True, "echo": True}
    async with serving() as (client, engine):
        answer = (await client.post(CHATS, json=body)).json()
        streamed = events(await client.post(CHATS, json=body | {"stream": True}))
    assert answer["choices"][0]["message"]["content"] == "Well, Hello"
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in streamed) == "Well, Hello"
    assert engine.tokenizer.decode(engine.calls[0]["prompt"], False).endswith("assistant\nWell, ")


@pytest.mark.parametrize(("path", "body"), [(CHATS, CHAT), (COMPLETIONS, TEXT)])
async def test_rendered_bodies_generate_the_same(path: str, body: Any) -> None:
    async with serving() as (client, engine):
        whole = (await client.post(path, json=body | {"temperature": 0.5, "stop": "!", "logit_bias": {"5": 1}})).json()
        rendered = (await client.post(path + "/render", json=body | {"temperature": 0.5, "stop": "!"})).json()
        rendered = rendered[0] if isinstance(rendered, list) else rendered
        answer = (await client.post(GENERATES, json=rendered | {"output_mode": "text"})).json()
    assert engine.calls[1]["prompt"] == engine.calls[0]["prompt"]
    assert engine.calls[1]["params"].temperature == 0.5
    assert answer["choices"][0]["text"] == "Hello"
    assert answer["choices"][0]["token_ids"] == [ord(char) for char in "Hello"]
    assert answer["usage"] == whole["usage"]
    assert rendered["request_id"] in answer["request_id"]


async def test_generate_streams_tokens() -> None:
    async with serving("ab") as (client, engine):
        body = GENERATE | {"stream": True, "return_token_ids": True, "sampling_params": {"logprobs": 1, "seed": None}}
        first, second = events(await client.post(GENERATES, json=body))
    assert first["prompt_token_ids"] == [5, 6]
    assert second["choices"][0]["token_ids"] == [98]
    assert second["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["token_id"] == 97
    assert "text" not in second["choices"][0]
    assert engine.calls[0]["params"].detokenize is False


async def test_tokenize_and_back() -> None:
    async with serving() as (client, _):
        text = (await client.post("/tokenize", json={"prompt": "ab", "return_token_strs": True})).json()
        chat = (await client.post("/tokenize", json=CHAT | {"add_generation_prompt": False})).json()
        back = (await client.post("/detokenize", json={"tokens": chat["tokens"]})).json()
    assert text == {"count": 3, "max_model_len": MODEL_LEN, "tokens": [2, 97, 98], "token_strs": ["\x02", "a", "b"]}
    assert back == {"prompt": "<|im_start|>user\nHi<|im_end|>\n"}


async def test_small_routes() -> None:
    async with serving(served_model_name=["big", "small"], model="org/big", enable_server_load_tracking=True) as (
        client,
        _,
    ):
        for path in ("/health", "/ping", "/version", "/load", "/metrics", "/docs", "/redoc", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        for path in ("/health", "/ping", "/version"):
            assert (await client.head(path)).status_code == 200
        assert (await client.post("/ping")).status_code == 200
        assert (await client.get("/load")).json() == {"server_load": 0}
        chat = (await client.post("/invocations", json=CHAT)).json()
        text = (await client.post("/invocations", json=TEXT | {"model": "small"})).json()
    assert chat["object"] == "chat.completion"
    assert (text["object"], text["model"]) == ("text_completion", "small")


@pytest.mark.parametrize(("dev", "status"), [(False, 404), (True, 200)])
async def test_caches_are_emptied_in_development_mode_only(dev: bool, status: int) -> None:
    async with serving(server_dev_mode=dev) as (client, engine):
        for name in ("prefix", "mm", "encoder"):
            assert (await client.post(f"/reset_{name}_cache")).status_code == status
    assert engine.num_resets == int(dev)


@pytest.mark.parametrize("accept", ["*/*", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"])
async def test_metric_names_keep_their_colon_whatever_a_scraper_accepts(accept: str) -> None:
    config = Config.from_kwargs()
    engine = FakeEngine(config)
    app = build_app(config, engine, Metrics(config, engine.info, "fake").registry)  # type: ignore[arg-type]
    async with client_of(app) as client:
        response = await client.get("/metrics", headers={"Accept": accept})
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert '\nvllm:num_requests_running{engine="0",model_name="fake"} 0.0\n' in response.text


@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
async def test_docs_need_no_other_host(root_path: str) -> None:
    async with client_of(make()[0], root_path) as client:
        for page in ("/docs", "/redoc"):
            text = (await client.get(root_path + page)).text
            used = re.findall(r"""(?:src|href|spec-url)="([^"]*)"|url: '([^']*)'""", text)
            urls = {url for pair in used for url in pair if url and url != "data:,"}
            assert root_path + "/openapi.json" in urls
            assert {(await client.get(url)).status_code for url in urls if not url.startswith("https://github")} == {
                200
            }
        assert (await client.get(root_path + "/docs/secret")).json()["error"]["code"] == 404


async def test_a_slash_after_models_lists_them_too() -> None:
    async with serving(served_model_name=["mine"]) as (client, _):
        [card] = (await client.get("/v1/models/")).json()["data"]
    assert (card["id"], card["root"]) == ("mine", "SmolLM2-135M-Instruct")  # whose tokenizer clients may look for


async def test_docs_can_be_off() -> None:
    async with serving(disable_fastapi_docs=True) as (client, _):
        assert {(await client.get(path)).status_code for path in ("/docs", "/redoc", "/openapi.json")} == {404}
        assert (await client.get("/x")).json()["error"]["message"] == "There is no route GET /x."


# -- parameters -----------------------------------------------------------------------------------------------------

BEAMS = {"use_beam_search": True, "n": 2, "temperature": 0}
BEAM_PARAMS = SamplingParams(use_beam_search=True, n=2, temperature=0)
ALL_EXTRAS = {
    "min_tokens": 2, "top_k": 5, "min_p": 0.1, "presence_penalty": 0.5, "frequency_penalty": -0.5,
    "repetition_penalty": 1.1, "seed": 7, "stop_token_ids": [9], "bad_words": ["x"], "allowed_token_ids": [1, 2],
    "ignore_eos": True, "include_stop_str_in_output": True, "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (COMPLETIONS, {}, SamplingParams(max_tokens=16)),
        (COMPLETIONS, {"max_tokens": None, "n": None, "stop": None}, SamplingParams(max_tokens=None)),
        (COMPLETIONS, {"logprobs": 3, "stop": "a"}, SamplingParams(logprobs=3, stop=["a"])),
        (COMPLETIONS, {"echo": True, "logprobs": 2}, SamplingParams(logprobs=2, prompt_logprobs=2)),
        (COMPLETIONS, ALL_EXTRAS, SamplingParams(**ALL_EXTRAS)),
        (COMPLETIONS, {"vllm_xargs": {"a": 1}}, SamplingParams(extra_args={"a": 1})),
        (COMPLETIONS, {"logit_bias": {"5": -100}}, SamplingParams(logit_bias={5: -100.0})),
        (COMPLETIONS, {"best_of": 1, "suffix": None, "user": "me", "unknown": {}}, SamplingParams()),
        (COMPLETIONS, {"best_of": 3, "n": 2}, SamplingParams(best_of=3, n=2)),
        (COMPLETIONS, BEAMS | {"length_penalty": 0.5, "best_of": 4}, BEAM_PARAMS.clone(length_penalty=0.5, best_of=4)),
        (CHATS, BEAMS | {"early_stopping": "never"}, BEAM_PARAMS.clone(max_tokens=None, early_stopping="never")),
        (CHATS, {}, SamplingParams(max_tokens=None)),
        (CHATS, {"max_tokens": 3, "max_completion_tokens": 4}, SamplingParams(max_tokens=4)),
        (CHATS, {"logprobs": True, "top_logprobs": 2, "n": 3}, SamplingParams(max_tokens=None, logprobs=2, n=3)),
        (CHATS, {"top_logprobs": 0, "stream_interval": 3}, SamplingParams(max_tokens=None, stream_interval=3)),
        (CHATS, {"prediction": {"type": "content", "content": "x"}}, SamplingParams(max_tokens=None)),
        (CHATS, {"logprobs": True}, SamplingParams(max_tokens=None, logprobs=0)),
        (
            CHATS,
            {"logprobs": True, "logprob_token_ids": [65]},
            SamplingParams(max_tokens=None, logprobs=0, logprob_token_ids=[65]),
        ),
        (
            COMPLETIONS,
            {"echo": True, "logprob_token_ids": [65]},
            SamplingParams(prompt_logprobs=0, logprob_token_ids=[65]),
        ),
        (CHATS, {"response_format": {"type": "text"}, "tools": []}, SamplingParams(max_tokens=None)),
        (CHATS, {"tools": [{"type": "function"}], "tool_choice": "none"}, SamplingParams(max_tokens=None)),
        (GENERATES, {"sampling_params": {"temperature": 0}}, SamplingParams(temperature=0)),
        (GENERATES, {"sampling_params": {"max_tokens": None}}, SamplingParams(max_tokens=None)),
    ],
)  # fmt: skip
async def test_fields_become_sampling_params(path: str, body: Any, expected: SamplingParams) -> None:
    base = {COMPLETIONS: TEXT, CHATS: CHAT, GENERATES: GENERATE}[path]
    async with serving() as (client, engine):
        response = await client.post(path, json=base | body)
        assert response.status_code == 200, response.text
    params = engine.calls[0]["params"]
    assert params.clone(output_kind=expected.output_kind, detokenize=True) == expected


async def test_model_defaults_fill_what_is_not_given() -> None:
    async with serving() as (client, engine):
        engine.info.default_sampling = {"temperature": 0.25, "top_k": 40, "max_tokens": 99}
        for body in ({}, {"temperature": 1.5, "max_tokens": 5}, {"top_k": None}):
            assert (await client.post(CHATS, json=CHAT | body)).status_code == 200
    given = [(c["params"].temperature, c["params"].top_k, c["params"].max_tokens) for c in engine.calls]
    assert given == [(0.25, 40, 99), (1.5, 40, 5), (0.25, 40, 99)]


async def test_ids_are_ours_and_labels_the_callers() -> None:
    async with serving(enable_request_id_headers=True) as (client, engine):
        label = {"X-Request-Id": "my/../id 1"}
        answers = [await client.post(COMPLETIONS, json=TEXT, headers=label) for _ in range(2)]
        without = await client.get("/nope")
    ids = [answer.json()["id"] for answer in answers]
    assert ids[0] != ids[1]
    assert all(name.startswith("cmpl-my..id1-") for name in ids)
    assert [call["request_id"] for call in engine.calls] == ids
    assert answers[0].headers["x-request-id"] == "my/../id 1"
    assert without.headers["x-request-id"]


# -- refusals -------------------------------------------------------------------------------------------------------

IMAGE = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (COMPLETIONS, {}, 400, "prompt"),
        (COMPLETIONS, {"prompt": []}, 400, "prompt"),
        (COMPLETIONS, {"prompt": ""} | {"add_special_tokens": False}, 400, "prompt"),
        (COMPLETIONS, {"prompt": [1, "a"]}, 400, "prompt"),
        (COMPLETIONS, {"prompt": [True]}, 400, "prompt"),
        (COMPLETIONS, {"prompt": [-1]}, 400, "prompt"),
        (COMPLETIONS, {"prompt": ["a"] * 2000}, 400, "prompt"),
        (COMPLETIONS, {"prompt": "a" * MODEL_LEN}, 400, "input_tokens"),
        (COMPLETIONS, {"prompt": ["a"] * 1000, "n": 100}, 400, "n"),
        (COMPLETIONS, TEXT | {"model": "nope"}, 404, "model"),
        (COMPLETIONS, TEXT | {"suffix": "x"}, 400, "suffix"),
        ("/v1/embeddings", {"input": "x", "late_chunking_params": {"chunk_size": 4}}, 400, "late_chunking_params"),
        (COMPLETIONS, TEXT | {"best_of": 2, "n": 3}, 400, "best_of"),
        (COMPLETIONS, TEXT | {"best_of": 2, "temperature": 0}, 400, "best_of"),
        (COMPLETIONS, {"prompt": ["a"] * 1000, "best_of": 100}, 400, "best_of"),
        (COMPLETIONS, TEXT | {"logprobs": 21}, 400, "logprobs"),
        (COMPLETIONS, TEXT | {"logprobs": -1}, 400, "logprobs"),
        (COMPLETIONS, TEXT | {"max_tokens": 0}, 400, "max_tokens"),
        (COMPLETIONS, TEXT | {"max_tokens": 10**30}, 400, "max_tokens"),
        (COMPLETIONS, TEXT | {"max_tokens": "many"}, 400, "max_tokens"),
        (COMPLETIONS, TEXT | {"n": 0}, 400, "n"),
        (COMPLETIONS, TEXT | {"n": 20_000}, 400, "n"),
        (COMPLETIONS, TEXT | {"n": 2, "temperature": 0}, 400, "n"),
        (COMPLETIONS, TEXT | {"temperature": -1}, 400, "temperature"),
        (COMPLETIONS, TEXT | {"top_p": 0}, 400, "top_p"),
        (COMPLETIONS, TEXT | {"top_k": -2}, 400, "top_k"),
        (COMPLETIONS, TEXT | {"seed": 2**70}, 400, "seed"),
        (COMPLETIONS, TEXT | {"stop": ["a"] * 65}, 400, "stop"),
        (COMPLETIONS, TEXT | {"stop": [""]}, 400, "stop"),
        (COMPLETIONS, TEXT | {"stop": "a" * 1025}, 400, "stop"),
        (COMPLETIONS, TEXT | {"bad_words": ["a"] * 129}, 400, "bad_words"),
        (COMPLETIONS, TEXT | {"bad_words": ["a"] * 100, "n": 50}, 400, "bad_words"),
        (COMPLETIONS, TEXT | {"logit_bias": dict.fromkeys(range(1025), 1)}, 400, "logit_bias"),
        (COMPLETIONS, TEXT | {"allowed_token_ids": [1] * 257}, 400, "allowed_token_ids"),
        (COMPLETIONS, TEXT | {"vllm_xargs": {"a": "b" * 65_536}}, 400, "vllm_xargs"),
        (COMPLETIONS, TEXT | {"stop_token_ids": [-1]}, 400, "stop_token_ids"),
        (COMPLETIONS, TEXT | {"logit_bias": {"x": 1}}, 400, "logit_bias"),
        (COMPLETIONS, TEXT | {"logit_bias": {"1": 101}}, 400, "logit_bias"),
        (COMPLETIONS, TEXT | {"min_tokens": 20}, 400, "min_tokens"),
        (COMPLETIONS, TEXT | {"stream_options": {"include_usage": True}}, 400, "stream_options"),
        (COMPLETIONS, TEXT | {"stream": True, "prompt_logprobs": 1}, 400, "prompt_logprobs"),
        (COMPLETIONS, TEXT | {"priority": 1}, 400, "priority"),
        (COMPLETIONS, TEXT | {"cache_salt": ""}, 400, "cache_salt"),
        (COMPLETIONS, TEXT | {"guided_json": {"type": "object"}, "guided_regex": "a"}, 400, "guided_json"),
        (COMPLETIONS, TEXT | {"length_penalty": 11}, 400, "length_penalty"),
        (COMPLETIONS, TEXT | {"stream_interval": 0}, 400, "stream_interval"),
        (COMPLETIONS, TEXT | {"truncate_prompt_tokens": -2}, 400, "truncate_prompt_tokens"),
        (COMPLETIONS, TEXT | {"tokenization_kwargs": {"truncation": 7}}, 400, "tokenization_kwargs"),
        (COMPLETIONS, TEXT | {"kv_transfer_params": 7}, 400, "kv_transfer_params"),
        (COMPLETIONS, TEXT | {"request_id": 7}, 400, "request_id"),
        (COMPLETIONS, TEXT | {"prompt_embeds": "AAAA"}, 400, "prompt_embeds"),
        (CHATS, CHAT | {"prompt_embeds": "AAAA"}, 400, "prompt_embeds"),
        (COMPLETIONS, TEXT | {"vllm_xargs": {"a": 2**70}}, 400, None),
        (CHATS, {}, 400, "messages"),
        (CHATS, {"messages": []}, 400, "messages"),
        (CHATS, {"messages": ["Hi"]}, 400, "messages"),
        (CHATS, {"messages": [{"content": "Hi"}]}, 400, "messages"),
        (CHATS, IMAGE, 400, "messages"),
        (CHATS, CHAT | {"response_format": {"type": "xml"}}, 400, "response_format"),
        (CHATS, CHAT | {"structured_outputs": {"choice": []}}, 400, "structured_outputs"),
        (CHATS, {"messages": CHAT["messages"] * 4097}, 400, "messages"),
        (CHATS, CHAT | {"tools": [{"type": "function", "function": {"name": "f"}}] * 1025}, 400, "tools"),
        (CHATS, CHAT | {"tools": [{"type": "function", "function": {"name": "f\n"}}]}, 400, "tools"),
        (CHATS, CHAT | {"documents": [{"text": "a"}] * 1025}, 400, "documents"),
        (CHATS, CHAT | {"chat_template_kwargs": {"a": "b" * 65_536}}, 400, "chat_template_kwargs"),
        (CHATS, CHAT | {"chat_template_kwargs": [1]}, 400, "chat_template_kwargs"),
        (CHATS, CHAT | {"verbosity": "loud"}, 400, "verbosity"),
        (CHATS, CHAT | {"top_logprobs": 2}, 400, "top_logprobs"),
        (CHATS, CHAT | {"logprob_token_ids": [65]}, 400, "logprob_token_ids"),
        (COMPLETIONS, TEXT | {"logprob_token_ids": [256]}, 400, "logprob_token_ids"),
        (CHATS, CHAT | {"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        (CHATS, CHAT | {"continue_final_message": True}, 400, "continue_final_message"),
        (CHATS, CHAT | {"chat_template": "{{ 1 }}"}, 400, "chat_template"),
        (CHATS, CHAT | {"chat_template_kwargs": {"tokenize": True}}, 400, "chat_template_kwargs"),
        (CHATS, CHAT | {"modalities": ["audio"], "audio": {"voice": "x"}}, 400, "modalities"),
        (GENERATES, {"token_ids": []}, 400, "token_ids"),
        (GENERATES, GENERATE | {"sampling_params": {"nope": 1}}, 400, "sampling_params"),
        (GENERATES, GENERATE | {"sampling_params": {"temperature": -1}}, 400, "temperature"),
        (GENERATES, GENERATE | {"sampling_params": {"min_tokens": 9, "max_tokens": 1}}, 400, "min_tokens"),
        (GENERATES, GENERATE | {"sampling_params": {"logprobs": 99}}, 400, "logprobs"),
        (GENERATES, GENERATE | {"sampling_params": {"top_k": 2**70}}, 400, None),
        (GENERATES, GENERATE | {"sampling_params": {"stop_token_ids": [1] * 1025}}, 400, "stop_token_ids"),
        (GENERATES, GENERATE | {"features": {"x": 1}}, 400, "features"),
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"messages": 3}, 400, "messages"),
        ("/tokenize", TEXT | {"model": "nope"}, 404, "model"),
        ("/tokenize", TEXT | {"tokenization_kwargs": "x"}, 400, "tokenization_kwargs"),
        ("/tokenize", CHAT | {"mm_processor_kwargs": {"fps": 1}}, 400, "mm_processor_kwargs"),
        ("/tokenize", CHAT | {"chat_template_kwargs": "x"}, 400, "chat_template_kwargs"),
        ("/tokenize", TEXT | {"chat_template_kwargs": "x"}, 400, "chat_template_kwargs"),
        ("/detokenize", {"tokens": [1], "chat_template_kwargs": 7}, 400, "chat_template_kwargs"),
        (COMPLETIONS, TEXT | {"chat_template_kwargs": [1]}, 400, "chat_template_kwargs"),
        (GENERATES, GENERATE | {"chat_template_kwargs": True}, 400, "chat_template_kwargs"),
        ("/detokenize", {"tokens": [99_999]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
        ("/invocations", {"text": "x"}, 400, None),
        ("/invocations", {"messages": 3}, 400, "messages"),
    ],
)  # fmt: skip
async def test_wrong_requests_get_one_sentence_and_queue_nothing(path: str, body: Any, status: int, param: Any) -> None:
    async with serving() as (client, engine):
        response = await client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, status, param), error
    assert error["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]
    assert engine.calls == []


@pytest.mark.parametrize(
    "content",
    [b"{", b"", b"[1]", b'"x"', b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b"\xff", b'{"prompt":' + b"[" * 100_000],
)
async def test_bodies_that_are_no_json_object(content: bytes) -> None:
    async with serving() as (client, _):
        for path in (COMPLETIONS, "/tokenize"):
            response = await client.post(path, content=content, headers={"content-type": "application/json"})
            assert response.status_code == 400
            assert "body" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("text", "half"), [(r"\ud83d", True), (r"\ude00", True), (r"\ud83dx", True), (r"\ud83d\ude00", False)]
)
async def test_half_a_character_is_told_as_that(text: str, half: bool) -> None:
    async with serving() as (client, _):
        content = f'{{"prompt": "a", "stop": ["{text}"]}}'
        response = await client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
    assert ("half of a surrogate pair" in response.text) is half
    assert response.status_code == (400 if half else 200)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_other_media_types(kind: str) -> None:
    async with serving() as (client, _):
        response = await client.post(COMPLETIONS, content=json.dumps(TEXT), headers={"content-type": kind})
    assert (response.status_code, "Unsupported Media Type" in response.text) == (400, True)


@pytest.mark.parametrize("declared", [True, False])
async def test_bodies_over_the_limit(declared: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    async with serving(max_request_bytes=1000) as (client, _):
        content: Any = b"x" * 2000 if declared else parts()
        response = await client.post(COMPLETIONS, content=content, headers={"content-type": "application/json"})
        fine = await client.post(COMPLETIONS, json=TEXT)
    assert (response.status_code, response.json()["error"]["code"]) == (413, 413)
    assert fine.status_code == 200


async def test_a_bad_prompt_among_good_ones_queues_none() -> None:
    async with serving() as (client, engine):
        response = await client.post(COMPLETIONS, json={"prompt": ["fine", "x" * MODEL_LEN]})
    assert response.status_code == 400
    assert engine.calls == []


@pytest.mark.parametrize("stream", [False, True])
async def test_states_of_the_engine(stream: bool) -> None:
    async with serving() as (client, engine):
        body = TEXT | {"stream": stream}
        engine.queue_full = True
        full = await client.post(COMPLETIONS, json=body)
        engine.draining = True
        draining = await client.post(COMPLETIONS, json=body)
        engine.death = "It was killed."
        dead = await client.post(COMPLETIONS, json=body)
        health = await client.get("/health")
    assert (full.status_code, full.headers["retry-after"]) == (429, "7")
    assert full.json()["error"]["type"] == "RateLimitError"
    assert draining.status_code == 503
    assert (dead.status_code, dead.json()["error"]["message"]) == (503, "It was killed.")
    assert (health.status_code, health.json()["error"]["message"]) == (503, "It was killed.")


@pytest.mark.parametrize(
    ("failure", "status"), [(EngineDeadError("It was killed."), 503), (ZeroDivisionError("secret"), 500), (None, 500)]
)
async def test_failures_while_generating(failure: Exception | None, status: int, caplog: Any) -> None:
    async with serving() as (client, engine):
        engine.fail = failure
        engine.finish_reason = "error" if failure is None else "stop"
        whole = await client.post(COMPLETIONS, json=TEXT)
        chunks = events(await client.post(CHATS, json=CHAT | {"stream": True}))
    assert (whole.status_code, whole.json()["error"]["code"]) == (status, status)
    assert chunks[0]["choices"]
    assert set(chunks[-1]) == {"error"}
    assert chunks[-1]["error"]["code"] == status
    assert "secret" not in whole.text + str(chunks)


# -- guards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("root_path", ["", "/proxy"])
async def test_every_route_asks_for_the_key(root_path: str) -> None:
    app, _ = make(api_key=["first", "second"], protect_metrics=True)
    open_to_all = ("/health", "/ping", "/", "/dashboard")
    async with client_of(app, root_path) as client:
        for path, methods in app.state.routes:
            expected = 404 if path == "/ui/{name:path}" else 200 if path in open_to_all else 401
            for method in methods:
                for prefix in {"", root_path}:
                    response = await client.request(method, prefix + path.replace("{name:path}", "fake"), json={})
                    assert response.status_code == expected, (method, prefix + path)
                    if expected == 401 and method != "HEAD":
                        assert response.json()["error"]["type"] in ("AuthenticationError", "authentication_error")


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("Bearer first", True), ("bearer second", True), ("Bearer third", False), ("Bearer", False), ("first", False),
        ("Basic first", False), ("Bearer first second", False), ("Bearer firstsecond", False), ("Bearer fïrst", False),
    ],
)  # fmt: skip
async def test_keys(header: str, accepted: bool) -> None:
    """As OpenAI's clients send them, and as Anthropic's do."""
    async with serving(api_key=["first", "second"]) as (client, _):
        response = await client.get("/v1/models", headers={"Authorization": header.encode("latin-1")})
        token = header.removeprefix("Bearer ").encode("latin-1")
        plain = await client.get("/v1/models", headers={"Authorization": "Bearer no", "x-api-key": token})
        open_metrics = await client.get("/metrics")
    assert (response.status_code == 200) is accepted
    assert (plain.status_code == 200) is (token in (b"first", b"second"))
    assert open_metrics.status_code == 200


@pytest.mark.parametrize(
    "path",
    ["//v1/models", "/v1//models", "/%76%31/models", "/v1/models/", "/health/../v1/models", "/v1/models?x=/health",
     "/health%2f..%2fv1%2fmodels", "/ping/v1/models", "/v1/models;/health", "/proxy/v1/models", "/proxy//v1/models"],
)  # fmt: skip
@pytest.mark.parametrize("root_path", ["", "/proxy", "/health"])
async def test_no_spelling_of_a_path_gets_round_the_key(path: str, root_path: str) -> None:
    app, _ = make(api_key=["first"])
    async with client_of(app, root_path) as client:
        response = await client.get(httpx.URL(scheme="http", host="server", raw_path=path.encode()))
    assert response.status_code in (307, 401, 404), response.text
    assert "max_model_len" not in response.text


async def test_preflight_passes_and_other_options_do_not() -> None:
    async with serving(api_key=["first"], allowed_origins=["https://ui"]) as (client, _):
        headers = {"Origin": "https://ui", "Access-Control-Request-Method": "POST"}
        preflight = await client.options(COMPLETIONS, headers=headers)
        plain = await client.options(COMPLETIONS)
        refused = await client.post(COMPLETIONS, json=TEXT, headers={"Origin": "https://ui"})
    assert preflight.status_code == 200
    assert plain.status_code == 405
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://ui")


async def test_unknown_routes_and_methods_have_the_same_error_shape() -> None:
    async with serving() as (client, _):
        missing, method = await client.post("/v1/nothing", json={}), await client.get(CHATS)
    assert missing.json()["error"] == {
        "message": "There is no route POST /v1/nothing; /docs lists the routes.",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }
    assert (method.status_code, method.json()["error"]["code"], method.headers["allow"]) == (405, 405, "POST")


# -- early ends -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_alive", [0.0, 0.01])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"), [(COMPLETIONS, {"prompt": ["a", "b"]}), (CHATS, CHAT), (GENERATES, GENERATE)]
)
async def test_a_client_that_leaves_aborts_its_request(path: str, body: Any, stream: bool, keep_alive: float) -> None:
    app, engine = make(sse_keep_alive_interval=keep_alive)
    leave = asyncio.Event()

    async def gate() -> None:
        leave.set()
        await asyncio.Event().wait()

    engine.gate = gate
    async with asyncio.timeout(10):
        sent = await call_and_leave(app, path, body | {"stream": stream}, leave)
    assert len(engine.aborted) == len(engine.calls) == (2 if path == COMPLETIONS else 1)
    assert engine.num_unfinished == 0
    assert not any(b"[DONE]" in message.get("body", b"") for message in sent)
    if not stream:
        assert [message.get("status") for message in sent if "status" in message] == [499]
    async with asyncio.timeout(10):
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0)


async def test_keep_alive_comments_fill_silence() -> None:
    app, engine = make("ab", sse_keep_alive_interval=0.01)

    async def gate() -> None:
        await asyncio.sleep(0.05)

    engine.gate = gate
    async with client_of(app) as client:
        text = (await client.post(COMPLETIONS, json=TEXT | {"stream": True})).text
    assert ": keep-alive\n\n" in text
    assert text.endswith("data: [DONE]\n\n")


async def test_one_failing_prompt_aborts_the_others() -> None:
    app, engine = make()

    async def gate() -> None:
        if len(engine.calls) == 2:
            engine.fail = EngineDeadError("Gone.")

    engine.gate = gate
    async with client_of(app) as client:
        for stream in (False, True):
            engine.fail = None
            engine.calls.clear()
            engine.aborted.clear()
            response = await client.post(COMPLETIONS, json={"prompt": ["a", "b"], "stream": stream})
            assert response.status_code == (200 if stream else 503)
            assert sorted(engine.aborted) == sorted(call["request_id"] for call in engine.calls)
