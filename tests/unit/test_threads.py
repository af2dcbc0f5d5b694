"""How idle threads wait, by the word of the OpenMP that torch loads."""

import os
import subprocess
import sys

import pytest

from headrace.engine.threads import SPINS

# Whatever builds an engine loads torch only after it has been told how to wait; here building stops at once.
PROGRAM = """
from headrace import LLM
try:
    LLM("no/such/model", device="none")
except Exception:
    import torch
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, f"GOMP_SPINCOUNT = '{SPINS}'"),
        ({"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT = '7'"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "OMP_WAIT_POLICY = 'ACTIVE'"),
    ],
)
def test_threads_wait_briefly_unless_told_otherwise(environment: dict[str, str], expected: str) -> None:
    others = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=others | {"OMP_DISPLAY_ENV": "verbose"} | environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    if "GOMP_SPINCOUNT" not in ran.stderr:
        pytest.skip("this torch computes with another OpenMP than libgomp")
    assert expected in ran.stderr and (not environment or f"'{SPINS}'" not in ran.stderr)
