"""``headrace bench serve``: arrivals, figures and files, and the whole command against a scripted server."""

import asyncio
import csv
import errno
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from headrace.bench import datasets, files, measures
from headrace.bench.api import Reply
from headrace.bench.client import Target
from headrace.bench.datasets import Sample
from headrace.bench.load import Load, Outcome, Request, Share
from headrace.bench.metrics import speculation
from headrace.bench.serve import Plan, arrivals
from headrace.cli.bench import serve_flags
from headrace.cli.main import main
from headrace.cli.parser import FlagParser
from tests.unit.scripted_server import Call, ScriptedServer

TARGET = Target("http://127.0.0.1:1", "openai", {}, timeout=10)

# -- arrivals and shares --------------------------------------------------------------------------------------------


def test_arrivals() -> None:
    assert arrivals(np.full(3, math.inf), 1.0, 0) == [0, 0, 0]
    assert arrivals(np.full(3, 2.0), 1e-4, 0) == [0, 0, 0]
    assert arrivals(np.full(4, 8.0), math.inf, 0) == pytest.approx([0.125, 0.25, 0.375, 0.5])
    poisson, even = (np.diff(arrivals(np.full(4000, 10.0), burstiness, 0)) for burstiness in (1.0, 25.0))
    assert poisson.sum() == pytest.approx(400, rel=0.01)  # the rate is kept exactly, whatever was drawn
    assert poisson.std() == pytest.approx(0.1, rel=0.1) and even.std() == pytest.approx(0.1 / 5, rel=0.1)
    steady = np.full(50, 10.0)
    assert arrivals(steady, 1.0, 7) == arrivals(steady, 1.0, 7) != arrivals(steady, 1.0, 8)
    parser = FlagParser(prog="bench serve")
    serve_flags.add_arguments(parser)
    for words, places, rates in (
        ("linear 1 11", [0, 49, 99], [1.1, 6, 11]),
        ("exponential 1 100", [49, 99], [10, 100]),
    ):
        strategy, start, end = words.split()
        flags = ["--ramp-up-strategy", strategy, "--ramp-up-start-rps", start, "--ramp-up-end-rps", end]
        gaps = np.diff(arrivals(serve_flags.rates_of(parser.parse(flags), 101), math.inf, 0))
        assert 1 / gaps[places] == pytest.approx(rates)


