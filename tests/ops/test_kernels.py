"""Every kernel against its reference, and through the compiler, each in a process of its own: Triton is interpreted, or
believes in a GPU, from a process's start on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("file", "interpret"), [("interpreted.py", "1"), ("compiled.py", "0")])
def test_kernels(file: str, interpret: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/ops/{file}"]
    ran = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
