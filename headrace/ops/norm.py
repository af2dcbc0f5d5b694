"""Root-mean-square normalisation of the last dimension, alone or fused with the residual addition before it."""

import torch
import torch.nn.functional as F

from headrace.ops.registry import op


@op
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """``x / sqrt(mean(x²) + eps) * (offset + weight)`` over the last dimension, in float32, rounded once.

    ``x`` [..., D]; ``weight`` [D], or [H, D] for an ``x`` [T, H, D]. Returns x's shape and dtype.

    Source: Zhang, Sennrich, "Root Mean Square Layer Normalization" (2019).
    """
    if offset:
        weight = weight.float() + offset
    if weight.ndim == 1 and weight.dtype == x.dtype:
        return F.rms_norm(x, weight.shape, weight, eps)
    normalised = F.rms_norm(x.float(), x.shape[-1:], None, eps)
    return (normalised * weight).to(x.dtype)


@op
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(``rms_norm`` of the sum, the sum) of a sub-layer's output and the residual stream, both [..., D].

    The sum is rounded to x's dtype before it is normalised, as if the two were separate. ``residual`` may be
    overwritten by the sum.
    """
    residual = residual + x
    return rms_norm.reference(residual, weight, eps, offset), residual
