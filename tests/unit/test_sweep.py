"""Sweeps with a server and a benchmark that are small scripts, and the arithmetic that they need."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.bench import server as server_module
from headrace.bench.capacity import Trial, judge, largest_rate, parse_slo, saturation
from headrace.bench.parameters import read_parameters, with_flags
from headrace.bench.server import run_command, serving, url_of
from headrace.cli.main import main
from headrace.command import as_typed
from headrace.errors import ConfigError, HeadraceError
from tests.processes import wait_gone

from .scripted_server import Call, ScriptedServer

SERVER = """
import http.server, json, pathlib, subprocess, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
deaf = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(600)"
helper = subprocess.Popen([sys.executable, "-c", deaf])
pathlib.Path(__file__).with_suffix(".pids").open("a").write(f"{helper.pid}\\n")
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = json.dumps({"data": [{"max_model_len": 4096}]}) if "models" in self.path else "x_total 1\\n"
        self.send_response(200); self.end_headers(); self.wfile.write(body.encode())
        print(self.command, self.path, flush=True)
    do_GET = do_POST = answer
    def log_message(self, *arguments): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
BENCH = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
for flag in ("request-rate", "max-concurrency", "num-prompts", "max-num-seqs"):
    parser.add_argument("--" + flag, type=float, default=8.0)
parser.add_argument("--result-dir"); parser.add_argument("--result-filename"); parser.add_argument("--base-url")
given, rest = parser.parse_known_args()
place = pathlib.Path(given.result_dir, given.result_filename)
with pathlib.Path(__file__).with_suffix(".calls").open("a") as calls:
    print(*sys.argv[1:], file=calls)
rate = given.request_rate
served = min(rate, 10.0)  # requests/s that this pretended server can do
late = 20.0 if rate <= 10 else 90.0 * min(rate, 1000.0)
result = {"label": None, "request_rate": rate, "num_prompts": given.num_prompts, "completed": given.num_prompts,
  "failed": 0, "duration": given.num_prompts / served, "request_throughput": served, "output_throughput": 10 * served,
  "latencies": [1, 2]}
for key in ("ttft", "tpot", "itl", "e2el"):
    result |= {f"{name}_{key}_ms": late for name in ("mean", "median", "p99")}
if "FAIL" in rest and rate == 2:
    sys.exit("the bench broke")
place.write_text(json.dumps(result))
"""


@pytest.fixture
def scripts(tmp_path: Path, port: int) -> dict[str, str]:
    """A server's and a benchmark's command, whose calls are in ``bench.calls``."""
    (tmp_path / "server.py").write_text(SERVER)
    (tmp_path / "bench.py").write_text(BENCH)
    python = shlex.quote(sys.executable)
    return {
        "serve": f"{python} {tmp_path}/server.py --port {port}",
        "bench": f"{python} {tmp_path}/bench.py",
        "url": f"http://127.0.0.1:{port}",
    }


@pytest.fixture(autouse=True)
def light_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The snapshot loads torch, which these tests need not wait for."""
    monkeypatch.setattr("headrace.bench.snapshot.save_environment", lambda folder: None)


def sweep(tmp_path: Path, scripts: dict[str, str], *flags: str) -> int:
    fixed = ["--serve-cmd", scripts["serve"], "--bench-cmd", scripts["bench"], "-o", str(tmp_path), "-e", "trial"]
    return main(["bench", "sweep", *flags, *fixed])


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "bench.calls"
    return path.read_text().splitlines() if path.exists() else []


def assert_all_gone(tmp_path: Path) -> None:
    for pid in map(int, (tmp_path / "server.pids").read_text().split()):
        wait_gone(pid)