def test_shares_keep_conversations_whole_and_slots_exact() -> None:
    requests = [Request(i, {}, 1, conversation=i // 3 if i < 6 else None) for i in range(11)]
    shares = Plan(TARGET, requests, slots=5, processes=3).shares()
    assert sorted(request.index for share in shares for request in share.requests) == list(range(11))
    assert sorted(share.slots or 0 for share in shares) == [1, 2, 2]
    for conversation in (0, 1):
        (share,) = (s for s in shares if any(request.conversation == conversation for request in s.requests))
        assert sum(request.conversation == conversation for request in share.requests) == 3
    assert len(Plan(TARGET, requests, slots=2, processes=3).shares()) == 2
    assert [share.slots for share in Plan(TARGET, requests[:1], processes=3).shares()] == [None]


async def test_a_client_that_is_late_says_so() -> None:
    class Blocking:
        async def send(self, body: object, reply: Reply) -> None:
            time.sleep(0.05)  # as a busy process would be
            reply.times.append(perf_counter())

    requests = [Request(index, {}, 1, at=0.01 * index) for index in range(3)]
    load = Load(Share(TARGET, requests, slots=None), Blocking())  # type: ignore[arg-type]
    await load.run(perf_counter() + 0.01)
    late = [outcome.late for outcome in load.outcomes]
    assert late[1] >= 0.039 and late[2] >= 0.079  # behind one of 50 ms, behind two of them
    result = measures.schedule(load.outcomes, [99.0])
    assert result["num_late"] >= 2 and result["max_client_late_ms"] == pytest.approx(1000 * max(late))
    assert result["mean_scheduled_ttft_ms"] >= (50 + 90 + 130) / 3 - 1  # a TTFT that leaves the wait out says 50
    assert "The client was late:" in measures.schedule_lines(result, [99.0], False)[-1]


# -- figures --------------------------------------------------------------------------------------------------------


def outcome(index: int, start: float, ttft: float, itls: list[float], tokens: int, **more: Any) -> Outcome:
    latency = ttft + sum(itls)
    end = start + latency
    fields = {"due": start - 0.1, "late": 0.0, "start": start, "end": end, "ttft": ttft, "itls": itls}
    return Outcome(**{"index": index, "prompt_len": 10, "output_len": tokens, "latency": latency} | fields | more)


OUTCOMES = [
    outcome(0, 100.0, 0.5, [0.1, 0.3], 5, text="a"),  # five tokens in three pieces: speculation
    outcome(1, 100.2, 0.2, [], 1, text="b"),
    outcome(2, 100.3, 0.2, [0.1], 0, error="HTTP 500: x", latency=0.0),
    outcome(3, 100.3, 0.4, [0.5], 2, text="d"),
]


def test_figures() -> None:
    found = measures.measure(OUTCOMES, 2.0, ["ttft", "tpot", "itl", "e2el"], [50.0, 99.9], {"ttft": 450, "tpot": 400})
    counts = ("completed", "failed", "total_input_tokens", "total_output_tokens", "max_concurrent_requests")
    assert [found[key] for key in counts] == [3, 1, 30, 8, 3]
    assert found["request_throughput"] == 1.5 and found["output_throughput"] == 4
    assert found["total_token_throughput"] == 19
    assert found["request_goodput"] == 0.5  # the first is too slow to begin, the last too slow to go on
    assert found["ttfts"] == [0.5, 0.2, 0.2, 0.4] and found["output_lens"] == [5, 1, 0, 2]
    assert found["queue_times"] == pytest.approx([0.1] * 4)
    ttft, tpot, itl = [500, 200, 400], [100, 500], [100, 300, 500]
    for name, values in (("ttft", ttft), ("tpot", tpot), ("itl", itl), ("e2el", [900, 200, 900])):
        expected = [np.mean(values), np.median(values), np.std(values), np.median(values), np.percentile(values, 99.9)]
        keys = [f"{statistic}_{name}_ms" for statistic in ("mean", "median", "std", "p50", "p99.9")]
        assert [found[key] for key in keys] == pytest.approx(expected)
    # In the first second: 5 tokens in 3 pieces, all by 100.9, 1 by 100.4, and 1 of 2 by 100.7.
    assert found["max_output_tokens_per_s"] == pytest.approx(7)


def test_keys_are_in_order() -> None:
    found = measures.measure(OUTCOMES, 2.0, ["ttft", "itl"], [99.0], {})
    assert " ".join(found) == (
        "duration completed failed total_input_tokens total_output_tokens request_throughput request_goodput "
        "output_throughput total_token_throughput input_lens output_lens ttfts itls latencies start_times queue_times "
        "generated_texts errors max_output_tokens_per_s max_concurrent_requests rtfx "
        "mean_ttft_ms median_ttft_ms std_ttft_ms p99_ttft_ms mean_itl_ms median_itl_ms std_itl_ms p99_itl_ms"
    )


def test_table() -> None:
    found = measures.measure(OUTCOMES, 2.0, ["itl"], [99.0], {}) | {"request_rate": 4.0, "max_concurrency": 8}
    assert [line.rstrip() for line in measures.table(found, ["itl"], [99.0], pooling=False)] == [
        "============ Serving Benchmark Result ============",
        "Successful requests:                     3",
        "Failed requests:                         1",
        "Maximum request concurrency:             8",
        "Request rate configured (RPS):           4.00",
        "Benchmark duration (s):                  2.00",
        "Total input tokens:                      30",
        "Total generated tokens:                  8",
        "Request throughput (req/s):              1.50",
        "Output token throughput (tok/s):         4.00",
        "Peak output token throughput (tok/s):    7.00",
        "Peak concurrent requests:                3.00",
        "Total token throughput (tok/s):          19.00",
        "---------------Inter-token Latency----------------",
        "Mean ITL (ms):                           300.00",
        "Median ITL (ms):                         300.00",
        "P99 ITL (ms):                            496.00",
        "==================================================",
    ]


def test_nothing_succeeded() -> None:
    found = measures.measure([OUTCOMES[2]], 1.0, ["ttft", "tpot"], [99.0], {"ttft": 1})
    assert (found["completed"], found["failed"], found["mean_tpot_ms"], found["request_goodput"]) == (0, 1, 0, 0)


def test_speculation_out_of_metrics() -> None:
    def metrics(drafts: int, first: int, second: int) -> str:
        lines = [
            f"drafts_total {drafts}",
            f"draft_tokens_total {2 * drafts}",
            f"accepted_tokens_total {first + second}",
        ]
        lines += [f'accepted_tokens_per_pos_total{{position="{i}"}} {n}' for i, n in enumerate((first, second))]
        created = [line.replace("_total", "_created") for line in lines]
        return "".join(f"# TYPE {name(line)} counter\nvllm:spec_decode_num_{line}\n" for line in [*lines, *created])

    def name(line: str) -> str:
        return "vllm:spec_decode_num_" + re.split(r"[ {]", line)[0]

    found = speculation(metrics(10, 5, 1), metrics(30, 20, 6))
    assert found == {
        "spec_decode_acceptance_rate": 50.0,
        "spec_decode_acceptance_length": 2.0,
        "spec_decode_num_drafts": 20,
        "spec_decode_draft_tokens": 40,
        "spec_decode_accepted_tokens": 20,
        "spec_decode_per_position_acceptance_rates": [0.75, 0.25],
    }
    assert speculation(None, metrics(0, 0, 0)) == {}


# -- the whole command ----------------------------------------------------------------------------------------------

DELAYS = (0.15, 0.03, 0.06)


async def paced(call: Call) -> None:
    await call.begin()
    for place, delay in enumerate(DELAYS):
        await asyncio.sleep(delay)
        await call.text(f"t{place} ", "length" if place == len(DELAYS) - 1 else None)
    await call.usage(11, len(DELAYS))
    await call.end()


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Sample]], None]:
    def use(chosen: Sequence[Sample]) -> None:
        monkeypatch.setattr(datasets, "draw", lambda arguments, tokenizer, vocab_size: list(chosen))

    return use


