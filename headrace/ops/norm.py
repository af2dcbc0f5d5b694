"""Root-mean-square normalisation of the last dimension, alone or fused with the residual addition before it."""

from __future__ import annotations

import functools

import torch

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.registry import next_power_of_2, op

NUMBERS_A_PROGRAM = 1024  # short rows share a program


@op
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """``x / sqrt(mean(x²) + eps) * (offset + weight)`` over the last dimension, in float32, rounded once.

    ``x`` [..., D]; ``weight`` [D], or [H, D] for an ``x`` [T, H, D]. Returns x's shape and dtype.

    Source: Zhang, Sennrich, "Root Mean Square Layer Normalization" (2019).
    """
    if offset:
        weight = weight.float() + offset
    # On a CPU torch's own rms_norm is a dozen operations, and their dispatch takes longer than these take for few rows.
    # Converting first is faster than operations on two types, too.
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = torch.addcmul(constant(eps, x.device), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return (wide * scale).mul_(weight.float()).to(x.dtype)


@functools.cache
def constant(value: float, device: torch.device) -> torch.Tensor:
    """float32 [], made once."""
    return torch.tensor(value, device=device)


@op
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(``rms_norm`` of the sum, the sum) of a sub-layer's output and the residual stream, both [..., D].

    The sum is rounded to x's dtype before it is normalised, as if the two were separate.
    """
    residual = residual + x
    return rms_norm.reference(residual, weight, eps, offset), residual


@rms_norm.on_triton
def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    return _launch(x, None, weight, eps, offset)[0]


@add_rms_norm.on_triton
def _add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    return _launch(x, residual.contiguous(), weight, eps, offset)


def _launch(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, offset: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads x and the residual once and writes y and the sum once: 4 (2 if there is no residual) × x's bytes."""
    x = x.contiguous()
    y, total = torch.empty_like(x), x if residual is None else torch.empty_like(x)
    dim = x.shape[-1]
    num_rows = x.numel() // dim
    block = next_power_of_2(dim)
    rows = max(min(NUMBERS_A_PROGRAM // block, next_power_of_2(num_rows)), 1)
    _rms_norm_kernel[(-(-num_rows // rows),)](
        x,
        residual,
        weight,
        y,
        total,
        num_rows,
        dim,
        weight.numel() // dim,
        eps,
        offset,
        ADD=residual is not None,
        ROWS=rows,
        BLOCK=block,
        num_warps=min(max(rows * block // 512, 1), 16),
        **early(x.device),
    )
    return y, total


@jit(do_not_specialize=["num_rows"])
def _rms_norm_kernel(
    x,
    residual,
    weight,
    y,
    total,
    num_rows,
    dim,
    num_weights,
    eps,
    offset,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < num_rows) & (columns < dim)
    places = rows.to(tl.int64) * dim + columns
    weights = tl.load(weight + (rows % num_weights) * dim + columns, mask=inside, other=0.0).to(tl.float32)
    await_predecessor(EARLY)
    values = tl.load(x + places, mask=inside, other=0.0)
    if ADD:
        summed = values.to(tl.float32) + tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
        values = summed.to(values.dtype)
        tl.store(total + places, values, mask=inside)
    values = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, axis=1, keep_dims=True) / dim + eps)
    normalised = values * scale * (weights + offset)
    tl.store(y + places, normalised.to(y.dtype.element_ty), mask=inside)
