"""The server as its users meet it: the default model over HTTP, any model under load, and when processes die."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.e2e.server import ENGINE, SECONDS, Server
from tests.processes import children, command_line, wait_gone

PARIS = "The capital of France is"


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> Iterator[Server]:
    """For a load of requests: its steps take so little that everything around them comes the thicker."""
    with Server(str(tiny), "--kv-cache-memory-bytes", "128M", "--max-model-len", "1024") as running:
        yield running


def test_the_openai_client_gets_answers_streamed_and_whole(server: Server) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
    model = client.models.list().data[0].id
    whole = client.completions.create(model=model, prompt=PARIS, max_tokens=8, temperature=0)
    assert whole.choices[0].text.startswith(" Paris")
    parts = client.completions.create(model=model, prompt=PARIS, max_tokens=8, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    question = [{"role": "user", "content": "What is 2+2?"}]
    answer = client.chat.completions.create(model=model, messages=question, max_tokens=32, temperature=0)
    assert "4" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    deltas = client.chat.completions.create(model=model, messages=question, max_tokens=32, temperature=0, stream=True)
    text = "".join(delta.choices[0].delta.content or "" for delta in deltas)
    assert text == answer.choices[0].message.content


def test_wrong_requests_get_one_sentence_and_leave_nothing(server: Server) -> None:
    for body, param in (
        ({"prompt": PARIS, "temperature": -1}, "temperature"),
        ({"prompt": PARIS, "max_tokens": 5000}, "max_tokens"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": "x " * 3000}, "input_tokens"),
        ({"prompt": PARIS, "logit_bias": {"999999": 1}}, "logit_bias"),
        ({"prompt": PARIS, "logprobs": 1000}, "logprobs"),
    ):
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=SECONDS)
        assert answer.status_code == 400, body
        error = answer.json()["error"]
        assert error["param"] == param
        too_long = param in ("max_tokens", "input_tokens")  # and clients know it by these words
        assert ("this model's maximum context length is" in error["message"]) == too_long
    server.wait_metric("vllm:num_requests_waiting", 0)


async def chat(client: httpx.AsyncClient, url: str, index: int, drop: bool = False) -> str | None:
    """One streamed chat's finish reason; None if it was dropped after its first content."""
    body = {
        "messages": [{"role": "user", "content": f"Count from {index % 7}."}],
        "max_tokens": 30 if drop else 6,  # as many as it takes to leave before the end
        "temperature": 0.7,
        "stream": True,
        "ignore_eos": True,
    }
    reason = None
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if drop and '"content":' in line:
                return None
            if '"finish_reason":"' in line:
                reason = line.split('"finish_reason":"')[1].split('"')[0]
    return reason


async def many(url: str, count: int, at_once: int, drop: bool = False) -> list[str | None]:
    gate = asyncio.Semaphore(at_once)
    limits = httpx.Limits(max_connections=at_once)
    async with httpx.AsyncClient(timeout=300, limits=limits) as client:

        async def one(index: int) -> str | None:
            async with gate:
                return await chat(client, url, index, drop)

        return await asyncio.gather(*(one(index) for index in range(count)))


def test_a_reset_prefix_cache_has_no_hits(server: Server) -> None:
    body = {"prompt": "A prompt of several blocks. " * 20, "max_tokens": 1}
    hits = []
    for reset in (False, False, True, False):
        if reset:
            assert httpx.post(f"{server.url}/reset_prefix_cache", timeout=SECONDS).status_code == 200
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=SECONDS).status_code == 200
        hits.append(server.metric("vllm:prefix_cache_hits_total"))
    first, second, after_reset, again = hits
    assert first < second == after_reset < again


def test_256_streams_at_once_all_end(loaded: Server) -> None:
    reasons = asyncio.run(many(loaded.url, 256, 256))
    assert reasons == ["length"] * 256


def test_a_thousand_dropped_connections_leave_nothing(loaded: Server) -> None:
    asyncio.run(many(loaded.url, 1000, 64, drop=True))
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
        loaded.wait_metric(name, 0)
    assert asyncio.run(many(loaded.url, 2, 2)) == ["length"] * 2


def test_memory_stays_flat_over_2000_requests(loaded: Server) -> None:
    async def burst(count: int) -> None:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(timeout=300, limits=limits) as client:
            gate = asyncio.Semaphore(32)

            async def one(index: int) -> None:
                async with gate:
                    body = {"prompt": f"{PARIS} {index % 50}", "max_tokens": 1}
                    answer = await client.post(f"{loaded.url}/v1/completions", json=body)
                    assert answer.status_code == 200

            await asyncio.gather(*(one(index) for index in range(count)))

    asyncio.run(burst(400))
    before = loaded.memory()
    asyncio.run(burst(2000))
    assert loaded.memory() - before < 64 * 2**20


def test_a_killed_engine_ends_requests_and_the_server() -> None:
    with Server("--kv-cache-memory-bytes", "200M", "--max-model-len", "1024") as server:
        body = {"prompt": PARIS, "max_tokens": 900, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=SECONDS) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(server.engine_pid, signal.SIGKILL)
            rest = [line for line in lines if line]
        assert '"error"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        with contextlib.suppress(httpx.ConnectError):  # it may have gone already
            assert httpx.get(f"{server.url}/health", timeout=SECONDS).status_code == 503
        assert server.process.wait(SECONDS) not in (0, None)


@pytest.mark.usefixtures("swept")
def test_a_killed_server_takes_its_engine_along() -> None:
    with Server("--kv-cache-memory-bytes", "200M", "--max-model-len", "1024") as server:
        os.kill(server.process.pid, signal.SIGKILL)
        wait_gone(server.engine_pid)


def test_a_signal_does_not_wait_for_the_model_to_be_loaded() -> None:
    command = [sys.executable, "-m", "headrace", "serve", "--port", "0", "--host", "127.0.0.1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (engine := [pid for pid in children(process.pid) if ENGINE in command_line(pid)]):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert "before the server was ready" in log
    assert "KV cache size" not in log
    wait_gone(*engine)


def test_sigterm_lets_running_requests_finish() -> None:
    with Server("--kv-cache-memory-bytes", "200M", "--max-model-len", "1024", "--shutdown-timeout", "120") as server:
        body = {"prompt": PARIS, "max_tokens": 60, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=SECONDS) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.process.wait(SECONDS) == 0
        wait_gone(server.engine_pid)
