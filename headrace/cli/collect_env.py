"""``headrace collect-env``: what a bug report needs to know about a machine and its software. Secrets are hidden."""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping

from headrace import __version__
from headrace.cli.parser import FlagParser

Facts = dict[str, str]

LIBRARIES = (
    "torch", "triton", "transformers", "tokenizers", "safetensors", "huggingface_hub", "gguf", "numpy", "fastapi",
    "starlette", "pydantic", "uvicorn", "uvloop", "msgspec", "pyzmq", "prometheus_client", "httpx", "jinja2", "rich",
    "flash-attn", "flashinfer-python", "ray", "openai", "nvidia-nccl-cu13", "nvidia-cudnn-cu13",
)  # fmt: skip
VARIABLES = re.compile(
    r"(HEADRACE|VLLM|HF|HUGGING_?FACE|TRANSFORMERS|CUDA|NVIDIA|NCCL|TORCH|PYTORCH|TRITON|OMP|MKL|KMP|GOMP|CCL|ZE|ONEAPI"
    r"|SYCL|RAY|SLURM|TOKENIZERS)_\w+|LD_LIBRARY_PATH|LD_PRELOAD|VIRTUAL_ENV|CONDA_PREFIX"
)
SECRET = re.compile(r"TOKEN(?!IZERS)|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
HIDDEN = "***"
COMMAND_SECONDS = 20.0


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument("--json", action="store_true", help="Print JSON.")


def run(arguments: argparse.Namespace) -> int:
    report = collect()
    print(json.dumps(report, indent=2) if arguments.json else render(report))
    return 0


def collect() -> dict[str, Facts]:
    """Every section's facts by their names."""
    return {
        "System": system(),
        "Python": python(),
        "PyTorch": pytorch(),
        "CPU": cpu(),
        "GPU": gpu(),
        "Libraries": libraries(),
        "Environment variables": variables(os.environ),
    }


def render(report: Mapping[str, Facts]) -> str:
    lines = []
    for title, facts in report.items():
        lines += ["=" * 30, f"{title:^30}".rstrip(), "=" * 30]
        width = max(map(len, facts), default=0)
        for name, value in facts.items():
            first, *more = value.splitlines() or [""]
            lines += [f"{name:<{width}} : {first}", *(" " * (width + 3) + line for line in more)]
        lines.append("")
    return "\n".join(lines)


def system() -> Facts:
    release = os_release()
    return {
        "Headrace": __version__,
        "OS": release.get("PRETTY_NAME", platform.platform()),
        "Kernel": f"{platform.system()} {platform.release()}",
        "Architecture": platform.machine(),
        "C library": " ".join(platform.libc_ver()),
        "Memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "GCC": first_line("gcc", "--version"),
    }


def os_release() -> Facts:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def python() -> Facts:
    return {
        "Version": sys.version.replace("\n", " "),
        "Implementation": platform.python_implementation(),
        "Executable": sys.executable,
        "Virtual environment": str(sys.prefix != sys.base_prefix),
    }


def pytorch() -> Facts:
    try:
        import torch
    except ImportError as error:
        return {"Version": f"can't be imported: {error}"}
    return {
        "Version": torch.__version__,
        "Debug build": str(torch.version.debug),
        "Built for CUDA": str(torch.version.cuda),
        "Built for ROCm": str(torch.version.hip),
        "Accelerator": str(torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        "Threads": str(torch.get_num_threads()),
    }


def cpu() -> Facts:
    described = output("lscpu")
    if described is None:
        return {"Model": platform.processor(), "CPUs": str(os.cpu_count())}
    facts = dict(re.findall(r"^\s*([^:\n]+):\s*(.*)$", described, re.MULTILINE))
    wanted = ("Model name", "CPU(s)", "Thread(s) per core", "Core(s) per socket", "Socket(s)", "L2 cache", "L3 cache")
    chosen = {name: facts[name] for name in (*wanted, *(n for n in facts if n.startswith("NUMA"))) if name in facts}
    flags = facts.get("Flags", "").split()
    chosen["Vector units"] = " ".join(flag for flag in flags if re.match(r"avx|amx|sve|fma", flag))
    return chosen


def gpu() -> Facts:
    query = "index,name,memory.total,driver_version,compute_cap"
    devices = output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
    if devices is None:
        return {"Devices": "none found by nvidia-smi"}
    facts = {"Driver": first_line("nvidia-smi", "--version"), "CUDA compiler": first_line("nvcc", "--version")}
    for line in devices.splitlines():
        index, _, described = line.partition(", ")
        facts[f"GPU {index}"] = described
    if len(devices.splitlines()) > 1:
        facts["Topology"] = output("nvidia-smi", "topo", "-m") or ""
    return facts


def libraries() -> Facts:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def variables(environment: Mapping[str, str]) -> Facts:
    """The environment variables that matter, their secrets hidden."""
    return {
        name: HIDDEN if SECRET.search(name) else re.sub(r"//[^/@\s]+@", f"//{HIDDEN}@", value)
        for name, value in sorted(environment.items())
        if VARIABLES.fullmatch(name)
    }


def output(*command: str) -> str | None:
    """What ``command`` prints; None if it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def first_line(*command: str) -> str:
    return (output(*command) or "not found").splitlines()[0]
