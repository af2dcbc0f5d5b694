"""Batch files against a scripted engine: what is answered, what is refused, what an interrupted run leaves behind."""

import asyncio
import errno
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest
from fastapi import FastAPI

from headrace.cli.main import main
from headrace.cli.run_batch import name_of
from headrace.errors import ConfigError, HeadraceError
from headrace.server.batch import runner, transfer
from headrace.server.batch.batches import Batch, new_batch
from headrace.server.batch.files import Files
from headrace.server.batch.job import Job
from headrace.server.batch.lines import Answer, Line
from headrace.server.batch.runner import Caller, answer_lines

from .app import client_of, make

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
        assert (job.answered, job.failed, 1 < most <= 6) == (22, 0, True)
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
        (request("background", background=True), "background", "waits"),
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


async def test_bad_lines_let_others_have_their_turn(tmp_path: Path) -> None:
    app, _ = make()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    with job_of(write(tmp_path / "in.jsonl", *(["bad"] * 300))) as job:
        beside = asyncio.ensure_future(other())
        await answer(app, job, width=3)
        beside.cancel()
    assert turns >= 50


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
        ([request("a"), "", request("b"), request("a")], [], "Lines 1 and 4 have the same custom_id"),
        ([""], [], "holds no requests"),
        (None, [], "can't be read: No such file"),
        ([request("a")], ["--output-file", "{input}"], "are the same"),
        ([request("a")], ["--output-file", "/dev/null/x"], "can't be written: Not a directory"),
        ([request("a")], ["--enable-metrics", "--disable-log-stats"], "nothing to show"),
        ([request("a")], ["--input-file", "http://127.0.0.1:9/x"], "can't be had: .*refused"),
        ([request("a")], ["--port", "99999"], "--port must be a whole number between 0 and 65535"),
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


# -- over HTTP ------------------------------------------------------------------------------------------------------


def sdk(app: FastAPI, key: str = "mine") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=key, base_url="http://server/v1", http_client=client_of(app), max_retries=0)


def upload(*lines: Any) -> tuple[str, bytes]:
    return "in.jsonl", "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()


async def ended(client: openai.AsyncOpenAI, batch: Any) -> Any:
    async with asyncio.timeout(10):
        while batch.status not in ("completed", "failed", "cancelled", "expired"):
            await asyncio.sleep(0.01)
            batch = await client.batches.retrieve(batch.id)
    return batch


async def contents(client: openai.AsyncOpenAI, file_id: str | None) -> list[Any]:
    assert file_id is not None
    return [json.loads(line) for line in (await client.files.content(file_id)).text.splitlines()]


async def test_the_openai_sdk_runs_a_batch() -> None:
    app, engine = make(api_key=["mine"], max_num_seqs=6)
    most = 0

    async def gate() -> None:
        nonlocal most
        most = max(most, engine.num_unfinished)
        await asyncio.sleep(0)

    engine.gate = gate
    async with sdk(app) as client:
        lines = [*(request(f"r{i}") for i in range(20)), "nonsense", request("hot", temperature=-1)]
        lines.append(request("other", "/v1/completions", prompt="Say"))
        file = await client.files.create(file=upload(*lines), purpose="batch")
        assert (file.filename, file.purpose, file.bytes) == ("in.jsonl", "batch", len(upload(*lines)[1]))
        assert (await client.files.content(file.id)).content == upload(*lines)[1]
        batch = await client.batches.create(
            input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h", metadata={"a": "b"}
        )
        assert (batch.status, batch.metadata, batch.model) == ("validating", {"a": "b"}, "fake")
        batch = await ended(client, batch)
        assert batch.status == "completed"
        assert batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": 23, "completed": 20, "failed": 3}
        assert batch.in_progress_at and batch.finalizing_at and batch.completed_at
        answers = await contents(client, batch.output_file_id)
        assert sorted(a["custom_id"] for a in answers) == sorted(f"r{i}" for i in range(20))
        assert {a["response"]["body"]["choices"][0]["message"]["content"] for a in answers} == {"Hello"}
        failures = await contents(client, batch.error_file_id)
        assert {a["custom_id"]: a["error"]["param"] for a in failures} == {
            None: None, "hot": "temperature", "other": "url"
        }  # fmt: skip
        assert 1 < most <= 3  # half of what the engine runs
        assert [one.id async for one in client.batches.list()] == [batch.id]
        assert {one.id async for one in client.files.list()} == {file.id, batch.output_file_id, batch.error_file_id}
        assert [one.id async for one in client.files.list(purpose="batch")] == [file.id]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file.id)
        with pytest.raises(openai.ConflictError, match="completed and can't be cancelled"):
            await client.batches.cancel(batch.id)


