"""Products on a CPU: oneDNN's, with rows of zeros beside them, and those of torch's choice."""

import pytest
import torch
import torch.nn.functional as F

from headrace.ops import linear as module
from headrace.ops.linear import by_onednn, linear


@pytest.mark.parametrize("library", [True, False], ids=["oneDNN", "torch"])
@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (8,), (9,), (63,), (65,), (3, 5), (2, 1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, shape: tuple[int, ...], library: bool) -> None:
    monkeypatch.setattr(module, "by_onednn", lambda dtype: library)
    x, weight, bias = torch.randn(*shape, 48), torch.randn(33, 48), torch.randn(33)
    for added in (None, bias):
        on = [None if tensor is None else tensor.to(dtype) for tensor in (x, weight, added)]
        exact = F.linear(*(None if tensor is None else tensor.double() for tensor in on))
        y = linear(*on)
        assert y.shape == (*shape, 33) and y.dtype == dtype and y.is_contiguous()
        bound = 48 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), exact, atol=bound, rtol=bound)


@pytest.mark.parametrize(
    ("name", "mkl", "onednn"), [("AMD EPYC 9B45", True, True), ("Intel Xeon", True, False), ("", False, False)]
)
def test_the_library_for_float32(monkeypatch: pytest.MonkeyPatch, name: str, mkl: bool, onednn: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    assert by_onednn.__wrapped__(torch.float32) is (onednn and torch.backends.mkldnn.is_available())
