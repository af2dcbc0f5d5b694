"""Attention over two sets of keys from the results over each."""

from __future__ import annotations

import torch

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.registry import next_power_of_2, op

LINES_A_PROGRAM = 16


@op
def join(
    one: torch.Tensor, one_sums: torch.Tensor, other: torch.Tensor, other_sums: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(result, sums) over the keys of both results [L, H, D], contiguous.

    ``one_sums`` and ``other_sums`` float32 [L, H], of any strides: the logarithm of the sum that each softmax divided
    by; the returned one is contiguous.

    Source: Dao et al., "Flash-Decoding" (2023).
    """
    share = torch.sigmoid(other_sums - one_sums)[..., None]
    result = torch.lerp(one.float(), other.float(), share).to(one.dtype)
    return result, torch.logaddexp(one_sums, other_sums).contiguous()


@join.on_triton
def _join(
    one: torch.Tensor, one_sums: torch.Tensor, other: torch.Tensor, other_sums: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads both results once and writes one."""
    num_lines, dim = one.shape[0] * one.shape[1], one.shape[2]
    result, sums = torch.empty_like(one), torch.empty(one.shape[:2], dtype=torch.float32, device=one.device)
    _join_kernel[(-(-num_lines // LINES_A_PROGRAM),)](
        *(one, one_sums, other, other_sums, result, sums),
        *(*one_sums.stride(), *other_sums.stride(), num_lines),
        *(one.shape[1], dim, next_power_of_2(dim), LINES_A_PROGRAM),
        **early(one.device),
    )
    return result, sums


@jit(do_not_specialize=["num_lines"])
def _join_kernel(
    one,
    one_sums,
    other,
    other_sums,
    result,
    sums,
    one_token_stride,
    one_head_stride,
    other_token_stride,
    other_head_stride,
    num_lines,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    LINES: tl.constexpr,
    EARLY: tl.constexpr,
):
    await_predecessor(EARLY)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    real = line < num_lines
    token, head = (line // NUM_HEADS).to(tl.int64), line % NUM_HEADS
    a = tl.load(one_sums + token * one_token_stride + head * one_head_stride, mask=real, other=0.0)
    b = tl.load(other_sums + token * other_token_stride + head * other_head_stride, mask=real, other=0.0)
    largest = tl.maximum(a, b)
    a_weight, b_weight = tl.exp(a - largest), tl.exp(b - largest)
    total = a_weight + b_weight
    tl.store(sums + line, largest + tl.log(total), mask=real)
    dims = tl.arange(0, BLOCK)[None, :]
    places = line.to(tl.int64)[:, None] * DIM + dims
    inside = real[:, None] & (dims < DIM)
    left = tl.load(one + places, mask=inside, other=0.0).to(tl.float32) * (a_weight / total)[:, None]
    right = tl.load(other + places, mask=inside, other=0.0).to(tl.float32) * (b_weight / total)[:, None]
    tl.store(result + places, (left + right).to(result.dtype.element_ty), mask=inside)
