"""What a hostile client sends to a real server, while a neighbour's stream goes on; and what the log never holds.

The comments name the flaws that other servers have had (https://github.com/vllm-project/vllm/security/advisories) and
that a case is there for: by CVE, or by the GHSA or PYSEC number where there is none.
"""

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from .server import SECONDS, Server

KEY = "sk-a-key-that-nobody-may-read"
PROMPT = "a prompt that nobody may read"
JSON = {"content-type": "application/json"}
TOKENS = 300  # of the neighbour's answer
COMPLETIONS, CHATS, GENERATES = "/v1/completions", "/v1/chat/completions", "/inference/v1/generate"
USER = {"role": "user", "content": "Hi"}
CHAT = {"messages": [USER], "max_tokens": 4}
TEXT = {"prompt": "Hi", "max_tokens": 4}


def tool(name: str = "f", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def completion(**fields: Any) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, TEXT | fields


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return CHATS, CHAT | fields


def generate(**params: Any) -> tuple[str, dict[str, Any]]:
    return GENERATES, {"token_ids": [1], "sampling_params": params}


def raw(content: bytes, path: str = COMPLETIONS) -> tuple[str, bytes]:
    return path, content


DEEP = b"[" * 50_000 + b"]" * 50_000
HOSTILE: dict[str, tuple[str, Any]] = {
    # Bodies that are no bodies.
    "50,000 levels of JSON": raw(b'{"prompt": "a", "x": ' + DEEP + b"}"),
    "50,000 levels in a schema": chat(guided_json=DEEP.decode()),
    "1e999": raw(b'{"prompt": "a", "temperature": 1e999}'),
    "NaN": raw(b'{"prompt": "a", "temperature": NaN}'),
    "an integer of 5,000 digits": raw(b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}"),
    "half a character": raw(b'{"prompt": "\\ud800"}'),
    "a bare NUL": raw(b'{"prompt": "a\x00b"}'),
    "two million lists": raw(b'{"prompt": [' + b"[]," * 1_000_001 + b"1]}"),
    "33 MB": raw(b'{"prompt": "' + b"a" * 33 * 2**20 + b'"}'),
    "a packed body": raw(gzip.compress(b'{"prompt": "a"}')),
    # Sizes. CVE-2026-34756: n copies before anything is scheduled.
    "n": completion(n=10**9),
    "n in token routes": generate(n=10**9),
    "prompts times n": completion(prompt=["a"] * 1000, n=100),
    "100,000 prompts": completion(prompt=["a"] * 100_000),
    "100,000 messages": chat(messages=[USER] * 100_000),
    "100,000 parts": chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 100_000}]),
    "10,000 tools": chat(tools=[tool(f"f{i}") for i in range(10_000)]),
    "10,000 tools, forced": chat(tools=[tool(f"f{i}") for i in range(10_000)], tool_choice="required"),
    "100,000 documents": chat(documents=[{"text": "a"}] * 100_000),
    "100,000 stop strings": completion(stop=["a"] * 100_000),
    "a stop string of 1 MB": completion(stop="a" * 2**20),
    "100,000 bad words": completion(bad_words=["a"] * 100_000),
    "bad words times n": completion(bad_words=["a"] * 100, n=100),
    "100,000 biases": completion(logit_bias={str(i): 1 for i in range(100_000)}),
    "100,000 stop tokens": generate(stop_token_ids=[1] * 100_000),
    "a million allowed tokens": completion(allowed_token_ids=[1] * 1_000_000),
    "a million wrong tokens": completion(stop_token_ids=["a"] * 1_000_000),
    "a million token ids": completion(prompt=[1] * 1_000_000),
    "5 MB of text": completion(prompt="a" * 5 * 2**20),
    "5 MB of spaces in a chat": chat(messages=[{"role": "user", "content": " " * 5 * 2**20}]),
    "5 MB to count": ("/tokenize", {"prompt": "1" * 5 * 2**20}),
    "1 MB of extra arguments": completion(vllm_xargs={"a": "b" * 2**20}),
    # CVE-2026-114051: min_tokens over max_tokens by a route without the validator. PYSEC-2026-4350: too many logprobs.
    "min_tokens over max_tokens": generate(min_tokens=9, max_tokens=1),
    "logprobs": generate(logprobs=10**6),
    "prompt_logprobs of all": completion(prompt_logprobs=-1),
    "a token that does not exist": generate(allowed_token_ids=[10**6]),
    "numbers beyond 64 bits": generate(top_k=2**70),
    # CVE-2025-29770, GHSA-hf3c-wxg2-49q9, CVE-2026-55574, PYSEC-2026-3933: grammars that take for ever, or all memory.
    "a regex of repetitions": chat(guided_regex="((((((a{1,1000}){1,1000}){1,1000}){1,100}){1,100}))"),
    "a schema of itself": chat(guided_json={"$ref": "#"}),
    "a schema of itself for a tool": chat(tools=[tool(**{"$ref": "#"})], tool_choice="required"),
    "a schema of 10 MB": chat(guided_json={"enum": ["x" * 1000] * 10_000}),
    "a grammar of 10 MB": chat(guided_grammar="root ::= " + '"a" | ' * 1_500_000 + '"a"'),
    "a choice of 100,000": chat(guided_choice=[f"a{i}" for i in range(100_000)]),
    "left recursion": chat(guided_grammar="root ::= root"),
    "parentheses": chat(guided_grammar="root ::= " + "(" * 50_000 + '"a"' + ")" * 50_000),
    # CVE-2026-105757: what a grammar raises inside the engine.
    "a grammar that nothing fits": chat(guided_json={"type": "integer", "minimum": 3, "maximum": 2}),
    # GHSA-69j4-grxj-j64p, PYSEC-2026-4344, -4349: variables that are the renderer's own, and templates without an end.
    "the renderer's arguments": chat(chat_template_kwargs={"tokenize": True}),
    "a smuggled template": chat(chat_template_kwargs={"chat_template": "{{ 1 }}"}),
    "smuggled messages": chat(chat_template_kwargs={"messages": []}),
    "1 MB of variables": chat(chat_template_kwargs={"a": "b" * 2**20}),
    "loops in loops": chat(
        chat_template="{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a template's large product": chat(chat_template="{{ ('a' * 10**10) | length }}"),
    "a template's loop within C": chat(chat_template="{{ (range(99999) | list * 1000) | sort | length }}"),
    "a template of 1 MB": chat(chat_template="{{ 1 }}" * 150_000),
    "a template that looks around": chat(chat_template="{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template to count": ("/tokenize", {"messages": [USER], "chat_template": "{{ 'a' * 10**10 }}"}),
    # CVE-2025-62164, CVE-2026-56340, CVE-2026-73557, PYSEC-2026-2303: tensors. CVE-2025-6242, CVE-2026-24779,
    # CVE-2026-22773, -22778, -34755, -54233, -105758, -105760: media.
    "a tensor": completion(prompt_embeds="AAAA"),
    "an internal address": chat(
        messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]
    ),
    "a file": chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "file:///etc/passwd"}]}]),
    # CVE-2026-105756, PYSEC-2026-4353.
    "a salt of 1 MB": completion(cache_salt="a" * 2**20),
    "foreign fields": chat(mm_processor_kwargs={"a": 1}),
    # CVE-2025-71379: names that parsers and logs have to bear.
    "a tool's name with control characters": chat(tools=[tool("a\x1b[2J\n")]),
    "a tool's name of 1 MB": chat(tools=[tool("a" * 2**20)]),
    "a model's name of 1 MB": chat(model="a" * 2**20),
    # The other APIs have no other door.
    "messages to Anthropic's API": ("/v1/messages", {"model": "a", "max_tokens": 4, "messages": [USER] * 100_000}),
    "tools of Anthropic's API": (
        "/v1/messages",
        {
            "model": "SmolLM2-135M-Instruct",
            "max_tokens": 4,
            "messages": [USER],
            "tools": [{"name": f"f{i}", "input_schema": {}} for i in range(10_000)],
        },
    ),
    "items for responses": ("/v1/responses", {"input": [USER] * 100_000}),
    "a response's schema": (
        "/v1/responses",
        {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"$ref": "#"}}}},
    ),
    "vectors of a model that writes": ("/v1/embeddings", {"input": ["a"] * 2000}),
    # CVE-2026-48746: other spellings of a path (tests/unit/test_server.py has them all).
    "no route": ("/v1/../v1/nothing", {}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = ("--max-model-len", "1024", "--max-num-seqs", "16", "--api-key", KEY, "--uvicorn-log-level", "debug")
    with Server(*options, "--trust-request-chat-template", "--enable-log-requests", "--server-dev-mode") as running:
        yield running


def client_of(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=SECONDS)


def post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    return client.post(path, content=body, headers=JSON) if isinstance(body, bytes) else client.post(path, json=body)


def neighbour(server: Server) -> int:
    """The number of tokens in a stream that has nothing to do with the rest."""
    body = TEXT | {"max_tokens": TOKENS, "ignore_eos": True, "stream": True, "return_token_ids": True}
    tokens = 0
    with client_of(server) as client, client.stream("POST", COMPLETIONS, json=body) as lines:
        for line in lines.iter_lines():
            if line.startswith("data: {"):
                [choice] = json.loads(line[6:])["choices"]
                tokens += len(choice["token_ids"])
    return tokens


def test_each_is_refused_and_a_neighbour_gets_all_its_tokens(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool, client_of(server) as client:
        streaming: Future[int] = pool.submit(neighbour, server)
        counts = []
        for what, (path, body) in HOSTILE.items():
            if streaming.done():
                counts.append(streaming.result())
                streaming = pool.submit(neighbour, server)
            response = post(client, path, body)
            assert 400 <= response.status_code < 500, (what, response.status_code, response.text[:300])
            assert len(response.content) < 3000, what
            assert "\n" not in response.json()["error"]["message"], what
        assert [*counts, streaming.result()] == [TOKENS] * (len(counts) + 1)
    server.wait_metric("vllm:num_requests_running", 0)
    server.wait_metric("vllm:kv_cache_usage_perc", 0)


def test_what_is_odd_but_right_is_served(server: Server) -> None:
    with client_of(server) as client:
        for what, (path, body) in {
            "the last of equal keys": raw(b'{"prompt": "a", "max_tokens": 0, "max_tokens": 1}'),
            "a NUL in a text": completion(prompt="a\0b"),
            "odd characters in a salt": completion(cache_salt="\0\n\u202e€"),
            "odd variables": chat(chat_template_kwargs={"range": 1, "loop": [], "é": None}),
            "a template of one's own": chat(chat_template="{{ messages[0].content }}"),
        }.items():
            response = post(client, path, body)
            assert response.status_code == 200, (what, response.text)
        # CVE-2026-116176, PYSEC-2026-4198: what a caller calls its request is a label, and nothing else.
        labels = [{"X-Request-Id": label} for label in ("same", "same", "x" * 10_000, "http://169.254.169.254/")]
        ids = [client.post(COMPLETIONS, json=TEXT, headers=label).json()["id"] for label in labels]
        assert len(set(ids)) == 4
        assert all(len(name) < 100 and "/" not in name for name in ids)
        for method, path, status in (
            ("GET", COMPLETIONS, 405), ("DELETE", "/v1/models", 405), ("POST", "/nothing", 404), ("BREW", "/", 400),
        ):  # fmt: skip
            assert client.request(method, path).status_code == status
        for kind in ("text/plain", "application/xml", "multipart/form-data; boundary=a"):
            answer = client.post(COMPLETIONS, content=b"{}", headers={"content-type": kind})
            assert answer.status_code == 400, kind


def bodies(secret: str) -> Iterator[dict[str, Any]]:
    """Right and wrong ones for every route, each with a secret wherever a text may stand."""
    said = [{"role": "user", "content": secret}]
    fields: dict[str, Any] = {
        "prompt": secret, "messages": said, "input": secret, "query": secret, "queries": secret, "items": [secret],
        "documents": [secret], "text_1": secret, "text_2": secret, "system": secret, "instructions": secret,
        "max_tokens": 2,
    }  # fmt: skip
    yield fields
    yield fields | {"documents": [{"text": secret}], "stop": [secret], "bad_words": [secret], "user": secret}
    yield fields | {"stream": True}
    yield fields | {"temperature": secret, "n": secret}
    yield fields | {"guided_regex": f"({secret}", "tools": [tool(secret)], "tool_choice": secret}
    yield fields | {"chat_template": "{{ raise_exception(messages[0].content) }}"}
    yield fields | {"chat_template": "{% broken " + secret}
    yield {name: {"no": [secret]} for name in fields}
    yield {name: [secret, 1, {}] for name in fields}
    yield {"messages": [{"role": secret, "content": [{"type": secret, "text": secret}]}]}
    yield {"token_ids": [secret], "sampling_params": {"stop": secret, secret: 1}, "tokens": [secret], "cache_salt": ""}


def test_the_log_holds_no_prompt_and_no_key_and_no_answer_holds_a_key(server: Server) -> None:
    with client_of(server) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert len(paths) > 30
        answers = []
        for path, methods in paths.items():
            path = path.replace("{", "").replace("}", "")
            for method in methods:
                if method != "post":
                    with client.stream(method.upper(), path) as stream:  # some never end
                        answers.append(next(stream.iter_text(), ""))
                    continue
                for body in bodies(PROMPT):
                    answers.append(client.post(path, json=body).text)
                answers.append(client.post(path, content=f'{{"prompt": "{PROMPT}"', headers=JSON).text)
                wrong = {"Authorization": f"Bearer {KEY}x", "x-api-key": KEY + "y"}
                assert client.post(path, json={"prompt": PROMPT}, headers=wrong).status_code in (200, 401), path
    assert not [answer for answer in answers if KEY in answer]
    log = server.log
    assert log.count("Received request") > 10
    assert "non-default args:" in log
    for secret in (KEY, PROMPT, PROMPT[2:20]):
        assert secret not in log
    assert "Traceback" not in log
