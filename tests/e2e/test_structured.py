"""Structured output by a real server with the default model, at temperature 1: what is finished has its form."""

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest

from .server import SECONDS, Server

CHAT = {"messages": [{"role": "user", "content": "Describe a person."}], "temperature": 1.0, "max_tokens": 160}
WORD = {"type": "string", "maxLength": 12}


def chat(server: Server, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=CHAT | fields, timeout=SECONDS)


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """Nested objects and arrays, enums, bounds, patterns and references; small, as the model is."""
    low = rng.randrange(-50, 50)
    leaves: list[dict[str, Any]] = [
        WORD,
        {"enum": rng.sample(["red", "green", 3, None, True, "a b"], 3)},
        {"type": "integer", "minimum": low, "maximum": low + rng.randrange(100)},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 10},
        {"type": "boolean"},
        {"type": "string", "pattern": rng.choice(["^[a-z]{2,6}$", r"^\d{3}-\d{2}$", "^(ab|cd)+e?$"]), "maxLength": 20},
        {"type": "string", "format": rng.choice(["uuid", "ipv4"])},
        {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 1, "maxLength": 5}]},
        {"$ref": "#/$defs/point"},
    ]
    if depth == 0 or rng.random() < 0.3:
        return rng.choice(leaves)
    if rng.random() < 0.4:
        return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": 1, "maxItems": 3}
    names = rng.sample(["name", "age", "tags", "home", "when", "a key"], rng.randrange(1, 4))
    properties = {name: random_schema(rng, depth - 1) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@pytest.mark.slow
def test_200_schemas(server: Server) -> None:
    count = 200
    point = {"type": "object", "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["x"]}
    defs = {"$defs": {"point": point | {"additionalProperties": False}}}
    schemas = [random_schema(random.Random(seed)) | defs for seed in range(count)]

    def answer(seed: int) -> dict[str, Any]:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schemas[seed], "strict": True}}
        response = chat(server, response_format=form, seed=seed)
        assert response.status_code == 200, (schemas[seed], response.text)
        return response.json()["choices"][0]

    with ThreadPoolExecutor(48) as pool:  # the more at once, the less a token takes
        answers = list(pool.map(answer, range(count)))
    finished = [answer["finish_reason"] == "stop" for answer in answers]
    assert sum(finished) > count / 2
    for schema, answer, done in zip(schemas, answers, finished, strict=True):
        if done:
            text = answer["message"]["content"]
            jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"choice": ["red", "dark blue"]}}, "red|dark blue"),
    ({"guided_choice": ["red", "dark blue"], "guided_decoding_backend": "outlines"}, "red|dark blue"),
    ({"structured_outputs": {"regex": "[a-c]{4,6}-é?"}}, "[a-c]{4,6}-é?"),
    ({"guided_regex": "[0-9]{3}", "min_tokens": 50, "ignore_eos": True}, "[0-9]{3}"),
    ({"structured_outputs": {"grammar": 'start: "x" INT\nINT: /[0-9]{2}/'}}, "x[0-9]{2}"),
    ({"guided_grammar": 'root ::= ("yes" | "no") tail\ntail ::= "!"'}, "(yes|no)!"),
    ({"structured_outputs": {"regex": "(ab){1,9}"}, "ignore_eos": True, "temperature": 0}, "(ab){9}"),
    ({"structured_outputs": {"json": {"const": [1]}, "disable_any_whitespace": True}}, r"\[1\]"),
    ({"guided_regex": "[0-9]{2}", "structured_outputs": {"regex": "[0-9]{2}"}}, "[0-9]{2}"),
    ({"guided_json": '{"enum": ["a"]}', "stop": ["zz"], "logit_bias": {"5": 3}, "frequency_penalty": 1}, '"a"'),
]


@pytest.mark.parametrize(("fields", "pattern"), FORMS, ids=lambda value: str(value)[:50])
def test_forms(server: Server, fields: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, text_of(chat(server, **fields)))


def test_structural_tags_leave_other_text_free(server: Server) -> None:
    tag = {"begin": "<n>", "schema": {"type": "integer", "minimum": 10, "maximum": 99}, "end": "</n>"}
    form = {"type": "structural_tag", "structures": [tag], "triggers": ["<"]}
    response = chat(server, response_format=form, logit_bias={"44": 30}, max_tokens=40)  # 44 is "<"
    text = response.json()["choices"][0]["message"]["content"]
    assert re.match(r"[^<]*<n>[1-9][0-9]</n>", text)


def test_several_sequences_logprobs_streams_and_completions(server: Server) -> None:
    fields = {"structured_outputs": {"regex": "[a-z ]{20}"}, "seed": 7}
    whole = chat(server, **fields, n=2, logprobs=True, top_logprobs=1).json()
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert texts[0] != texts[1] and all(len(text) == 20 for text in texts)
    assert "".join(entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]) == texts[0]
    streamed = ""
    body = CHAT | fields | {"stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=SECONDS) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                streamed += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
    assert re.fullmatch("[a-z ]{20}", streamed)
    completion = {"prompt": "Once", "guided_choice": ["upon"], "max_tokens": 9}
    answered = httpx.post(f"{server.url}/v1/completions", json=completion, timeout=SECONDS).json()
    assert answered["choices"][0]["text"] == "upon"


HOSTILE: dict[str, dict[str, Any]] = {
    "repetitions": {"guided_regex": "((((((a{1,1000}){1,1000}){1,1000}){1,100}){1,100}))"},
    "a schema of itself": {"guided_json": {"$ref": "#"}},
    "10 MB": {"guided_json": {"enum": ["x" * 1000] * 10_000}},
    "left recursion": {"guided_grammar": "root ::= root"},
    "too many keys": {"guided_json": {"properties": {f"k{i}": {"type": "string"} for i in range(4900)}}},
    "parentheses": {"guided_grammar": "root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000},
    "no regex": {"guided_regex": "(a"},
    "no schema": {"guided_json": {"type": "integer", "minimum": 3, "maximum": 2}},
    "a keyword that can't be kept": {"guided_json": {"type": "array", "uniqueItems": True}},
    "deep text": {"guided_json": '{"a":' * 20_000 + "1" + "}" * 20_000},
    "two forms": {"guided_regex": "a", "response_format": {"type": "json_object"}},
}


def test_what_can_not_be_is_refused_and_harms_nobody(server: Server) -> None:
    with ThreadPoolExecutor(len(HOSTILE) + 1) as pool:
        neighbour = pool.submit(chat, server, max_tokens=40, ignore_eos=True)
        refused = dict(zip(HOSTILE, pool.map(lambda fields: chat(server, **fields), HOSTILE.values()), strict=True))
    assert {name: response.status_code for name, response in refused.items()} == dict.fromkeys(HOSTILE, 400)
    assert all(len(response.json()["error"]["message"]) < 500 for response in refused.values())
    assert neighbour.result().json()["usage"]["completion_tokens"] == 40
    deep = CHAT | {"messages": []}
    body = json.dumps(deep)[:-1] + ', "guided_json": ' + '{"a":' * 50_000 + "1" + "}" * 50_001
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=SECONDS)
    assert answer.status_code == 400
    assert text_of(chat(server, guided_choice=["fine"])) == "fine"
