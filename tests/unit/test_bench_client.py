"""The client of ``headrace bench serve`` against scripted answers: what it reads, what it calls a failure."""

import asyncio
import json
from typing import Any

import pytest

from headrace.bench.api import APIS, BadReply, Reply
from headrace.bench.client import Client, Lost, Target
from headrace.bench.datasets import Sample
from headrace.errors import ConfigError
from headrace.remote import address
from tests.unit.scripted_server import HEAD, Call, Script, ScriptedServer

CHUNK = b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n'
USAGE = b'{"data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}'


async def ask(url: str, backend: str = "openai", sample: Sample | None = None, timeout: float = 60) -> Reply:
    reply, api = Reply(), APIS[backend]
    async with Client(Target(url + api.endpoint, backend, {"X-Key": "k"}, timeout=timeout)) as client:
        await client.send(api.body(sample or Sample("hi", 1, 5)), reply)
    return reply


async def stream_chat(call: Call) -> None:
    await call.begin()
    await call.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    await call.part(b": keep-alive\n\n")
    await call.event({"choices": [{"delta": {"reasoning": "hm"}}]})
    await call.event({"choices": [{"delta": {"content": "so"}}]})
    await call.event({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    await call.usage(9, 4)
    await call.end()


async def stream_response(call: Call) -> None:
    await call.begin()
    for text in ("a", "b"):
        event = json.dumps({"type": "response.output_text.delta", "delta": text}).encode()
        await call.part(b"event: response.output_text.delta\r\ndata: %b\r\n\r\n" % event)
    response = {"usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}}
    await call.event({"type": "response.completed", "response": response})
    await call.raw(b"0\r\n\r\n")


async def stream_text(call: Call) -> None:
    await call.begin()
    await call.text("a")
    await call.text("", "length")
    await call.usage(1, 2)
    await call.end()


async def embed(call: Call) -> None:
    await call.answer(200, USAGE)


async def rank(call: Call) -> None:
    await call.answer(200, b'{"results": [{"index": 0, "relevance_score": 1}], "usage": {"total_tokens": 6}}')


@pytest.mark.parametrize(
    ("backend", "script", "sample", "body", "pieces", "counts"),
    [
        (
            "vllm",
            stream_text,
            Sample([5, 6], 2, 5),
            {"prompt": [5, 6], "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}},
            ["a", ""],
            (1, 2),
        ),
        (
            "openai-chat",
            stream_chat,
            Sample("hi", 1, 5),
            {
                "messages": [{"role": "user", "content": "hi"}],
                "max_completion_tokens": 5,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            ["hm", "so", ""],
            (9, 4),
        ),
        (
            "openai-responses",
            stream_response,
            Sample("hi", 1, None),
            {"input": [{"role": "user", "content": "hi"}], "stream": True},
            ["a", "b"],
            (7, 2),
        ),
        ("openai-embeddings", embed, Sample("a", 1, None, documents=("b",)), {"input": ["a", "b"]}, [], (3, 0)),
        (
            "vllm-rerank",
            rank,
            Sample("q", 1, None, documents=("a", "b")),
            {"query": "q", "documents": ["a", "b"]},
            [],
            (6, 0),
        ),
    ],
)
async def test_apis(
    backend: str, script: Script, sample: Sample, body: Any, pieces: list[str], counts: tuple[int, int | None]
) -> None:
    with ScriptedServer(script) as server:
        reply = await ask(server.url, backend, sample)
    assert (server.calls[0].path, server.calls[0].body) == (APIS[backend].endpoint, body)
    assert reply.pieces == pieces
    assert len(reply.times) == (len(pieces) or 1) and reply.times == sorted(reply.times)
    assert (reply.prompt_tokens, reply.output_tokens) == counts


def test_a_stream_may_be_cut_anywhere() -> None:
    stream = (
        b": hello\r\n\r\n" + CHUNK.replace(b'"a"', '"ä"'.encode()) + CHUNK.replace(b"\n", b"\r\n") + b"data: [DONE]\n\n"
    )
    for step in (1, 2, 7, len(stream)):
        reply = Reply()
        for begin in range(0, len(stream), step):
            reply.feed(stream[begin : begin + step], float(begin), APIS["openai"].read)
        assert reply.pieces == ["ä", "a"] and reply.ended, step


def writes(*parts: bytes, abort: bool = False) -> Script:
    async def script(call: Call) -> None:
        for part in parts:
            await call.raw(part)
        if abort:
            await asyncio.sleep(0.05)  # what was written goes out first
            call.break_off()

    return script


def streams(*parts: bytes, end: bool = True) -> Script:
    framed = [b"%x\r\n%b\r\n" % (len(part), part) for part in parts]
    return writes(HEAD % 200, *framed, *([b"0\r\n\r\n"] if end else []))


def answers(status: int, body: bytes) -> Script:
    return lambda call: call.answer(status, body)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (writes(abort=True), "connection lost before an answer"),
        (
            writes(HEAD % 200, b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK), abort=True),
            "connection lost in the middle of an answer",
        ),
        (answers(503, b'{"error": {"message": "full", "code": 503}}'), "HTTP 503: full"),
        (answers(401, b'{"error": "Unauthorized"}'), "HTTP 401: Unauthorized"),
        (answers(404, b'{"detail": "Not Found"}'), "HTTP 404: Not Found"),
        (answers(500, b"<html>" + b"x" * 500), f"HTTP 500: <html>{'x' * 114}…"),
        (streams(CHUNK, b"data: {rubbish\n\n"), "garbage in the stream: data: {rubbish"),
        (streams(b'{"object": "text_completion"}\n'), 'not a stream of events: {"object": "text_completion"}'),
        (streams(CHUNK, b'data: {"error": {"message": "died"}}\n\n'), "error in the stream: died"),
        (streams(b'data: {"choices": [{"text": "\xff"}]}\n\n'), "garbage in the stream: data: "),
        (streams(CHUNK), "the stream ended early"),
        (streams(b"data: [DONE]\n\n"), "an answer without a token"),
        (streams(CHUNK, end=False), "stalled: no byte for 1 s"),
        (writes(b"SSH-2.0-OpenSSH\r\n"), "not HTTP: "),
    ],
)
async def test_failures(script: Script, reason: str) -> None:
    timeout = 1 if reason.startswith("stalled") else 60
    with ScriptedServer(script) as server, pytest.raises((Lost, BadReply)) as failure:
        await ask(server.url, timeout=timeout)
    assert str(failure.value).startswith(reason) and (reason.endswith(" ") or str(failure.value) == reason)


async def test_nobody_listens(port: int) -> None:
    with pytest.raises(Lost, match="connection refused"):
        await ask(f"http://127.0.0.1:{port}")


async def test_garbage_for_an_embedding() -> None:
    with (
        ScriptedServer(answers(200, b"<html>")) as server,
        pytest.raises(BadReply, match="garbage for an answer: <html>"),
    ):
        await ask(server.url, "openai-embeddings")


async def test_connections_are_used_again_until_the_server_closes_them() -> None:
    async def script(call: Call) -> None:
        if call.body == "bad":
            await call.answer(400, b"bad")
        elif call.body == "break":
            call.break_off()
        else:
            await stream_text(call)
        if call.body == "last":
            call.writer.close()

    with ScriptedServer(script) as server:
        async with Client(Target(server.url, "openai", {}, timeout=60)) as client:
            await client.send("good", Reply())
            with pytest.raises(BadReply):
                await client.send("bad", Reply())
            await client.send("last", Reply())
            assert server.connections == 1
            while any(connection.reusable for connection in client._idle):  # the client has yet to hear of it
                await asyncio.sleep(0.01)
            await client.send("good", Reply())
            with pytest.raises(Lost, match="connection lost before an answer"):  # and it is not sent again
                await client.send("break", Reply())
        assert [call.body for call in server.calls] == ["good", "bad", "last", "good", "break"]
        assert server.connections == 2


@pytest.mark.parametrize(
    ("backend", "sample", "sentence"),
    [
        ("openai", Sample([{"role": "user", "content": "hi"}], 1, 5), "add --backend openai-chat"),
        ("openai-chat", Sample([1, 2], 2, 5), "token ids, which chat does not take"),
        ("vllm-rerank", Sample("q", 1, None), "no documents to rank"),
    ],
)
def test_samples_that_an_api_cannot_send(backend: str, sample: Sample, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        APIS[backend].body(sample)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://x:70000", "http://x:0", "http://[::1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="no server's address"):
        address(url)