def bench(url: str, *flags: str) -> int:
    words = ["bench", "serve", "--base-url", url, "--model", "org/m", "--skip-tokenizer-init"]
    return main([*words, *flags])


def saved(directory: Path) -> dict[str, Any]:
    (path,) = directory.glob("*.json")
    return json.loads(path.read_text())


def test_latencies_are_those_of_the_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer(paced) as server:
        flags = ["--num-prompts", "24", "--request-rate", "40", "--num-client-processes", "2", "--metadata", "gpu=none"]
        saving = ["--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--percentile-metrics"]
        assert bench(server.url, *flags, *saving, "ttft,tpot,itl,e2el", "--ignore-eos", "--extra-body", '{"x": 1}') == 0
    out = capsys.readouterr().out
    assert "Successful requests:                     24" in out and "Sent by 2 client processes." in out
    assert "From when each request was due" in out
    found = saved(tmp_path)
    (path,) = tmp_path.glob("*.json")
    assert re.fullmatch(r"openai-40\.0qps-m-\d{8}-\d{6}\.json", path.name)
    assert " ".join(found).startswith(
        "date endpoint_type backend label model_id tokenizer_id num_prompts gpu request_rate burstiness "
        "max_concurrency duration completed failed total_input_tokens"
    )
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (24 * 11, 24 * 3)
    assert server.calls[0].body["ignore_eos"] is True and server.calls[0].body["x"] == 1

    # A piece can't come before it left, and the time it takes is the machine's doing: the least is next to nothing.
    # Both sides are sorted piece by piece, for of two that leave together either may come first.
    wrote = np.sort([call.times for call in server.calls], axis=0)
    starts, ttfts, itls = (np.array(found[key]) for key in ("start_times", "ttfts", "itls"))
    came = np.sort(np.cumsum(np.column_stack([starts + ttfts, itls]), axis=1), axis=0)
    lag = came - wrote
    assert lag.min() > -0.0002 and lag.min(axis=0).max() < 0.02
    slack = 1000 * lag.max() + 2
    gaps = 1000 * np.diff(wrote, axis=1)
    assert found["mean_itl_ms"] == pytest.approx(gaps.mean(), abs=slack)
    assert found["mean_tpot_ms"] == pytest.approx(gaps.sum(axis=1).mean() / 2, abs=slack)
    assert found["mean_e2el_ms"] == pytest.approx(found["mean_ttft_ms"] + 2 * gaps.mean(), abs=2 * slack)
    assert found["mean_ttft_ms"] >= 1000 * DELAYS[0] - 1
    assert found["duration"] >= came.max() - (starts - found["queue_times"]).min()
    assert found["request_throughput"] == pytest.approx(24 / found["duration"])

    rows = list(csv.DictReader(path.with_suffix(".requests.csv").read_text().splitlines()))
    assert [float(row["ttft_ms"]) for row in rows] == pytest.approx(1000 * ttfts, abs=0.001)
    assert [float(row["tpot_ms"]) for row in rows] == pytest.approx(500 * itls.sum(axis=1), abs=0.001)
    waits = [float(row["queue_ms"]) for row in rows]
    assert waits == pytest.approx(1000 * np.array(found["queue_times"]), abs=0.001)
    assert float(rows[0]["due_s"]) == 0 and float(rows[-1]["due_s"]) == pytest.approx(23 / 40, abs=0.2)
    assert len(path.with_suffix(".requests.txt").read_text().splitlines()) == 25


