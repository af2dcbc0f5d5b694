"""Traces made by hand, whose figures are known: torch's of a GPU and of a CPU, Nsight's; and the tools' commands."""

import gzip
import json
import os
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch

from headrace.cli import serve
from headrace.cli.main import main
from headrace.cli.parser import FlagParser, config_from
from headrace.config import Config, ProfilerSettings, profiler_settings
from headrace.config.profiler import VARIABLE
from headrace.errors import ConfigError, HeadraceError
from headrace.profiling import capture, tools, torch_trace
from headrace.profiling.classes import class_of
from headrace.profiling.read import read_trace
from headrace.profiling.summary import summarize
from headrace.profiling.trace import Activity, Trace, in_turn
from headrace.runner.profiler import Profiler
from headrace.types import Plan

GEMM = "nvjet_sm90_tst_64x32_64x16_4x1_v_bz_TNT"
NCCL = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
COPY = "Memcpy DtoH (Device -> Pinned)"
# Of two steps: what was launched at, ran from, for how long (µs), on which stream. Step 0 is launched from 0 to 10,
# step 1 from 20 to 30, while step 0 still runs; the copy overlaps with the all-reduce.
STEPS = {"headrace: step 0 (2 rows, 2 tokens)": (0, 10), "headrace: step 1 (2 rows, 2 tokens)": (20, 30)}
KERNELS = [
    (GEMM, 1, 100, 40, 7),
    (NCCL, 2, 140, 20, 8),
    (COPY, 3, 150, 20, 9),  # step 0 ends at 170
    (GEMM, 21, 200, 60, 7),
    ("void at::native::(anonymous namespace)::mystery<int>(int*)", 29, 270, 30, 7),
]


