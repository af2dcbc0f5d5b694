"""Products with 8-bit weights on a CPU: multiplied as they are for a few rows, expanded before the product for many.

A weight is ``code * scale``, the codes int8 [N, K], with one scale for each of the N outputs.
"""

import torch

from headrace.ops.linear import linear

LARGEST = 127
ROWS_A_PASS = 4096  # of weights that are expanded at a time, so that they stay in the caches


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes int8 [N, K], scales bfloat16 [N]) of ``weight`` [N, K]. The codes make good for the scales' rounding."""
    weight = weight.float()
    scales = (weight.abs().amax(dim=1) * ((1 + 2**-8) / LARGEST)).bfloat16()
    codes = (weight / scales.float().clamp_(min=torch.finfo(torch.float32).tiny)[:, None]).round_()
    return codes.to(torch.int8), scales


def expand_reference(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The weights float32 [N, K]."""
    return codes * scales.float()[:, None]


def linear_packed(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``x`` bfloat16 [M, K], contiguous, times the weights: bfloat16 [M, N], summed in float32."""
    return torch._weight_int8pack_mm(x, codes, scales)


def linear_expanded(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same, multiplied in ``dtype``."""
    wide = x.to(dtype)
    parts = [linear(wide, some.to(dtype)) for some in codes.split(ROWS_A_PASS)]
    return (torch.cat(parts, dim=-1) * scales).to(x.dtype)