def test_figures_stand_beside_the_devices_limits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saving = ["--num-prompts", "2", "--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json"]
    with ScriptedServer(paced) as server:
        flags = ["--device", "h200", "--tp", "2", "--quantization", "fp8", "--model", "qwen3-0.6b"]
        assert bench(server.url, *saving, *flags) == 0
        assert "Limits of 2 × h200" in (out := capsys.readouterr().out) and "MBU" in out and "MFU" in out
        found = saved(tmp_path)
        keys = list(found)
        assert keys.index("limit_device") > keys.index("failures") and found["limit_devices"] == 2
        assert 0 < found["limit_tpot_ms"] < found["mean_tpot_ms"] and 0 < found["decode_mbu"] < 1
        assert 1 <= found["mean_batch"] <= 2 and 0 < found["prefill_mfu"] < 1
        assert bench(server.url, *saving) == 0  # a server that doesn't tell its device
        out = capsys.readouterr().out
        assert out.count("add --device") == 1 and "decode_mbu" not in saved(tmp_path)


def test_conversations_carry_what_was_said(samples: Callable[[Sequence[Sample]], None], tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        last = call.body["messages"][-1]["content"]
        if last == "b2":
            return await call.answer(500, b"no")
        await call.begin()
        await call.event({"choices": [{"delta": {"content": f"re {last}"}, "finish_reason": "stop"}]})
        return await call.end()

    def turn(text: str, conversation: int) -> Sample:
        return Sample([{"role": "user", "content": text}], 1, 5, conversation=conversation)

    samples([turn(f"{name}{n}", number) for n in (1, 2, 3) for number, name in enumerate("ab")])
    with ScriptedServer(script) as server:
        assert bench(server.url, "--backend", "openai-chat", "--save-result", "--result-dir", str(tmp_path)) == 1
    contents = [[message["content"] for message in call.body["messages"]] for call in server.calls]
    assert ["a1", "re a1", "a2", "re a2", "a3"] in contents and ["b1", "re b1", "b2"] in contents and len(contents) == 5
    assert saved(tmp_path)["failures"] == {
        "HTTP 500: no": 1,
        "not sent: the conversation's turn before it failed": 1,
    }


def test_embeddings(
    samples: Callable[[Sequence[Sample]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def script(call: Call) -> None:
        await call.answer(200, b'{"data": [{}], "usage": {"prompt_tokens": 7, "total_tokens": 7}}')

    samples([Sample("a", 5, None, documents=("b",))] * 3)
    with ScriptedServer(script) as server:
        flags = ["--backend", "openai-embeddings", "--result-dir", str(tmp_path), "--metric-percentiles", "50,99"]
        assert bench(server.url, *flags) == 0
    out, found = capsys.readouterr().out, saved(tmp_path)
    assert "P50 E2EL (ms):" in out and "TTFT" not in out and "Total generated tokens:" not in out
    assert (found["total_input_tokens"], found["total_output_tokens"], server.calls[0].path) == (
        21,
        0,
        "/v1/embeddings",
    )


def test_every_failure_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def script(call: Call) -> None:
        number = len(server.calls)
        if number % 3 == 0:
            return await call.answer(503, b'{"error": {"message": "full"}}')
        if number == 7:
            call.break_off()
        return await paced(call)

    flags = ["--num-prompts", "9", "--max-concurrency", "1", "--save-result", "--result-dir", str(tmp_path)]
    with ScriptedServer(script) as server:
        assert bench(server.url, *flags) == 1
        out = capsys.readouterr().out
        assert "      3 × HTTP 503: full\n" in out and "Failed requests:                         " in out
        assert bench(server.url, "--num-prompts", "3", "--allow-failures") == 0
    found = saved(tmp_path)
    assert found["completed"] + found["failed"] == 9 and sum(found["failures"].values()) == found["failed"]
    assert not {"ttfts", "itls", "errors", "input_lens", "generated_texts", "server_metrics"} & set(found)
    assert len(found["latencies"]) == 9 and found["max_concurrency"] == 1


def test_the_server_dies_in_the_middle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def script(call: Call) -> None:
        if len(server.calls) > 5:
            server.die()
        await paced(call)

    with ScriptedServer(script) as server:
        flags = ["--num-prompts", "12", "--max-concurrency", "2", "--save-result", "--result-dir", str(tmp_path)]
        assert bench(server.url, *flags) == 1
    found = saved(tmp_path)
    assert 3 <= found["completed"] <= 5 and found["completed"] + found["failed"] == 12
    assert {"connection refused"} < set(found["failures"]) and found["unsent"] == 0


def test_nobody_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str], port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    assert bench(url, "--num-prompts", "4", "--save-result", "--result-dir", str(tmp_path)) == 1
    assert saved(tmp_path)["failures"] == {"connection refused": 4}
    assert bench(url, "--ready-check-timeout-sec", "0.1") == 1
    assert "was not ready within 0.1 s: connection refused.\n" in capsys.readouterr().err
    assert main(["bench", "serve", "--base-url", url]) == 1
    assert "no server answers at" in capsys.readouterr().err


def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        if (number := len(server.calls)) <= 3:
            return await paced(call)
        await call.begin()
        await call.text("x")
        if number == 6:  # three are done, and three have begun
            await asyncio.sleep(2)  # in which the client reads what it was sent
            process.send_signal(signal.SIGINT)
        return await asyncio.sleep(60)

    with ScriptedServer(script) as server:
        command = [sys.executable, "-m", "headrace", "bench", "serve", "--base-url", server.url, "--model", "m"]
        flags = ["--skip-tokenizer-init", "--num-prompts", "20", "--max-concurrency", "3", "--save-result"]
        process = subprocess.Popen(
            [*command, *flags, "--save-detailed", "--result-dir", str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    found = saved(tmp_path)
    assert (found["completed"], found["failed"], found["unsent"], found["interrupted"]) == (3, 3, 14, True)
    assert found["failures"] == {"interrupted": 3} and "Interrupted: 14 requests were not sent." in out
    assert len(found["ttfts"]) == 6 and found["generated_texts"][3:] == ["x"] * 3
    (listed,) = tmp_path.glob("*.csv")
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    assert [(row["error"], bool(row["ttft_ms"])) for row in rows] == [("", True)] * 3 + [("interrupted", False)] * 3


def test_a_full_disk_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full, elsewhere = tmp_path / "full", tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_text = Path.write_text

    def failing(path: Path, text: str, encoding: str) -> int:
        if full in path.parents:
            write_text(path, text[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text, encoding)

    monkeypatch.setattr(Path, "write_text", failing)
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(elsewhere))
    with ScriptedServer(paced) as server:
        assert bench(server.url, "--num-prompts", "2", "--save-result", "--result-dir", str(full)) == 1
    err = capsys.readouterr().err
    assert "can't be written: No space left on device." in err and f"the result is in {elsewhere}" in err
    assert saved(elsewhere)["completed"] == 2 and not list(full.iterdir())


def test_appending(tmp_path: Path) -> None:
    with ScriptedServer(paced) as server:
        for label in ("a", "b"):
            flags = ["--append-result", "--result-dir", str(tmp_path), "--result-filename", "all.json"]
            assert bench(server.url, "--num-prompts", "1", "--label", label, *flags) == 0
    assert [json.loads(line)["label"] for line in (tmp_path / "all.json").read_text().splitlines()] == ["a", "b"]


def test_profile_and_warm_up_are_around_the_load() -> None:
    async def script(call: Call) -> None:
        await (paced(call) if call.body else call.answer(200, b""))

    with ScriptedServer(script) as server:
        assert bench(server.url, "--num-prompts", "2", "--num-warmups", "3", "--profile") == 0
    paths = [call.path for call in server.calls]
    assert paths == ["/v1/completions"] * 3 + ["/start_profile"] + ["/v1/completions"] * 2 + ["/stop_profile"]


def test_the_commands_of_vllms_users(tmp_path: Path) -> None:
    """Those of an Intel guide and of a cheat sheet's bench.sh, but for models and numbers."""
    guide = """--model org/m --dataset-name random --served-model-name short --random-input-len=16 --random-output-len=5
        --ignore-eos --num-prompt 3 --trust_remote_code --request-rate inf --backend vllm"""
    script = f"""--backend openai --endpoint /v1/completions --model org/m --dataset-name random --random-input-len 8
        --random-output-len 1 --num-prompts 3 --request-rate 400 --seed 42 --save-result --result-dir {tmp_path}"""
    with ScriptedServer(paced) as server:
        for flags in (guide, script):
            words = ["--host", "127.0.0.1", f"--port={server.port}", "--skip-tokenizer-init", *flags.split()]
            assert main(["bench", "serve", *words]) == 0
    first, last = server.calls[0].body, server.calls[-1].body
    assert (first["model"], first["max_tokens"], first["ignore_eos"], len(first["prompt"])) == ("short", 5, True, 16)
    assert (last["model"], last["max_tokens"], "ignore_eos" in last, len(server.calls)) == ("org/m", 1, False, 6)
    assert saved(tmp_path)["request_rate"] == 400.0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--backend", "tgi"], "there is no --backend 'tgi'; there are vllm, openai"),
        (["--lora-modules", "a"], "--lora-modules is not for Headrace: adapters are not served yet"),
        (["--plot-timeline"], "figures are drawn from saved results: `headrace bench plot`"),
        (["--request-rate", "0"], "--request-rate: '0' is no number above 0"),
        (["--request-rate", "nan"], "--request-rate: 'nan' is no number above 0"),
        (
            ["--ramp-up-strategy", "linear"],
            "--ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps need each other",
        ),
        (["--ramp-up-start-rps", "1"], "--ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps need each other"),
        (["--goodput", "itl:3"], "'itl:3' is not of the form METRIC:MS"),
        (["--goodput", "ttft"], "'ttft' is not of the form METRIC:MS"),
        (["--header", "A=b\nC: d"], "has characters that no header can have"),
        (["--percentile-metrics", "ttft,x"], "there is no metric 'x'"),
        (["--temperature", "nan"], "--temperature: 'nan' is no number."),
        (["--extra-body", '{"x": NaN}'], "--extra-body: '{\"x\": NaN}' is no JSON object"),
        (["--extra-body", "[]"], "--extra-body: '[]' is no JSON object"),
        (
            ["--backend", "openai-embeddings", "--temperature", "1"],
            "generates nothing: leave the flags of sampling out",
        ),
        (["--device", "h20"], "--device h20 is not known; did you mean h200?"),
        (["--tp", "2"], "--tensor-parallel-size without --device: name the device"),
        (["--save-result", "--result-dir", __file__], "can't be written to: File exists."),
        (["--save-result", "--result-filename", f"{__file__}/x.json"], "can't be written to: File exists."),
        (["--base-url", "ftp://x"], "'ftp://x' is no server's address: it must be like http://"),
    ],
)
def test_flags_that_cannot_work(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--model", "m", "--skip-tokenizer-init", "--num-prompts", "1", *flags]) == 2
    assert sentence in capsys.readouterr().err