def test_suites_by_name(tmp_path: Path, scripts: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, scripts, "--suite", "rate,input", "--input-lens", "128,4096") == 0
    printed = capsys.readouterr().out
    assert "Saturated at rate=16 (100.0 output tokens/s)" in printed
    assert "input=4096: left out, it needs 4097 tokens, the model takes 4096" in printed
    rates = [json.loads((tmp_path / f"trial/SERVE---BENCH--rate={rate}/run=0.json").read_text()) for rate in (1, 32)]
    assert [result["label"] for result in rates] == ["rate=1", "rate=32"] and rates[0]["suite"] == "rate"
    first, *_, last = calls(tmp_path)
    assert "--random-input-len 512 --random-output-len 256" in first and "--request-rate 1 " in first
    assert "--random-output-len 1 " in last and f"--base-url {scripts['url']}" in last
    seeds = [call.split("--seed ")[1].split()[0] for call in calls(tmp_path)]
    assert len(set(seeds)) == len(seeds) == 8, "the prefix cache would know another point's prompts"
    assert (tmp_path / "trial/SERVE--.metrics-after.txt").read_text() == "x_total 1\n"
    assert_all_gone(tmp_path)


def test_a_server_that_runs_already(tmp_path: Path, scripts: dict[str, str]) -> None:
    flags = ["--bench-cmd", scripts["bench"], "--rates", "1,2", "-o", str(tmp_path), "-e", "trial"]
    with serving(shlex.split(scripts["serve"]), scripts["url"], tmp_path / "server.log"):
        assert main(["bench", "sweep", "--base-url", scripts["url"], *flags]) == 0
    assert len((tmp_path / "trial/summary.csv").read_text().splitlines()) == 1 + 2


def test_the_form_of_vllm(tmp_path: Path, scripts: dict[str, str]) -> None:
    (tmp_path / "serve.json").write_text('[{"max_num_seqs": 8}, {"max_num_seqs": 16}]')
    (tmp_path / "bench.json").write_text(
        '{"low": {"max_concurrency": 8, "request_rate": 1}, "high": {"max_concurrency": 16, "x.y": true}}'
    )
    params = ["--serve-params", f"{tmp_path}/serve.json", "--bench-params", f"{tmp_path}/bench.json"]
    flags = ["serve", *params, "--link-vars", "max_num_seqs=max_concurrency", "--num-runs", "2"]
    assert sweep(tmp_path, scripts, *flags, "--warmup-num-prompts", "3") == 0
    folder = tmp_path / "trial"
    found = {str(path.relative_to(folder)) for path in folder.glob("*BENCH*/*.json")}
    names = ("SERVE--max_num_seqs=8-BENCH--low", "SERVE--max_num_seqs=16-BENCH--high")
    assert found == {
        f"{name}/{file}.json" for name in names for file in ("run=0", "run=1", "summary", "warmup")
    }  # the pairs that --link-vars excludes are absent
    rows = list(csv.DictReader((folder / "summary.csv").read_text().splitlines()))
    assert [(row["max_num_seqs"], row["run_number"]) for row in rows] == [
        ("8", "0"),
        ("8", "1"),
        ("16", "0"),
        ("16", "1"),
    ]
    assert "latencies" not in rows[0] and len(json.loads((folder / "summary.json").read_text())["runs"]) == 4
    assert "--num-prompts 3" in calls(tmp_path)[0] and "--x.y=true" in calls(tmp_path)[-1]
    assert "POST /reset_prefix_cache" in (folder / "SERVE--max_num_seqs=8.log").read_text()