async def test_files_and_batches_are_their_keys_own() -> None:
    app, _ = make(api_key=["mine", "yours"])
    async with sdk(app) as mine, sdk(app, "yours") as yours, sdk(app, "nobody") as nobody:
        file = await mine.files.create(file=upload(request("a")), purpose="batch")
        batch = await ended(
            mine, await mine.batches.create(input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h")
        )
        assert batch.status == "completed"
        for found in (
            lambda: yours.files.retrieve(file.id),
            lambda: yours.files.content(batch.output_file_id),
            lambda: yours.files.delete(file.id),
            lambda: yours.batches.retrieve(batch.id),
            lambda: yours.batches.cancel(batch.id),
            lambda: yours.batches.create(input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                await found()  # type: ignore[no-untyped-call]
        assert [one async for one in yours.files.list()] == [one async for one in yours.batches.list()] == []
        with pytest.raises(openai.AuthenticationError):
            await nobody.files.create(file=upload(request("a")), purpose="batch")


async def test_a_cancelled_batch_keeps_what_was_answered() -> None:
    app, engine = make(max_num_seqs=2)
    async with sdk(app) as client:
        file = await client.files.create(file=upload(*(request(str(i)) for i in range(9))), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h")
        hold = asyncio.Event()

        async def gate() -> None:
            if len(engine.calls) == 4:
                await hold.wait()

        engine.gate = gate
        while len(engine.calls) < 4:
            await asyncio.sleep(0.001)
        batch = await client.batches.cancel(batch.id)
        assert batch.status == "cancelling"
        batch = await ended(client, batch)
        assert (batch.status, engine.num_unfinished, len(engine.aborted)) == ("cancelled", 0, 1)
        assert len(await contents(client, batch.output_file_id)) == 3


async def test_a_batch_whose_output_is_deleted_fails_and_leaves_no_file() -> None:
    app, engine = make(max_num_seqs=2)
    hold = asyncio.Event()

    async def gate() -> None:
        if len(engine.calls) == 2:
            await hold.wait()

    engine.gate = gate
    async with sdk(app) as client:
        file = await client.files.create(file=upload(*(request(str(i)) for i in range(9))), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h")
        while batch.output_file_id is None:
            await asyncio.sleep(0.001)
            batch = await client.batches.retrieve(batch.id)
        await client.files.delete(batch.output_file_id)
        hold.set()
        batch = await ended(client, batch)
        assert (batch.status, "was deleted" in batch.errors.data[0].message) == ("failed", True)
        folder = app.state.batches.files.find(file.id, "").path.parent
        assert [path.name for path in folder.iterdir()] == [file.id]


async def test_a_batch_whose_input_is_deleted_before_it_is_read_fails(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = make()
    batches = app.state.batches
    file = batches.files.new("", "lines.jsonl", "batch")
    batch = Batch("", new_batch(CHAT_URL, "m", file.about.id, None), file, Caller())
    batches.begin(batch)
    batches.files.remove(file)
    assert batch.task is not None
    await batch.task
    assert batch.about.errors is not None and "was deleted before it was read" in batch.about.errors.data[0].message
    assert (batch.about.status, caplog.text) == ("failed", "")


@pytest.mark.parametrize(
    ("lines", "message", "line"),
    [
        ([request("a"), request("b"), request("a")], "Lines 1 and 3 have the same custom_id", 3),
        ([""], "holds no requests", None),
    ],
)
async def test_a_file_that_is_no_batch_fails_it(lines: Any, message: str, line: int | None) -> None:
    app, engine = make()
    async with sdk(app) as client:
        file = await client.files.create(file=upload(*lines), purpose="batch")
        batch = await ended(
            client, await client.batches.create(input_file_id=file.id, endpoint=CHAT_URL, completion_window="24h")
        )
        assert (batch.status, engine.calls) == ("failed", [])
        (error,) = batch.errors.data
        assert (message in error.message, error.line) == (True, line)


async def test_a_full_disk_leaves_no_piece_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Files, "append", full)
    app, _ = make()
    async with sdk(app) as client:
        with pytest.raises(openai.InternalServerError, match=r"507.*disk is full"):
            await client.files.create(file=upload(request("a")), purpose="batch")
        assert (await client.files.list()).data == []


async def test_files_are_bounded_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    app, _ = make(max_stored_file_bytes=30_000)
    async with sdk(app) as client:
        file = await client.files.create(file=("a", b"x" * 20_000), purpose="batch")
        with pytest.raises(openai.APIStatusError, match="delete some") as caught:
            await client.files.create(file=("b", b"x" * 20_000), purpose="batch")
        assert caught.value.status_code == 413
        with pytest.raises(openai.APIStatusError, match="larger than all") as caught:
            await client.files.create(file=("b", b"x" * 200_000), purpose="batch")
        assert caught.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="purpose must be batch"):
            await client.files.create(file=("b", b"x"), purpose="user_data")
        assert [one.id async for one in client.files.list()] == [file.id]
        await client.files.delete(file.id)
        small = [await client.files.create(file=("a", b"x"), purpose="batch") for _ in range(7)]
        page = await client.files.list(limit=3)
        assert [one.id for one in page.data] == [one.id for one in small[:3:-1]]
        assert [one.id async for one in page] == [one.id for one in reversed(small)]
        folder = app.state.batches.files.find(small[0].id, "").path.parent
        assert len(list(folder.iterdir())) == 7
        late = time.time() + 700_000
        monkeypatch.setattr("headrace.server.batch.files.time.time", lambda: late)
        assert [one async for one in client.files.list()] == []
        assert list(folder.iterdir()) == []


async def test_uploads_and_batches_that_make_no_sense_are_refused() -> None:
    app, _ = make()
    async with client_of(app) as client:
        assert (await client.post("/v1/files", json={})).status_code == 400
        broken = {"content": b"--x\r\nnonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}
        for sent in (broken, {"data": {"purpose": "batch"}, "files": {"other": b"x"}}, {"data": {"purpose": "batch"}}):
            assert (await client.post("/v1/files", **sent)).status_code == 400  # type: ignore[arg-type]
        body = {"input_file_id": "file-x", "endpoint": CHAT_URL, "completion_window": "24h"}
        assert (await client.post("/v1/batches", json=body)).status_code == 404
        for field, value in (("endpoint", "/v1/batches"), ("endpoint", "/health"), ("completion_window", "1h")):
            answer = await client.post("/v1/batches", json=body | {field: value})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
        assert (await client.get("/v1/batches", params={"after": "batch_x"})).status_code == 400
    app, _ = make(max_stored_file_bytes=0)
    async with client_of(app) as client:
        assert (await client.get("/v1/files")).status_code == 404