def write_torch_trace(path: Path) -> Path:
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}}]
    for name, (start, end) in STEPS.items():
        common = {"ph": "X", "name": name, "tid": 1, "dur": end - start}
        events.append(common | {"cat": "user_annotation", "pid": 1, "ts": start})
        events.append(common | {"cat": "gpu_user_annotation", "pid": 0, "ts": start + 100, "args": {"stream": 7}})
    for call, (name, launched, start, duration, stream) in enumerate(KERNELS):
        cat = "gpu_memcpy" if name == COPY else "kernel"
        runtime = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1}
        events.append(runtime | {"ts": launched, "dur": 0.5, "args": {"correlation": call}})
        args = {"device": 0, "stream": stream, "correlation": call}
        events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": 0, "tid": stream, "ts": start, "dur": duration, "args": args}
        )
    text = json.dumps({"deviceProperties": [{"id": 0, "name": "NVIDIA H200"}], "traceEvents": events}).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_nsight(path: Path, devices: int = 1) -> Path:
    """The same as an export of nsys, from a process a device."""
    database = sqlite3.connect(path)
    columns = "start INT, end INT, deviceId INT, streamId INT, correlationId INT, globalPid INT"
    database.execute("CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT)")
    database.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL ({columns}, demangledName INT)")
    database.execute(f"CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY ({columns}, copyKind INT)")
    database.execute("CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INT, correlationId INT, globalTid INT)")
    database.execute(
        "CREATE TABLE NVTX_EVENTS (start INT, end INT, text TEXT, textId INT, eventType INT, globalTid INT)"
    )
    database.execute("CREATE TABLE TARGET_INFO_GPU (id INT, name TEXT)")
    names = [name for name, *_ in KERNELS] + list(STEPS)
    database.executemany("INSERT INTO StringIds VALUES (?, ?)", enumerate(names))
    for device in range(devices):
        process = (device + 5) << 24
        database.execute("INSERT INTO TARGET_INFO_GPU VALUES (?, 'NVIDIA H200')", (device,))
        for name, (start, end) in STEPS.items():
            row = (start * 1000, end * 1000, names.index(name), 59, process + 42)
            database.execute("INSERT INTO NVTX_EVENTS VALUES (?, ?, NULL, ?, ?, ?)", row)
        for call, (name, launched, start, duration, stream) in enumerate(KERNELS):
            runtime = (launched * 1000, call, process + 42)
            database.execute("INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME VALUES (?, ?, ?)", runtime)
            table, kind = ("MEMCPY", 2) if name == COPY else ("KERNEL", call)
            row = (start * 1000, (start + duration) * 1000, device, stream, call, process, kind)
            database.execute(f"INSERT INTO CUPTI_ACTIVITY_KIND_{table} VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    database.commit()
    database.close()
    return path


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz", "trace.sqlite"])
def test_a_gpus_time(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    summary = summarize(read_trace((write_nsight if path.suffix == ".sqlite" else write_torch_trace)(path)))
    assert (summary.on_device, summary.devices, summary.device_name) == (True, 1, "NVIDIA H200")
    assert summary.recorded_us == 200  # from 100 to 300
    assert summary.busy_share == pytest.approx(0.8)  # idle from 170 to 200 and from 260 to 270
    first = summary.kernels[0]
    assert (first.name, first.kind, first.calls, first.total_us, first.mean_us) == (GEMM, "GEMM", 2, 100, 50)
    assert first.share == pytest.approx(100 / 170)
    kinds = {kind.name: kind.total_us for kind in summary.kinds if kind.total_us}
    assert kinds == {"all-reduce": 20, "copies": 20, "GEMM": 100, "other": 30, "idle": 40}
    assert [kernel.name for kernel in summary.all_reduces] == [NCCL]
    gaps = summary.host_gaps
    assert gaps is not None and (gaps.steps, gaps.mean_step_us, gaps.mean_us, gaps.longest_us) == (2, 100, 30, 30)
    assert gaps.share == pytest.approx(0.15)


def test_a_kernel_that_waits_for_its_predecessor_takes_no_time_meanwhile() -> None:
    early = [("a", 0, 10, 7), ("b", 2, 15, 7), ("c", 3, 12, 7), ("d", 0, 10, 8), ("e", 20, 21, 7)]
    found = in_turn(Activity(name, start, end, end - start, 0, stream, 0) for name, start, end, stream in early)
    assert {activity.name: activity.time for activity in found} == {"a": 10, "b": 5, "c": 0, "d": 10, "e": 1}


def test_steps_that_overlap_have_no_gap_between_them() -> None:
    two = [Activity("a", 0, 10, 10, 0, 7, 0), Activity("b", 5, 15, 10, 0, 8, 1)]
    gaps = summarize(Trace(two, on_device=True)).host_gaps
    assert gaps is not None and (gaps.steps, gaps.mean_step_us, gaps.mean_us) == (2, 5, 0)


def test_two_processes_in_one_report_have_their_own_steps(tmp_path: Path) -> None:
    summary = summarize(read_trace(write_nsight(tmp_path / "two.sqlite", devices=2)))
    assert (summary.devices, summary.recorded_us) == (2, 400)
    assert summary.busy_share == pytest.approx(0.8)
    assert summary.host_gaps is not None and (summary.host_gaps.steps, summary.host_gaps.mean_us) == (4, 30)


def test_a_cpus_operators_count_their_own_time_only(tmp_path: Path) -> None:
    def operator(name: str, start: float, duration: float, thread: int = 1) -> dict[str, Any]:
        return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": thread, "ts": start, "dur": duration}

    events = [
        operator("aten::linear", 0, 100),
        operator("aten::addmm", 10, 80),
        operator("aten::copy_", 20, 5),
        operator("aten::linear", 120, 10),
        operator("aten::add", 40, 10, thread=2),
        {"ph": "X", "cat": "python_function", "name": "forward", "pid": 1, "tid": 1, "ts": 0, "dur": 200},
    ]
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps({"traceEvents": events}))
    summary = summarize(read_trace(path))
    assert not summary.on_device and summary.host_gaps is None
    own = {kernel.name: (kernel.calls, kernel.total_us) for kernel in summary.kernels}
    assert own == {"aten::addmm": (1, 75), "aten::linear": (2, 30), "aten::add": (1, 10), "aten::copy_": (1, 5)}
    assert summary.recorded_us == 130 and summary.busy_share == pytest.approx(110 / 130)


@pytest.mark.parametrize("indent", [None, 2])
def test_a_trace_is_read_in_parts(indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut where events end, whatever an event's arguments look like."""
    monkeypatch.setattr(torch_trace, "PART_BYTES", 700)
    monkeypatch.setattr(torch_trace, "MOST_BYTES", 8 * 700)
    nested = {"parts": [{"a": 1}, {"b": "}, {"}], "text": "}, {"}
    events = [
        {"ph": "X", "cat": "cpu_op", "name": f"op {i % 3}", "pid": 1, "tid": 1, "ts": 10 * i, "dur": 5, "args": nested}
        for i in range(100)
    ]
    document = {"deviceProperties": [], "traceEvents": events, "traceName": "}, {"}
    path = tmp_path / "long.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document, indent=indent).encode()))
    assert sum(1 for _ in torch_trace.parts(path)) > 10
    trace = read_trace(path)
    assert [activity.start for activity in trace.activities] == [10 * i for i in range(100)]
    assert summarize(trace).recorded_us == 995
    path.write_bytes(gzip.compress(json.dumps(document).encode().replace(b'"op 2"', b"oops", 1)))
    with pytest.raises(ConfigError, match="is no trace"):
        read_trace(path)


@pytest.mark.parametrize(
    ("kind", "names"),
    {
        "all-reduce": [
            "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
            "ncclKernel_AllReduce_RING_LL_Sum_half(ncclDevComm*)",
            "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 2>(vllm::RankData*)",
            "void tensorrt_llm::kernels::oneShotAllReduceKernel<__nv_bfloat16, 2>()",
            "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<2>()",
            "void (anonymous namespace)::two_shot_all_reduce_kernel<c10::BFloat16, 16>()",
            "void multimem_all_reduce_kernel<c10::BFloat16, 16>()",
        ],
        "other collectives": ["ncclDevKernel_AllGather_RING_LL()", "ncclDevKernel_SendRecv()", "nvshmem_put_kernel"],
        "copies": ["Memcpy HtoD (Pinned -> Device)", "Memset (Device)", "aten::copy_"],
        "attention": [
            "attend_kernel",
            "_rope_and_cache_kernel",
            "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7",
            "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits>()",
            "kernel_unified_attention_2d",
            "BatchDecodeWithPagedKVCacheKernel",
        ],
        "sampling": ["_gumbel_max_kernel", "void at::native::reduce_kernel<512, 1, at::native::ArgMaxOps<float>>()"],
        "GEMM": [
            GEMM,
            "_matvec_kernel",
            "void cublasLt::splitKreduce_kernel<32, 16, int, float>()",
            "cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x64",
            "void marlin::Marlin<half>()",
            "fused_moe_kernel",
            "aten::_weight_int4pack_mm_for_cpu",
            "aten::mm",
        ],
        "norm and activation": ["_rms_norm_kernel", "_act_and_mul_kernel", "void vllm::act_and_mul_kernel<>()"],
        "other": ["_locate_kernel", "aten::view"],
    }.items(),
)
def test_names_tell_the_class_of_work(kind: str, names: list[str]) -> None:
    assert {name: class_of(name) for name in names} == dict.fromkeys(names, kind)


def test_the_command_prints_tables_sentences_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_torch_trace(tmp_path / "trace.json")
    assert main(["profile", str(path), "--top", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Kernels and copies: top 2" in printed and GEMM in printed and "mystery" in printed and COPY not in printed
    assert "NVIDIA H200 was busy for 80.0% of it." in printed and "30.0 µs on average" in printed
    assert "The all-reduce of tensor parallelism: ncclDevKernel_AllReduce_Sum_bf16_RING_LL (1 calls)." in printed
    assert main(["profile", str(path), "--top", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert [kernel["name"] for kernel in figures["kernels"]] == [GEMM] and figures["perfetto"] is None
    assert [kernel["name"] for kernel in figures["all_reduce_kernels"]] == [NCCL]


def test_a_perfetto_trace_of_an_nsight_report_says_the_same(tmp_path: Path) -> None:
    source = write_nsight(tmp_path / "report.sqlite", devices=2)
    assert main(["profile", str(source), "--out", str(tmp_path / "out")]) == 0
    copy = tmp_path / "out" / "report.sqlite.json.gz"
    assert summarize(read_trace(copy)).kernels == summarize(read_trace(source)).kernels


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("text.json", b"hello", "is no trace"),
        ("list.json", b"[1]", "is no trace"),
        ("cut.json.gz", gzip.compress(b'{"traceEvents": []}', mtime=0)[:20], "can't be read"),
        ("empty.json", b'{"traceEvents": []}', "holds no kernel, copy or operator"),
        ("bad.sqlite", b"hello, I am no database at all", "is no SQLite export"),
        ("no.nsys-rep", b"", "needs nsys, which isn't installed here"),
    ],
)
def test_what_is_no_trace(
    name: str,
    content: bytes,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / name).write_bytes(content)
    assert main(["profile", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name a TRACE, a server (--url) or a command"),
        (["trace.json", "--url", "http://x"], "leave out --url, --tool and what follows --"),
        (["--tool", "viztracer"], "put it after --"),
        (["--tool", "viztracer", "--json", "--", "x"], "--json has no figures"),
        (["--seconds", "1", "--", "x"], "--seconds is for --url and --tool"),
        (["--url", "http://x", "--num-steps", "3", "--", "x"], "leave --num-steps and --seconds out"),
        (["--out", "/nowhere", "--", "/no/such/program"], "there is no command '/no/such/program'"),
    ],
)
def test_what_cannot_be_asked(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", *words]) == 2
    assert sentence in capsys.readouterr().err


# -- tools ----------------------------------------------------------------------------------------------------------

FAKE_NSYS = """\
#!{python}
import signal
signal.signal(signal.SIGINT, lambda *_: None)
import subprocess, sys
verb, *rest = sys.argv[1:]
output = next(word.partition("=")[2] for word in rest if word.startswith("--output="))
if verb == "export":
    sys.exit(subprocess.run(["cp", rest[-1], output]).returncode)
flags = [word for word in rest if word.startswith("--")]
command = subprocess.Popen(rest[len(flags):])
command.wait()
subprocess.run(["cp", "{report}", output + ".nsys-rep"])  # as nsys does once all has ended
"""


@pytest.fixture
def nsys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that leaves a report when its command has ended."""
    report = write_nsight(tmp_path / "made.sqlite")
    program = tmp_path / "bin" / "nsys"
    program.parent.mkdir()
    program.write_text(FAKE_NSYS.format(python=sys.executable, report=report))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_nsys_is_ended_by_a_sigint_and_its_report_read(
    nsys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "import signal, time\nprint('up', flush=True)\ntry: time.sleep(60)\nexcept KeyboardInterrupt: pass"
    words = ["profile", "--tool", "nsys", "--out", str(tmp_path / "out"), "--seconds", "2"]
    assert main([*words, "--", sys.executable, "-c", script]) == 0
    printed = capsys.readouterr()
    assert GEMM in printed.out and (tmp_path / "out" / "nsys.nsys-rep").exists()
    assert (tmp_path / "out" / "nsys.nsys-rep.json.gz").exists()
    assert "--trace=cuda,nvtx,osrt --cuda-graph-trace=node" in printed.err


def test_nsys_looks_where_it_is_told_to(nsys: Path, tmp_path: Path) -> None:
    whole = tools.under("nsys", ["headrace", "serve"], tmp_path, 0, None)
    assert whole.words[0] == str(nsys) and whole.words[-3:] == ["-m", "headrace", "serve"]
    assert not any("capture-range" in word for word in whole.words) and not whole.environment
    asked = tools.under("nsys", ["vllm", "serve", "--profiler-config.profiler", "cuda"], tmp_path, 0, None)
    assert "--capture-range=cudaProfilerApi" in asked.words and "--capture-range-end=repeat" in asked.words
    steps = tools.under("nsys", ["headrace", "bench", "latency"], tmp_path, 7, 20)
    assert "--capture-range-end=stop" in steps.words
    settings = profiler_settings(json.loads(steps.environment[VARIABLE]))
    assert settings == ProfilerSettings("cuda", delay_iterations=7, max_iterations=20, autostart=True)


@pytest.mark.parametrize(
    ("command", "target"),
    [
        (["headrace", "serve"], ["-m", "headrace.cli.traced", "--", "serve"]),
        (["python3", "-m", "thing", "-v"], ["-m", "thing", "--", "-v"]),
        (["python3", "script.py", "-v"], ["--", "script.py", "-v"]),
        (["vllm", "serve"], ["--", "vllm", "serve"]),
    ],
)
def test_viztracer_runs_modules_and_scripts(command: list[str], target: list[str], tmp_path: Path) -> None:
    words = tools.under("viztracer", command, tmp_path, 0, None).words
    assert words[1:3] == ["-m", "viztracer"] and words[-len(target) :] == target
    with pytest.raises(ConfigError, match="follows programs in Python, and false is none"):
        tools.under("viztracer", ["false"], tmp_path, 0, None)


@pytest.mark.parametrize("tool", tools.TOOLS)
def test_a_missing_tool_is_named(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"--tool {tool} needs {tool}, which isn't installed here"):
        tools.under(tool, ["headrace", "serve"], tmp_path, 0, None)


# -- recording ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, [0, 1, 2, 3, 4, 5]), ({"delay_iterations": 2, "max_iterations": 3}, [2, 3, 4]),
     ({"wait_iterations": 1, "warmup_iterations": 2, "active_iterations": 2}, [3, 4]), ({"delay_iterations": 9}, [])],
)  # fmt: skip
def test_a_recording_has_the_steps_that_were_asked_for(
    settings: dict[str, int], steps: list[int], tmp_path: Path
) -> None:
    profiler = Profiler(ProfilerSettings("torch", str(tmp_path), **settings), torch.device("cpu"))  # type: ignore[arg-type]
    profiler.start()
    for number in range(6):
        with profiler.step(Plan(number, [0], [0], [1], [0])):
            torch.ones(4, 4) @ torch.ones(4, 4)
    files = profiler.stop()
    assert not profiler.active and files == profiler.stop() == [str(path) for path in tmp_path.iterdir()]
    found = [step.name for file in files for step in read_trace(Path(file)).steps]
    assert found == [f"headrace: step {number} (1 rows, 1 tokens)" for number in steps]


@pytest.mark.parametrize("use_gzip", [True, False])
def test_a_trace_that_cannot_be_written_is_an_error(use_gzip: bool, tmp_path: Path) -> None:
    settings = ProfilerSettings("torch", str(tmp_path / "gone"), torch_profiler_use_gzip=use_gzip)
    profiler = Profiler(settings, torch.device("cpu"))
    profiler.start()
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError, match=str(tmp_path)):
        profiler.stop()
    assert not profiler.active


def test_settings_are_checked_at_the_start(tmp_path: Path) -> None:
    assert profiler_settings({}) is None and Config().profiling.profiler_config is None
    for wrong in (
        {"profiler": "proton"},
        {"profiler": "torch", "torch_profiler_directory": "x"},
        {"profiler": "torch", "max_iterations": -1},
        {"profiler": "torch", "ignore_frontend": False},
    ):
        with pytest.raises(ConfigError, match="--profiler-config"):
            Config.from_kwargs(profiler_config=wrong)
    with pytest.raises(ConfigError, match="needs a GPU"):
        Profiler(ProfilerSettings("cuda"), torch.device("cpu"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be written to"):
        Profiler(ProfilerSettings("torch", str(tmp_path / "file")), torch.device("cpu"))


def test_vllms_older_variable_still_names_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_TORCH_PROFILER_DIR", "/traces")
    parser = FlagParser(prog="headrace serve")
    serve.add_arguments(parser)
    config = config_from(parser.parse([]))
    assert config.profiling.profiler_config == {"profiler": "torch", "torch_profiler_dir": "/traces"}


def test_a_server_that_records_nothing_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"/start_profile": httpx.Response(404)}

    def answer(request: httpx.Request) -> httpx.Response:
        return answers[request.url.path]

    server = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    with pytest.raises(ConfigError, match="records no profiles: start it with --profiler-config"):
        capture.record_server(server, lambda: 0)
    answers["/start_profile"] = httpx.Response(409, json={"error": {"message": "Busy."}})
    with pytest.raises(HeadraceError, match="answered 409: Busy"):
        capture.record_server(server, lambda: 0)
    answers |= {"/start_profile": httpx.Response(200), "/stop_profile": httpx.Response(200)}  # as vLLM
    assert capture.record_server(server, lambda: 3) == (3, [])
    answers["/metrics"] = httpx.Response(200, text="nothing 1\n")
    with pytest.raises(ConfigError, match="say how long to record with --seconds"):
        capture.wait(server, 5, None)
    assert capture.wait(server, None, 0.01) == 0


def test_an_idle_server_is_waited_for_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(capture, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    counts: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        made = counts.pop(0) if counts else None
        counted = "" if made is None else f'vllm:iteration_tokens_total_count{{engine="0"}} {made}\n'
        return httpx.Response(200, text=f"vllm:num_requests_running 0\n{counted}")

    server = httpx.Client(base_url="http://server", transport=httpx.MockTransport(answer))
    with pytest.raises(HeadraceError, match="made no step in 60 s: ask it something meanwhile"):
        capture.wait(server, 5, None)
    counts += [0, 1, 3, 5, 9]
    assert capture.wait(server, 5, None) == 0 and counts == [9]
    counts[:] = [0, 1, 1]
    assert capture.wait(server, 5, None) == 0  # what was recorded is worth reading
