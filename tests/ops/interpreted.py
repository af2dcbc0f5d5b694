"""The kernels through Triton's interpreter. Not collected by itself: ``test_kernels.py`` runs it in its own process."""

import pytest
import torch
import triton  # noqa: F401  # before Headrace, which else leaves it out where there is no GPU

from tests.ops.cases import CHECKS


@pytest.mark.parametrize("name", CHECKS)
def test_kernel_agrees_with_the_reference(name: str) -> None:
    # The interpreter multiplies bfloat16 matrices wrongly (Triton 3.9); compiled, they are tested on a GPU.
    dtypes = (torch.float32, torch.float16) if "attention" not in name else (torch.float32,)
    for dtype in dtypes:
        CHECKS[name]("cpu", dtype)