def test_resumes_with_what_is_missing(
    tmp_path: Path, scripts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    broken = scripts | {"bench": scripts["bench"] + " FAIL --header Authorization=secret"}
    assert sweep(tmp_path, broken, "--rates", "1,2,4") == 1
    assert "the bench broke" in capsys.readouterr().err
    failure = json.loads((tmp_path / "trial/SERVE---BENCH--rate=2/run=0.failure.json").read_text())
    assert failure["returncode"] == 1 and "the bench broke" in failure["log"]
    assert "--header '***'" in failure["command"] and "secret" not in json.dumps(failure)
    assert sweep(tmp_path, broken, "--rates", "1,2,4") == 2
    assert "add --resume, or choose another -e." in capsys.readouterr().err
    assert sweep(tmp_path, scripts, "--rates", "1,2,4", "--resume") == 2  # of another --bench-cmd
    assert sweep(tmp_path, broken, "--rates", "1,2,4", "--resume", "--continue-on-error") == 1
    tried = [call.split("--request-rate ")[1].split()[0] for call in calls(tmp_path)]
    assert tried == ["1", "2", "2", "4"]
    assert len((tmp_path / "trial/summary.csv").read_text().splitlines()) == 1 + 2
    assert_all_gone(tmp_path)


def test_dry_run_runs_nothing(tmp_path: Path, scripts: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, scripts, "--suite", "all", "--dry-run") == 0
    server, *benches = capsys.readouterr().out.splitlines()
    assert server == scripts["serve"] and len(benches) == 7 + 8 + 8 + 6
    assert not (tmp_path / "trial").exists() and not calls(tmp_path)


def test_largest_rate_that_keeps_an_slo(
    tmp_path: Path, scripts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, scripts, "--slo", "ttft_p99=200ms,tpot_mean=0.1s", "--slo-seconds", "5") == 0
    (found,) = json.loads((tmp_path / "trial/summary.json").read_text())["slo"]
    assert 10 / 1.05 <= found["largest_rate"] <= 10
    assert [trial["rate"] for trial in found["trials"]][:5] == [1, 2, 4, 8, 16]
    assert found["trials"][4]["broken"] == "missed ttft_p99=200ms, tpot_mean=100ms"
    assert "--metric-percentiles 99" in calls(tmp_path)[0]
    assert f"kept up to {found['largest_rate']:g} requests/s" in capsys.readouterr().out


def test_a_sweep_that_is_refused_leaves_no_folder(
    tmp_path: Path, scripts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer(Call.end) as taken:
        assert sweep(tmp_path, scripts | {"serve": f"{scripts['serve']} --port {taken.port}"}, "--rates", "1") == 2
    assert main(["bench", "sweep", "--base-url", scripts["url"], "-o", str(tmp_path), "-e", "trial"]) == 1
    assert main(["bench", "sweep", "--base-url", "x", "-o", str(tmp_path), "-e", "trial"]) == 2
    busy, silent, wrong = capsys.readouterr().err.splitlines()
    assert "something already answers" in busy and "no server answers" in silent and "'x' is no server's" in wrong
    for command in ("serve", "bench"):
        assert sweep(tmp_path, scripts | {command: "nowhere to be found"}, "--rates", "1") == 2
    assert main(["lab", "--out", str(tmp_path / "trial"), "--", "nowhere"]) == 2
    assert capsys.readouterr().err == "headrace: error: there is no command 'nowhere'.\n" * 3
    assert not (tmp_path / "trial").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_is_left_behind(tmp_path: Path, scripts: dict[str, str], number: signal.Signals) -> None:
    (tmp_path / "bench.py").write_text("import time; time.sleep(600)")
    command = [sys.executable, "-m", "headrace", "bench", "sweep", "--rates", "1", "-o", str(tmp_path), "-e", "trial"]
    folder = tmp_path / "trial"
    folder.mkdir()
    (folder / "environment.json").write_text("{}")
    with subprocess.Popen([*command, "--serve-cmd", scripts["serve"], "--bench-cmd", scripts["bench"]]) as process:
        deadline = time.monotonic() + 60
        while not (folder / "SERVE---BENCH--rate=1/run=0.log").exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(60) == (130 if number != signal.SIGKILL else -signal.SIGKILL)
    if number == signal.SIGKILL:  # whose victims' children can't be told
        (pid,) = map(int, (tmp_path / "server.pids").read_text().split())
        os.kill(pid, signal.SIGKILL)
    assert_all_gone(tmp_path)
    assert server_module.health(scripts["url"]) is None


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; sys.exit('no such device')"]
    server = serving(words, "http://127.0.0.1:9", tmp_path / "log")
    with pytest.raises(HeadraceError, match="ended with code 1:\nno such device"), server:
        pass


def test_what_a_command_prints_is_kept_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [sys.executable, "-c", "import sys; print('one', flush=True); sys.exit('two')"]
    for show, shown in ((True, "one\ntwo\n"), (False, "")):
        assert run_command(words, tmp_path / "log", show=show) == 1
        assert capfd.readouterr().out == shown and (tmp_path / "log").read_text() == "one\ntwo\n"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "say what to measure: --serve-cmd starts a server, --base-url names one that runs."),
        (["--serve-cmd", "x --port abc"], "'http://127.0.0.1:abc' is no server's address"),
        (["--base-url", "http://x", "--suite", "speed"], "there is no suite 'speed'"),
        (["--base-url", "http://x", "--suite", "rate", "--input-lens", "4"], "--suite leaves it out"),
        (["--base-url", "http://x", "--slo", "ttft=3"], "--slo 'ttft=3' is no objective such as ttft_p99=200ms"),
        (["--base-url", "http://x", "--serve-params", "x"], "--serve-params needs --serve-cmd"),
        (["--base-url", "http://x", "--bench-params", "none.json"], "--bench-params none.json can't be read"),
        (["--serve-cmd", "headrace serve --port 0"], "give it a port"),
        (["--serve-cmd", ""], "--serve-cmd names no command."),
        (["--base-url", "http://x", "--resume"], "--resume needs -e"),
        (["--base-url", "http://x", "--rates", "0,1"], "'0' is no number above 0"),
    ],
)
def test_what_is_refused(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sweep", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_a_command_is_shown_without_its_secrets() -> None:
    words = ["vllm", "serve", "--api_key", "one", "two", "--port", "1", "--hf-token=three", "m"]
    assert as_typed(words) == "vllm serve --api_key '***' '***' --port 1 '--hf-token=***' m"


def test_flags_replace_those_of_the_command() -> None:
    words = ["headrace", "serve", "m", "--max_num_seqs", "4", "--enforce-eager", "--dtype=auto"]
    values: dict[str, Any] = {"max-num-seqs": 8, "enforce_eager": False, "compilation_config.mode": 3, "a": {"b": [1]}}
    assert with_flags(words, values) == [
        *("headrace", "serve", "m", "--dtype=auto", "--max-num-seqs", "8", "--no-enforce-eager"),
        *("--compilation-config.mode", "3", "--a", '{"b": [1]}'),
    ]
    words = ["headrace", "serve", "--cudagraph-capture-sizes", "1", "2", "-tp", "1", "--port", "8"]
    sizes = ["--cudagraph-capture-sizes", "4"]
    assert with_flags(words, {"cudagraph_capture_sizes": [4]}) == [*words[:2], *words[5:], *sizes]
    assert with_flags([*words[:2], *sizes, "model"], {"port": 9}) == [*words[:2], *sizes, "model", "--port", "9"]
    assert url_of(["x", "--port=81", "--host", "0.0.0.0"]) == "http://127.0.0.1:81"


def test_sets_of_parameters_never_share_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "sets.json"
    path.write_text(json.dumps({"a b": {"seed": 1}, "a/b": {"seed": 2}}))
    with pytest.raises(ConfigError, match="two sets whose folders are called 'a_b'"):
        read_parameters(str(path), "--bench-params")


def test_saturation_and_slo() -> None:
    points = [{"output_throughput": t, "mean_e2el_ms": e} for t, e in ((10, 5), (20, 5), (39, 6), (40, 12), (40, 30))]
    assert saturation(points) == 2 and saturation(points[:3]) is None
    goals = parse_slo("ttft_p99.9=1.5s")
    kept = {"p99.9_ttft_ms": 1500.0, "duration": 11.0, "median_e2el_ms": 1000.0, "completed": 100, "failed": 0}
    assert judge(kept, 10, goals).broken is None
    assert judge(kept | {"failed": 1}, 10, goals).broken == "1 requests failed"
    assert judge(kept, 12, goals).broken == "did not keep up with the arrivals"
    rate, trials = largest_rate(lambda rate: Trial(rate, {}, None if rate < 0.3 else "slow"), 1.0, 0.1)
    assert rate is not None and 0.3 / 1.1 <= rate < 0.3 and [trial.rate for trial in trials][:3] == [1, 0.5, 0.25]
    assert largest_rate(lambda rate: Trial(rate, {}, "slow"), 1.0, 0.1)[0] is None
