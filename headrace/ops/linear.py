"""Activations times a weight matrix: the vendor's library, but for a few rows, which is a matter of reading fast."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.registry import next_power_of_2, op

FEW = 16  # rows that fit one tile of the matrix units
MANY = 4096  # outputs that keep all processors busy


@op
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` [..., K] times ``weight`` [N, K], plus ``bias`` [N]: [..., N]; contiguous and of one dtype."""
    return F.linear(x, weight, bias)


@linear.on_triton
def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Reads the weights once. What is chosen where was the fastest of those tried on an H200."""
    num_outputs, num_inputs = weight.shape
    if x.ndim == 2 and x.shape[0] == 1:
        y = x.new_empty(1, num_outputs)
        outputs, block = 2 if num_inputs <= 2048 else 1, min(next_power_of_2(num_inputs), 2048)
        _matvec_kernel[(-(-num_outputs // outputs),)](
            *(x, weight, bias, y, num_outputs, num_inputs, outputs, block),
            num_warps=4 if block <= 1024 else 8,
            num_stages=3,
            **early(x.device),
        )
        return y
    if x.ndim == 2 and x.shape[0] <= FEW and x.dtype != torch.float32 and num_outputs >= max(MANY, num_inputs):
        y = x.new_empty(x.shape[0], num_outputs)
        _few_rows_kernel[(-(-num_outputs // 64),)](
            *(x, weight, bias, y, x.shape[0], num_outputs, num_inputs, FEW, 64, 128),
            num_warps=4,
            num_stages=4,
            **early(x.device),
        )
        return y
    return F.linear(x, weight, bias)


@jit
def _matvec_kernel(
    x,
    weight,
    bias,
    y,
    num_outputs,
    NUM_INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = weight + output.to(tl.int64)[:, None] * NUM_INPUTS
    await_predecessor(EARLY)
    total = tl.zeros([OUTPUTS, BLOCK], dtype=tl.float32)
    for start in range(0, NUM_INPUTS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        values = tl.load(x + column, mask=column < NUM_INPUTS, other=0.0).to(tl.float32)
        inside = (output < num_outputs)[:, None] & (column < NUM_INPUTS)[None, :]
        weights = tl.load(rows + column[None, :], mask=inside, other=0.0, eviction_policy="evict_first")
        total += values[None, :] * weights.to(tl.float32)
    result = tl.sum(total, axis=1)
    if bias is not None:
        result += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)
    tl.store(y + output, result.to(y.dtype.element_ty), mask=output < num_outputs)


@jit(do_not_specialize=["num_rows"])
def _few_rows_kernel(
    x,
    weight,
    bias,
    y,
    num_rows,
    num_outputs,
    NUM_INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (output < num_outputs)[:, None] & (row < num_rows)[None, :]
    weights = weight + output.to(tl.int64)[:, None] * NUM_INPUTS + column[None, :]
    inputs = x + row[None, :] * NUM_INPUTS + column[:, None]
    await_predecessor(EARLY)
    total = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
    for start in range(0, NUM_INPUTS, BLOCK):
        there = start + column < NUM_INPUTS
        left = tl.load(weights + start, (output < num_outputs)[:, None] & there[None, :], 0.0)
        right = tl.load(inputs + start, there[:, None] & (row < num_rows)[None, :], 0.0)
        total = tl.dot(left, right, total)
    if bias is not None:
        total += tl.load(bias + output, mask=output < num_outputs, other=0.0).to(tl.float32)[:, None]
    tl.store(y + row[None, :] * num_outputs + output[:, None], total.to(y.dtype.element_ty), mask=inside)
