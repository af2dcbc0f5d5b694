"""Every kernel against its reference, through Triton's interpreter, which a process has to choose before it starts."""

import os
import subprocess
import sys
from pathlib import Path


def test_interpreted_kernels_agree_with_their_references() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/interpreted.py"]
    ran = subprocess.run(
        command,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
