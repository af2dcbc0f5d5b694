"""``headrace bench serve`` against a real server: its totals are the server's own, to the token."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.main import main
from tests.e2e.server import Server

COUNTERS = {"prompt_tokens_total": "total_input_tokens", "generation_tokens_total": "total_output_tokens"}


def counted(metrics: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^vllm:{name}\{{.*\}} (\S+)$", metrics, re.MULTILINE))


def bench(server: Server, directory: Path, *flags: str) -> dict[str, Any]:
    """The saved result of a benchmark in which everything succeeded."""
    saving = ["--save-result", "--save-detailed", "--result-dir", str(directory), "--result-filename", "result.json"]
    assert main(["bench", "serve", "--base-url", server.url, *saving, *flags]) == 0
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    return result


def test_totals_are_the_servers(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--input-len", "24", "--output-len", "6"]
    with Server(str(tiny), "--max-model-len", "512", "--kv-cache-memory-bytes", "256M") as server:
        for flags in (
            ["--num-prompts", "12", "--random-range-ratio", "0.5", "--num-client-processes", "2", "--num-warmups", "1"],
            ["--num-prompts", "6", "--backend", "openai-chat", "--request-rate", "50", "--max-concurrency", "3"],
            ["--num-prompts", "6", "--backend", "openai-chat", "--dataset-name", "multi-turn"],
        ):
            before = {name: server.metric(f"vllm:{name}") for name in COUNTERS}
            result = bench(server, tmp_path, *flags, *lengths)
            assert result["completed"] == result["num_prompts"] == int(flags[1])
            for name, key in COUNTERS.items():
                taken = [result["server_metrics"][moment] for moment in ("before", "after")]
                assert counted(taken[1], name) - counted(taken[0], name) == result[key], (flags, name)
                assert server.metric(f"vllm:{name}") == counted(taken[1], name) >= before[name] + result[key]
            assert 0 < result["decode_mbu"] < 1 and 0 < result["prefill_mfu"] < 1 and result["limit_device"]
            assert sum(result["output_lens"]) == result["total_output_tokens"]
            assert all(len(itls) < tokens for itls, tokens in zip(result["itls"], result["output_lens"], strict=True))
        assert result["total_input_tokens"] > 6 * 24  # turns come with what was said before
    gone = ["--base-url", server.url, "--num-prompts", "2", "--model", result["model_id"], "--tokenizer", str(tiny)]
    assert main(["bench", "serve", *gone, *lengths]) == 1
    assert "      2 × connection refused" in capsys.readouterr().out


def test_three_thousand_streams_at_once_in_one_process(tmp_path: Path) -> None:
    count, tokens = 3000, 10
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < count + 100:
        pytest.skip("this system gives a process too few files")
    command = [sys.executable, "-m", "tests.e2e.flood", "0", str(count), str(tokens), "50000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        port = server.stdout.readline().strip()
        flags = ["--port", port, "--model", "m", "--skip-tokenizer-init", "--input-len", "1"]
        flags += ["--num-prompts", str(count)]
        assert main(["bench", "serve", *flags, "--result-dir", str(tmp_path), "--result-filename", "r.json"]) == 0
        server.stdin.close()
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["max_concurrent_requests"] == result["completed"] == count and result["num_client_processes"] == 1
    assert result["total_output_tokens"] == count * tokens
