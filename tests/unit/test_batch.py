"""Batch files against a scripted engine: what is answered, what is refused, what an interrupted run leaves behind."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI

from headrace.cli.main import main
from headrace.cli.run_batch import name_of
from headrace.errors import ConfigError, HeadraceError
from headrace.server.batch import runner, transfer
from headrace.server.batch.job import Job
from headrace.server.batch.lines import Answer, Line
from headrace.server.batch.runner import answer_lines

from .test_server import make

CHAT_URL = "/v1/chat/completions"
LIMIT = 10_000


def request(custom_id: Any, url: str = CHAT_URL, method: str = "POST", **body: Any) -> dict[str, Any]:
    messages = {"messages": [{"role": "user", "content": f"I am {custom_id}"}]}
    return {"custom_id": custom_id, "method": method, "url": url, "body": messages | body}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def job_of(path: Path, *, model: str = "m", resume: bool = True) -> Job:
    return Job(path, path.with_name("out.jsonl"), model=model, limit=LIMIT, resume=resume)


async def answer(app: FastAPI, job: Job, width: int = 4, stop_after: int | None = None) -> None:
    """Answer what is open; like a signal, cut off after ``stop_after`` answers."""

    def take(line: Line, answered: Answer) -> None:
        job.take(line, answered)
        if stop_after is not None and job.answered >= stop_after:
            raise HeadraceError("stop")

    await answer_lines(app, job.model, job.open_lines(app.state.batched), width, take)


async def test_answers_are_the_routes_own_in_the_inputs_order(tmp_path: Path) -> None:
    app, engine = make()
    requests = [request(f"r{i}", max_tokens=5 - i % 4) for i in range(20)]
    requests.append(request("text", "/v1/completions", prompt="Say", max_tokens=2))
    requests.append(request("tokens", "/tokenize"))
    most = 0

    async def gate() -> None:
        nonlocal most
        most = max(most, engine.num_unfinished)
        await asyncio.sleep(0)

    engine.gate = gate
    with job_of(write(tmp_path / "in.jsonl", *requests)) as job:
        await answer(app, job, width=6)
        assert (job.answered, job.failed, most) == (22, 0, 6)
        assert not (tmp_path / "out.jsonl").exists()
        job.complete()
    answers = read(tmp_path / "out.jsonl")
    assert [a["custom_id"] for a in answers] == [r["custom_id"] for r in requests]
    assert all(a["error"] is None and a["response"]["status_code"] == 200 for a in answers)
    assert [a["response"]["body"]["choices"][0]["message"]["content"] for a in answers[:4]] == [
        *("Hello", "Hell", "Hel", "He")
    ]
    assert answers[20]["response"]["body"]["choices"][0]["text"] == "He"
    assert answers[21]["response"]["body"]["count"] > 0
    assert len({a["id"] for a in answers}) == len({a["response"]["request_id"] for a in answers}) == 22
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.jsonl", "out.jsonl"]


async def test_bad_lines_are_answered_with_what_is_wrong_and_hold_nobody_up(tmp_path: Path) -> None:
    app, _ = make()
    bad = [
        ("no json", None, "no JSON object"),
        ("[]", None, "no JSON object"),
        ("[" * 5000, None, "can't be answered"),
        (request(None), "custom_id", "needs a custom_id"),
        (request(7), "custom_id", "needs a custom_id"),
        (request("get", method="GET"), "method", "must be POST"),
        (request("url", "/v1/nothing"), "url", "must be one of /"),
        (request("health", "/health"), "url", "must be one of /"),
        (request("far", "http://example.com/v1/chat/completions"), "url", "must be one of /"),
        ({**request("body"), "body": "text"}, "body", "must be a JSON object"),
        (request("stream", stream=True), "stream", "no streams"),
        (request("long", pad="x" * LIMIT), None, "longer than the 10,000 bytes"),
        (request("value", temperature=-1), "temperature", "temperature must be"),
        (request("model", model="other"), "model", "does not exist"),
    ]
    with job_of(write(tmp_path / "in.jsonl", *(line for line, *_ in bad), "", request("good"))) as job:
        await answer(app, job)
        assert (job.answered, job.failed) == (len(bad) + 1, len(bad))
        job.complete()
    *answers, good = read(tmp_path / "out.jsonl")
    assert (good["custom_id"], good["error"]) == ("good", None)
    for (_, param, message), found in zip(bad, answers, strict=True):
        assert found["error"] == found["response"]["body"]["error"]
        assert found["error"]["code"] == found["response"]["status_code"] >= 400
        assert found["error"]["param"] == param
        assert message in found["error"]["message"]


async def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    app, engine = make()
    path = write(tmp_path / "in.jsonl", *(request(f"r{i}") for i in range(9)), request("bad", temperature=-1))
    partial = tmp_path / "out.jsonl.partial"
    with pytest.raises(HeadraceError, match="stop"), job_of(path) as job:
        await answer(app, job, width=1, stop_after=4)
    first = read(partial)
    with partial.open("ab") as file:
        file.write(b'none of ours\n{"id": "batch_req_00", "err')  # and half a line, as a killed process leaves it
    with job_of(path) as job:
        assert (job.answered, job.total) == (4, 10)
        with pytest.raises(ConfigError, match="another run"), job_of(path):
            pass
        await answer(app, job)
        job.complete()
    assert len(engine.calls) == 9
    done = read(tmp_path / "out.jsonl")
    assert done[:4] == first
    assert [a["custom_id"] for a in done] == [*(f"r{i}" for i in range(9)), "bad"]

    # Once more with a line mended, one changed, one new and one gone: what is the same stays, failures are tried again.
    lines = [*(request(f"r{i}") for i in range(7)), request("r7", max_tokens=1), request("bad"), request("new")]
    write(path, *lines)
    with job_of(path) as job:
        assert job.answered == 7
        await answer(app, job)
        job.complete()
    again = read(tmp_path / "out.jsonl")
    assert again[:7] == done[:7]
    assert [a["custom_id"] for a in again if a["error"] is None] == [line["custom_id"] for line in lines]
    assert again[7]["response"]["body"]["choices"][0]["message"]["content"] == "H"
    with job_of(path) as job:
        assert job.answered == job.total
        job.complete()
    assert read(tmp_path / "out.jsonl") == again
    with job_of(path, model="another") as job:
        assert job.answered == 0
    assert read(tmp_path / "out.jsonl") == again
    with job_of(path, resume=False) as job:
        assert job.answered == 0


async def test_a_failing_engine_fails_lines_and_a_full_queue_makes_them_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, engine = make()
    assert runner.retry_after(httpx.Response(429, headers={"retry-after": "7"})) == 7
    monkeypatch.setattr(runner, "retry_after", lambda response: 0.01)
    path = write(tmp_path / "in.jsonl", request("a"), request("b"))
    engine.fail = ValueError("boom")
    with job_of(path) as job:
        await answer(app, job)
        assert job.failed == 2
    engine.fail, engine.queue_full = None, True
    with job_of(path) as job:
        waiting = asyncio.ensure_future(answer(app, job))
        await asyncio.sleep(0.05)
        assert (job.answered, waiting.done()) == (0, False)
        engine.queue_full = False
        await asyncio.wait_for(waiting, 5)
        assert (job.answered, job.failed) == (2, 0)


async def test_a_cancelled_batch_aborts_its_requests(tmp_path: Path) -> None:
    app, engine = make()
    engine.gate = asyncio.Event().wait
    with job_of(write(tmp_path / "in.jsonl", *(request(str(i)) for i in range(5)))) as job:
        running = asyncio.ensure_future(answer(app, job, width=3))
        while engine.num_unfinished < 3:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (engine.num_unfinished, len(engine.aborted)) == (0, 3)
    assert not (tmp_path / "out.jsonl.partial").exists()


async def test_lines_are_read_as_there_is_room_for_them() -> None:
    app, engine = make()
    num_read = num_taken = 0

    def endless() -> Iterator[Line]:
        nonlocal num_read
        while True:
            num_read += 1
            yield Line(num_read, num_read, b"", str(num_read), CHAT_URL, msgspec.Raw(b'{"messages": []}'))

    def take(line: Line, answered: Answer) -> None:
        nonlocal num_taken
        num_taken += 1
        assert num_read - num_taken < 8
        if num_taken > 200:
            raise HeadraceError("enough")

    with pytest.raises(HeadraceError, match="enough"):
        await answer_lines(app, "m", endless(), 8, take)
    assert engine.num_unfinished == 0


@pytest.mark.parametrize(
    ("lines", "flags", "message"),
    [
        ([request("a"), "", request("b"), request("a")], [], "lines 1 and 4 of .* have the same custom_id"),
        ([""], [], "holds no requests"),
        (None, [], "can't be read: No such file"),
        ([request("a")], ["--output-file", "{input}"], "are the same"),
        ([request("a")], ["--output-file", "/dev/null/x"], "can't be written: Not a directory"),
        ([request("a")], ["--enable-metrics", "--disable-log-stats"], "nothing to show"),
        ([request("a")], ["--input-file", "http://127.0.0.1:9/x"], "can't be had: .*refused"),
        ([request("a")], ["--response-role", "user"], "invalid choice"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: Any, flags: list[str], message: str
) -> None:
    path = tmp_path / "in.jsonl"
    if lines is not None:
        write(path, *lines)
    flags = [flag.format(input=path) for flag in flags]
    assert main(["run-batch", "-i", str(path), "-o", str(tmp_path / "out.jsonl"), "--model", "none", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


async def test_files_come_from_and_go_to_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, b"the lines" if self.path == "/in" else b"")

        def do_PUT(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(503 if len(received) == 1 else 201, b"")

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(transfer, "PAUSE", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        transfer.download(f"{url}/in", tmp_path / "in")
        transfer.upload(tmp_path / "in", f"{url}/out?signature=1")
        server.shutdown()
    assert (tmp_path / "in").read_bytes() == b"the lines"
    assert received == [b"the lines"] * 2
    with pytest.raises(HeadraceError, match=f"PUT .* failed 5 times .*; the output is in {tmp_path}/in"):
        transfer.upload(tmp_path / "in", f"{url}/out")
    assert name_of(f"{url}/a/out.jsonl?signature=1") == name_of(f"{url}/a/out.jsonl?signature=2") != name_of(f"{url}/b")
