"""The compiled kernels against the references, on a GPU: ``python -m pytest tests/gpu``."""

import pytest
import torch

from tests.ops.cases import CHECKS

from .util import NEEDS_GPU

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", CHECKS)
def test_kernel_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    CHECKS[name]("cuda", dtype)
