"""The kernels compiled for a GPU that needn't be there. Not collected by itself: ``test_kernels.py`` runs it alone."""

import contextlib
import sys

import pytest
import torch
from triton.backends.compiler import GPUTarget  # before Headrace, see interpreted.py
from triton.runtime.driver import driver

from headrace.ops import jit
from tests.ops.cases import CHECKS

ATTENTION = [name for name in CHECKS if "attention" in name]
NAMES = [name for name in CHECKS if name not in ATTENTION] + ATTENTION[::3]  # those take a second each


class Hopper:
    """What Triton asks of a driver while it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.mark.parametrize("name", NAMES)
def test_kernel_compiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.set_active(Hopper())
    for module in [module for module in list(sys.modules.values()) if getattr(module, "early", None) is jit.early]:
        monkeypatch.setattr(module, "early", lambda device: {"EARLY": True, "launch_pdl": True})
    with jit.compiling(), contextlib.suppress(AssertionError):  # nothing is run, so the results are wrong
        CHECKS[name]("cpu", torch.bfloat16)
