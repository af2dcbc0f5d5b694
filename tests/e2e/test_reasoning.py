"""Reasoning by a real server: budgets and forms, with a template that makes the default model think first."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from .server import SECONDS, Server

TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
<think>
{% if enable_thinking is defined %}
</think>
{% endif %}"""
CHATS = "/v1/chat/completions"
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "What is two and two?"}], "max_tokens": 60, "seed": 1}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORM = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}}
TOOL = {"tools": [{"type": "function", "function": {"name": "person", "parameters": PERSON}}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    template = tmp_path_factory.mktemp("template") / "thinking.jinja"
    Path(template).write_text(TEMPLATE)
    options = ("--kv-cache-memory-bytes", "512M", "--max-model-len", "512", "--chat-template", str(template))
    with Server(*options, "--structured-outputs-config", '{"disable_any_whitespace": true}') as running:
        yield running


def post(server: Server, path: str = CHATS, **fields: Any) -> dict[str, Any]:
    response = httpx.post(server.url + path, json=CHAT | fields, timeout=SECONDS)
    assert response.status_code == 200, response.text
    return response.json()


def reasoning_tokens(answer: dict[str, Any]) -> int:
    return answer["usage"]["completion_tokens_details"]["reasoning_tokens"]


def test_a_budget_ends_reasoning_and_the_answer_goes_on(server: Server) -> None:
    fields: dict[str, Any] = {"n": 2, "temperature": 1, "logprobs": True, "ignore_eos": True}
    budgets = (0, 1, 7)
    with ThreadPoolExecutor(4) as pool:
        endless = pool.submit(post, server, thinking_token_budget=-1, ignore_eos=True)
        answers = list(pool.map(lambda budget: post(server, thinking_token_budget=budget, **fields), budgets))
    assert reasoning_tokens(endless.result()) > 40
    for budget, answer in zip(budgets, answers, strict=True):
        assert reasoning_tokens(answer) == 2 * budget and answer["usage"]["completion_tokens"] == 120
        for choice in answer["choices"]:
            tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
            assert "".join(tokens[budget : budget + 3]) == "</think>" and choice["message"]["content"]


def test_a_streamed_answer_is_the_same(server: Server) -> None:
    fields = {"thinking_token_budget": 5, **FORM}
    whole = post(server, **fields)["choices"][0]["message"]
    body = CHAT | fields | {"stream": True}
    parts = {"reasoning": "", "content": ""}
    with httpx.stream("POST", server.url + CHATS, json=body, timeout=SECONDS) as lines:
        for line in lines.iter_lines():
            for choice in json.loads(line[6:])["choices"] if line.startswith("data: {") else []:
                for part in parts:
                    parts[part] += choice["delta"].get(part) or ""
    assert parts == {"reasoning": whole["reasoning"], "content": whole["content"]} and whole["reasoning"]


WAYS: list[dict[str, Any]] = [
    FORM,
    TOOL | {"tool_choice": "required", "parallel_tool_calls": False},
    TOOL | {"tool_choice": {"type": "function", "function": {"name": "person"}}},
]


def test_forms_and_forced_calls_come_after_reasoning(server: Server) -> None:
    wanted = [way | {"seed": seed, "temperature": 1.5} for way in WAYS for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda fields: post(server, thinking_token_budget=9, **fields), wanted))
    num_finished = 0
    for answer in answers:
        (choice,) = answer["choices"]
        if choice["finish_reason"] != "length":
            calls = choice["message"]["tool_calls"]
            jsonschema.validate(
                json.loads(calls[0]["function"]["arguments"] if calls else choice["message"]["content"]), PERSON
            )
            assert choice["finish_reason"] == ("tool_calls" if calls else "stop") and reasoning_tokens(answer) <= 9
            num_finished += 1
    assert num_finished > 0.8 * len(wanted) and any(map(reasoning_tokens, answers))


def test_without_reasoning_the_form_holds_at_once(server: Server) -> None:
    answer = post(server, chat_template_kwargs={"enable_thinking": False}, thinking_token_budget=5, **FORM)
    jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), PERSON)
    assert reasoning_tokens(answer) == 0
    raw = httpx.post(
        server.url + "/v1/completions", json={"prompt": "So", "guided_choice": ["far"]}, timeout=SECONDS
    ).json()
    assert raw["choices"][0]["text"] == "far"


def test_raw_prompts_and_rendered_ones_keep_their_budget(server: Server) -> None:
    fields = {"thinking_token_budget": 4, "temperature": 0}
    whole = post(server, **fields)["choices"][0]["message"]
    body = post(server, CHATS + "/render", **fields) | {"output_mode": "text"}
    text = post(server, "/inference/v1/generate", **body)["choices"][0]["text"]
    assert re.sub(r"\s", "", text) == re.sub(r"\s", "", f"{whole['reasoning']}</think>{whole['content']}")
    prompt = "<|im_start|>assistant\n<think>\nLet me"
    raw = httpx.post(server.url + "/v1/completions", json={"prompt": prompt, **fields}, timeout=SECONDS).json()
    assert "</think>" in raw["choices"][0]["text"] and reasoning_tokens(raw) <= 4


def test_a_budget_that_can_not_be_kept_gets_a_sentence(server: Server) -> None:
    body = CHAT | {"thinking_token_budget": 2, "allowed_token_ids": [5, 6]}
    response = httpx.post(server.url + CHATS, json=body, timeout=SECONDS)
    assert response.status_code == 400 and "can't be ended" in response.json()["error"]["message"]
