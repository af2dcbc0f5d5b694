"""`headrace lab` and `headrace bench sweep` as a user runs them: the default model, a real benchmark, one page."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

BENCH = "headrace bench serve --num-prompts 6 --random-input-len 16 --random-output-len 8"
SMALL = ["--max-model-len", "512", "--kv-cache-memory-bytes", "64M"]


def headrace(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


def assert_nobody_serves(port: int) -> None:
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    flag = f"--port\0{port}\0".encode()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert flag not in process.read_bytes() or int(process.parent.name) == os.getpid()
        except OSError:
            continue  # it has ended meanwhile


def test_a_lab_in_one_command(tmp_path: Path, port: int) -> None:
    out = tmp_path / "lab"
    flags = ["--out", out, "--chats", 2, "--chat-tokens", 8, "--bench-cmd", BENCH]
    done = headrace("lab", *flags, "--", "headrace", "serve", "--port", port, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Report: {out}/report.html" in done.stdout
    chat = json.loads((out / "chat.json").read_text())
    assert len(chat["chats"]) == 2 and all(0 < c["ttft_ms"] <= c["total_ms"] and c["answer"] for c in chat["chats"])
    result = json.loads((out / "benchmark.json").read_text())
    assert result["completed"] == 6 and len(result["ttfts"]) == 6
    page = (out / "report.html").read_text()
    for expected in ("Chat latency", "server ready after", "vllm:generation_tokens_total", "<svg", "Python"):
        assert expected in page
    generated = 6 * 8 + sum(c["tokens"] for c in chat["chats"])
    row = re.search(r"vllm:generation_tokens_total<small.*?</tr>", page, re.DOTALL)
    assert row is not None and re.findall(r"<td>(\d+)</td>", row.group()) == ["0", str(generated), str(generated)]
    assert "'uvicorn_log_level': 'debug'" in (out / "server.log").read_text()
    assert_nobody_serves(port)
    again = headrace("lab", *flags, "--", "headrace", "serve", "--port", port)
    assert again.returncode == 2 and again.stderr.endswith("is not empty: choose a new folder.\n")


def test_a_lab_whose_server_does_not_start(tmp_path: Path, port: int) -> None:
    command = ["headrace", "serve", "--port", port, "--max-model-len", "0"]
    done = headrace("lab", "--out", tmp_path / "lab", "--", *command)
    assert done.returncode == 1 and "the server ended with code 2" in done.stderr and "Traceback" not in done.stderr
    assert "--max-model-len" in (tmp_path / "lab/server.log").read_text()
    assert_nobody_serves(port)


def test_a_sweep_of_a_real_server(tmp_path: Path, port: int) -> None:
    (tmp_path / "serve.json").write_text('[{"max_num_seqs": 1}, {"max_num_seqs": 4}]')
    serve = " ".join(["headrace", "serve", "--port", str(port), *SMALL])
    flags = ["--serve-cmd", serve, "--serve-params", tmp_path / "serve.json", "--bench-cmd", BENCH]
    where = ["-o", tmp_path, "-e", "trial"]
    done = headrace("bench", "sweep", "--concurrencies", "4", *flags, *where)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads((tmp_path / "trial/summary.json").read_text())["runs"]
    assert [run["label"] for run in runs] == ["max_num_seqs=1 concurrency=4", "max_num_seqs=4 concurrency=4"]
    assert all(run["completed"] == 6 and run["failed"] == 0 for run in runs)
    assert_nobody_serves(port)
    resumed = headrace("bench", "sweep", "--concurrencies", "4", *flags, *where, "--resume")
    assert resumed.returncode == 0 and "starting" not in resumed.stdout  # nothing was left to measure
