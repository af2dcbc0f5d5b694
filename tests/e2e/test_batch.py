"""``headrace run-batch`` and batches over HTTP with the default model, and the examples of their pages."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import children, command_line, wait_gone

NUM_LINES = 24
COMMAND = [sys.executable, "-m", "headrace", "run-batch", "--max-num-seqs", "2", "--max-model-len", "512"]


def chat(custom_id: str, **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Count from {custom_id}."}]
    body = {"messages": messages, "max_tokens": 32, "temperature": 0, "ignore_eos": True} | body
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, "-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_lines(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_and_an_interrupted_run_are_gone_on_with(tmp_path: Path) -> None:
    lines = [json.dumps(chat(str(i))) for i in range(NUM_LINES)]
    lines[3:3] = ["not a request", json.dumps(chat("hot", temperature=-1)), json.dumps(chat("stream", stream=True))]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    partial, output = tmp_path / "out.jsonl.partial", tmp_path / "out.jsonl"

    killed = start(tmp_path)
    wait_lines(partial, 6, killed)
    (engine,) = [pid for pid in children(killed.pid) if "headrace" in command_line(pid)]
    killed.kill()
    killed.communicate()
    wait_gone(engine)
    kept = {json.loads(line)["custom_id"]: line for line in partial.read_text().splitlines() if '"error":null' in line}
    assert len(kept) >= 3

    interrupted = start(tmp_path)
    wait_lines(partial, partial.read_bytes().count(b"\n") + 2, interrupted)
    began = time.monotonic()
    interrupted.send_signal(signal.SIGINT)
    _, said = interrupted.communicate(timeout=60)
    assert (interrupted.returncode, time.monotonic() - began < 10) == (130, True), said
    assert f"of {NUM_LINES + 3} lines are answered: run this again to go on" in said
    assert not output.exists()

    last = start(tmp_path)
    _, said = last.communicate(timeout=200)
    assert last.returncode == 0, said
    assert f"{NUM_LINES + 3} lines are answered, 3 of them with an error: {output}" in said
    found = output.read_text().splitlines()
    answers = [json.loads(line) for line in found]
    assert [a["custom_id"] for a in answers] == ["0", "1", "2", None, "hot", "stream", *map(str, range(3, NUM_LINES))]
    assert set(kept.values()) <= set(found)
    for answer in answers:
        if answer["error"] is None:
            assert answer["response"]["body"]["usage"]["completion_tokens"] == 32
    assert not partial.exists()
