"""``headrace run-batch``, batches over HTTP, and the routes for tokens, with a model that computes in no time."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.server import ENGINE, SECONDS, Server
from tests.processes import children, command_line, wait_gone

CHATS = "/v1/chat/completions"
NUM_LINES, NUM_TOKENS = 24, 150
COMMAND = [sys.executable, "-m", "headrace", "run-batch", "--max-num-seqs", "2", "--max-model-len", "512"]


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Count from {custom_id}."}]
    body = {"messages": messages, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def start(model: Path, folder: Path) -> "subprocess.Popen[str]":
    command = [*COMMAND, "--model", str(model), "-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_lines(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("swept")
def test_a_killed_and_an_interrupted_run_are_gone_on_with(tiny: Path, tmp_path: Path) -> None:
    lines = [json.dumps(chat(str(i))) for i in range(NUM_LINES)]
    lines[3:3] = ["not a request", json.dumps(chat("hot", temperature=-1)), json.dumps(chat("stream", stream=True))]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    partial, output = tmp_path / "out.jsonl.partial", tmp_path / "out.jsonl"

    killed = start(tiny, tmp_path)
    wait_lines(partial, 6, killed)
    (engine,) = [pid for pid in children(killed.pid) if ENGINE in command_line(pid)]
    killed.kill()
    killed.communicate()
    wait_gone(engine)
    kept = {json.loads(line)["custom_id"]: line for line in partial.read_text().splitlines() if '"error":null' in line}
    assert len(kept) >= 3

    interrupted = start(tiny, tmp_path)
    wait_lines(partial, partial.read_bytes().count(b"\n") + 2, interrupted)
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=SECONDS)
    assert interrupted.returncode == 130, said
    assert f"of {NUM_LINES + 3} lines are answered: run this again to go on" in said
    assert not output.exists()

    last = start(tiny, tmp_path)
    _, said = last.communicate(timeout=200)
    assert last.returncode == 0, said
    assert f"{NUM_LINES + 3} lines are answered, 3 of them with an error: {output}" in said
    found = output.read_text().splitlines()
    answers = [json.loads(line) for line in found]
    assert [a["custom_id"] for a in answers] == ["0", "1", "2", None, "hot", "stream", *map(str, range(3, NUM_LINES))]
    assert set(kept.values()) <= set(found)
    for answer in answers:
        if answer["error"] is None:
            assert answer["response"]["body"]["usage"]["completion_tokens"] == NUM_TOKENS
    assert not partial.exists()


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Server]:
    # In float32 the same request has the same tokens whoever is computed beside it, or was before.
    flags = ("--max-model-len", "1024", "--max-num-seqs", "16", "--tool-call-parser", "hermes", "--dtype", "float32")
    with Server(str(tiny), *flags) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=SECONDS) as client:
        yield client


TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "logprobs": True, "top_logprobs": 3},
        {"stop": [" the", "."]},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"response_format": {"type": "json_object"}, "include_stop_str_in_output": True},
    ],
)
def test_render_generate_and_derender_are_the_chat(client: httpx.Client, fields: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Write about the sea — 🌊, ≥ 3 words."}]
    body = {"messages": messages, "max_tokens": 48, "seed": 11} | fields
    own = client.post(CHATS, json=body).json()
    rendered = client.post(f"{CHATS}/render", json=body).json()
    generated = client.post("/inference/v1/generate", json=rendered).json()
    answer = client.post(f"{CHATS}/derender", json={"generate_response": generated, "chat_request": body}).json()
    for one in (own, answer):
        del one["id"], one["created"]
        for choice in one["choices"]:
            for call in choice["message"]["tool_calls"]:
                del call["id"]
    floats: list[float] = []
    own_floats: list[float] = []
    assert without_floats(answer, floats) == without_floats(own, own_floats)
    assert floats == pytest.approx(own_floats, abs=1e-3)


def without_floats(value: Any, taken: list[float]) -> Any:
    """``value`` with None for each of its floats, which are ``taken`` in order."""
    if isinstance(value, dict):
        return {name: without_floats(value[name], taken) for name in sorted(value)}
    if isinstance(value, list):
        return [without_floats(part, taken) for part in value]
    if isinstance(value, float):
        taken.append(value)
        return None
    return value


def test_a_running_request_is_aborted(client: httpx.Client) -> None:
    params = {"max_tokens": 1000, "ignore_eos": True}
    body = {"token_ids": [1, 2, 3], "sampling_params": params, "stream": True, "request_id": "long"}
    with client.stream("POST", "/inference/v1/generate", json=body) as response:
        chunks = [json.loads(line[6:]) for line in first_lines(response, client) if line.startswith("data: {")]
    assert chunks[-1]["choices"][0]["finish_reason"] == "abort"
    assert sum(len(chunk["choices"][0]["token_ids"]) for chunk in chunks) < 1000


def first_lines(response: httpx.Response, client: httpx.Client) -> Iterator[str]:
    """The lines of a stream, which is aborted after the first."""
    for place, line in enumerate(response.iter_lines()):
        if place == 0:
            assert client.post("/inference/v1/abort_requests", json={"request_ids": ["long"]}).status_code == 200
        yield line


def test_batches_of_the_openai_sdk(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    lines = [*(chat(str(i), max_tokens=8) for i in range(12)), chat("hot", temperature=-1)]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    deadline = time.monotonic() + 100
    while batch.status != "completed":
        assert batch.status in ("validating", "in_progress", "finalizing")
        assert time.monotonic() < deadline
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 13, "completed": 12, "failed": 1}
    assert batch.output_file_id is not None
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert {a["response"]["body"]["usage"]["completion_tokens"] for a in answers} == {8}
