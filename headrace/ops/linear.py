"""Activations times a weight matrix: the vendor's library, but for a few rows, which is a matter of reading fast.

How those are computed is looked up in what was tuned for the device, else decided by a rule.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.registry import next_power_of_2, op
from headrace.ops.tuned import TILINGS, Tiling

FEW = 32  # rows up to which reading the weights takes longer than multiplying them, however that is done
MOST = 64  # rows for which it may, for some shapes
BUSY = 96  # programs that keep the memory busy
SPAN = 1024  # inputs that a program shouldn't go below
COUNTERS = 4096  # tiles whose inputs can be divided


@op
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` [..., K] times ``weight`` [N, K], plus ``bias`` [N]: [..., N]; contiguous and of one dtype."""
    if x.device.type != "cpu" or not by_onednn(x.dtype):
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2)
    num_rows = rows.shape[0]
    padded = F.pad(rows, (0, 0, 0, -num_rows % (8 if num_rows <= 64 else 64))) if num_rows > 1 else rows
    if x.dtype == torch.float32:
        y = torch.ops.mkldnn._linear_pointwise(padded, weight, bias, "none", [], "")
    else:
        y = F.linear(padded, weight, bias)
    return y[:num_rows].view(*x.shape[:-1], weight.shape[0])


@functools.cache
def by_onednn(dtype: torch.dtype) -> bool:
    """Whether that is the fastest library for such numbers on this CPU. It keeps a kernel for every number of rows.

    MKL is as fast in float32, but only on Intel's own CPUs (docs/performance.md).
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.float32:
        return torch.backends.mkl.is_available() and "Intel" not in torch.cpu.get_capabilities().get("cpu_name", "")
    return {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }[dtype]()


@linear.on_triton
def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Reads the weights once where rows are few. What is chosen where was the fastest of those tried on an H200."""
    rows = x.shape[0] if x.ndim == 2 else 0
    if rows == 1:
        return _matvec(x, weight, bias)
    if 1 < rows <= MOST and x.dtype.itemsize == 2:
        tiling = choose(x.device, weight.shape[0], weight.shape[1], next_power_of_2(rows))
        if tiling is not None:
            return few_rows(x, weight, bias, tiling)
    return F.linear(x, weight, bias)


def choose(device: torch.device, num_outputs: int, num_inputs: int, rows: int) -> Tiling | None:
    """How to compute such a product of up to ``rows``, a power of 2; None: by the vendor's library."""
    key = device, num_outputs, num_inputs, rows
    if key not in TILINGS:
        TILINGS[key] = rule(num_outputs, num_inputs, rows)
    return TILINGS[key]


def rule(num_outputs: int, num_inputs: int, rows: int) -> Tiling | None:
    """The choice for what isn't tuned: the largest tiles and fewest parts of the inputs that keep it ``BUSY``."""
    if rows > FEW:
        return None
    for outputs in (64, 32, 16):
        tiles = -(-num_outputs // outputs)
        parts = min(-(-BUSY // tiles), max(num_inputs // SPAN, 1))
        if tiles * parts >= BUSY:
            break
    return Tiling(outputs, parts, block=128, warps=4, stages=5 if outputs == 16 else 4)


def few_rows(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, tiling: Tiling) -> torch.Tensor:
    """``linear`` of ``x`` [up to MOST rows, K] in 16 bits, divided like this."""
    (rows, num_inputs), num_outputs = x.shape, weight.shape[0]
    y = x.new_empty(rows, num_outputs)
    tiles, width = -(-num_outputs // tiling.outputs), max(next_power_of_2(rows), 16)
    parts = tiling.parts if tiles <= COUNTERS else 1
    size = tiles * parts, tiling.outputs * width
    sums = torch.empty(size, dtype=torch.float32, device=x.device) if parts > 1 else None
    span = -(-num_inputs // (parts * tiling.block)) * tiling.block
    _few_rows_kernel[(tiles, parts)](
        *(x, weight, bias, y, sums, _arrivals(x.device), rows, num_outputs, num_inputs, span),
        *(num_inputs % tiling.block == 0, parts, width, tiling.outputs, tiling.block),
        num_warps=tiling.warps,
        num_stages=tiling.stages,
        **early(x.device),
    )
    return y


def _matvec(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    num_outputs, num_inputs = weight.shape
    y = x.new_empty(1, num_outputs)
    outputs, block = 2 if num_inputs <= 2048 else 1, min(next_power_of_2(num_inputs), 2048)
    _matvec_kernel[(-(-num_outputs // outputs),)](
        *(x, weight, bias, y, num_outputs, num_inputs, outputs, block),
        num_warps=4 if block <= 1024 else 8,
        num_stages=3,
        **early(x.device),
    )
    return y


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


@functools.cache
def _arrivals(device: torch.device) -> torch.Tensor:
    """How many programs are done with each tile whose inputs are divided; zeros between launches."""
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


@jit(do_not_specialize=["num_rows"])
def _few_rows_kernel(
    x,
    weight,
    bias,
    y,
    sums,
    arrivals,
    num_rows,
    num_outputs,
    num_inputs,
    span,
    EVEN: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """A tile of outputs by ``span`` of the inputs; the last program to arrive adds up what all of its tile found."""
    tile, part = tl.program_id(0), tl.program_id(1)
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    weights = weight + tl.minimum(output, num_outputs - 1).to(tl.int64)[:, None] * num_inputs + column[None, :]
    inputs = x + row[None, :] * num_inputs + column[:, None]
    real = (row < num_rows)[None, :]
    await_predecessor(EARLY)
    total = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
    for start in range(part * span, tl.minimum((part + 1) * span, num_inputs), BLOCK):
        if EVEN:
            left, right = tl.load(weights + start), tl.load(inputs + start, real, 0.0)
        else:
            there = start + column < num_inputs
            left = tl.load(weights + start, there[None, :], 0.0)
            right = tl.load(inputs + start, there[:, None] & real, 0.0)
        total = tl.dot(left, right, total)
    last = True
    if SPLITS > 1:
        places = sums + tile * (SPLITS * OUTPUTS * ROWS) + tl.arange(0, OUTPUTS)[:, None] * ROWS + row[None, :]
        tl.store(places + part * (OUTPUTS * ROWS), total, real)
        tl.debug_barrier()  # all of the program's stores come before it announces them
        last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLITS - 1
        if last:
            tl.store(arrivals + tile, 0)  # for the next launch
            total = tl.zeros([OUTPUTS, ROWS], dtype=tl.float32)
            for other in tl.static_range(SPLITS):
                total += tl.load(places + other * (OUTPUTS * ROWS), real, 0.0, cache_modifier=".cg")
    if last:
        inside = (output < num_outputs)[:, None]
        if bias is not None:
            total += tl.load(bias + output[:, None], inside, 0.0).to(tl.float32)
        tl.store(y + row[None, :] * num_outputs + output[:, None], total.to(y.dtype.element_ty), inside & real)
