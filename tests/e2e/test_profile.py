"""``headrace profile`` as a user runs it: of a server, of a command's own engine, and under VizTracer."""

import gzip
import json
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import httpx
import msgspec
import pytest

from headrace import LLM, SamplingParams
from headrace.cli.main import main
from headrace.errors import ProfilerActiveError, ProfilerError
from tests.processes import children, wait_gone

from .server import SECONDS, Server

HEADRACE = [sys.executable, "-m", "headrace"]
ASK = """
import httpx
httpx.post('{url}/v1/completions', json={{'prompt': 'Hi', 'max_tokens': 5, 'ignore_eos': True}}, timeout={seconds})
"""


def test_a_server_records_while_a_command_runs(tiny: Path, tmp_path: Path) -> None:
    settings = {"profiler": "torch", "torch_profiler_dir": str(tmp_path / "server"), "torch_profiler_with_stack": False}
    with Server(str(tiny), "--max-model-len", "256", "--profiler-config", json.dumps(settings)) as server:
        command = ["profile", "--url", server.url, "--json", "--out", str(tmp_path / "mine"), "--"]
        command += [sys.executable, "-c", ASK.format(url=server.url, seconds=SECONDS)]
        done = subprocess.run([*HEADRACE, *command], capture_output=True, text=True, check=True)
        figures = json.loads(done.stdout)
        assert figures["host_gaps"]["steps"] == 5 and 0 < figures["busy_share"] < 1
        assert {kernel["kind"] for kernel in figures["kernels"]} >= {"GEMM", "attention"}
        assert Path(figures["trace"]).parent == tmp_path / "server"
        assert Path(figures["perfetto"]).read_bytes() == Path(figures["trace"]).read_bytes()
        client = httpx.Client(base_url=server.url, timeout=SECONDS)
        assert client.post("/start_profile").status_code == 200
        conflict = client.post("/start_profile")
        assert conflict.status_code == 409 and "recorded already" in conflict.json()["error"]["message"]
        (again,) = client.post("/stop_profile").json()["files"]
        assert again != figures["trace"] and Path(again).exists()
        words = ["profile", "--url", server.url, "--num-steps", "8", "--out", str(tmp_path / "mine")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([*HEADRACE, *words], **pipes) as recording:
            while recording.poll() is None:  # it may take long to begin
                client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 20, "ignore_eos": True})
            table, said = recording.communicate()
        assert "Recording 8 steps" in said and "waiting for the host between two" in table
        # With a profile under way, a signal still ends the server.
        assert client.post("/start_profile").status_code == 200
        client.close()


def test_a_server_without_a_profiler_has_no_such_routes(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert httpx.post(f"{server.url}/stop_profile", timeout=SECONDS).status_code == 404
    assert main(["profile", "--url", server.url, "--", "true"]) == 2
    assert "start it with --profiler-config" in capsys.readouterr().err


def test_a_commands_own_engine_records(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["profile", "--json", "--out", str(tmp_path), "--skip-steps", "3", "--num-steps", "4", "--"]
    command = ["headrace", "generate", "--model", str(tiny), "--prompt", "Hi", "--max-tokens", "12"]
    assert main([*words, *command, "--temperature", "0"]) == 0
    figures = json.loads(capfd.readouterr().out)
    assert figures["host_gaps"]["steps"] == 4
    assert main(["profile", "--out", str(tmp_path), "--", sys.executable, "-c", "pass"]) == 1
    assert "the command recorded nothing" in capfd.readouterr().err
    assert main(["profile", "--out", str(tmp_path), "--", "headrace", "generate", "--no-such-flag"]) == 2


def test_an_llm_records_between_two_calls(tiny: Path, tmp_path: Path) -> None:
    llm = LLM(str(tiny), max_model_len=256, profiler_config={"profiler": "torch", "torch_profiler_dir": str(tmp_path)})
    llm.start_profile()
    with pytest.raises(ProfilerActiveError):
        llm.start_profile()
    llm.generate("Hi", SamplingParams(max_tokens=3, temperature=0), use_tqdm=False)
    (path,) = llm.stop_profile()
    events = json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]
    steps = [event for event in events if event["name"].startswith("headrace: step")]
    assert len([event for event in steps if event["cat"] == "user_annotation"]) == 3
    llm.shutdown()
    with pytest.raises(ProfilerError, match="No profiler is configured"):
        LLM(str(tiny), max_model_len=256).start_profile()


@pytest.mark.slow
def test_viztracer_sees_the_server_and_its_engine(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("viztracer")
    out = tmp_path / "out"
    words = [*HEADRACE, "profile", "--tool", "viztracer", "--out", str(out), "--"]
    words += ["headrace", "serve", str(tiny), "--port", "0", "--host", "127.0.0.1", "--max-model-len", "256"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert any("Application startup complete." in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=200)[0]
    assert process.returncode == 0 and "open it in ui.perfetto.dev" in said
    events = msgspec.json.decode(gzip.decompress((out / "viztracer.json.gz").read_bytes()))["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    calls: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event["ph"] == "X":
            calls[names[event["pid"]]].add(event["name"].partition(" ")[0])
    assert set(calls) == {"MainProcess", "headrace.engine.process"}
    assert "run_server" in calls["MainProcess"] and "build_engine" in calls["headrace.engine.process"]
    assert all(not children(pid) for pid in names)
    for pid in names:
        wait_gone(pid)
