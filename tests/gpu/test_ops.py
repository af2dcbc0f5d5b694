"""The compiled kernels against the references, on a GPU: ``python -m pytest tests/gpu``."""

import pytest
import torch

from tests.ops.cases import CHECKS, AttentionCase, check_attention

from .util import NEEDS_GPU

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", CHECKS)
def test_kernel_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    CHECKS[name]("cuda", dtype)


LONG_ROWS = [
    AttentionCase(((1, 300), (1024, 1024)), heads=(4, 2), dim=64),
    AttentionCase(((1500, 1500), (3, 40), (1100, 3333)), heads=(8, 2), dim=128),
    AttentionCase(((1030, 18_000),), heads=(2, 1), dim=128, block_size=64),
    AttentionCase(((1200, 1300),), heads=(2, 2), dim=80, block_size=1),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", LONG_ROWS, ids=str)
def test_long_rows(case: AttentionCase, dtype: torch.dtype) -> None:
    check_attention(case, "cuda", dtype)
