"""Ruling tokens out: the logits of those whose bit is not set become -inf. Knows no grammars."""

from __future__ import annotations

import functools

import torch

from headrace.ops.jit import jit, tl
from headrace.ops.registry import op

TOKENS_A_PROGRAM = 1024


@op
def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> None:
    """Change ``logits`` [S, V] in place: in its M lines ``rows`` int64 [M], all different, only what may come remains.

    ``mask`` int32 [M, ceil(V / 32)]: bit t % 32 of word t // 32 is set if token t may come.
    """
    octets = mask.contiguous().view(torch.uint8).flatten().int()
    bias = _bias_of_byte(logits.dtype).index_select(0, octets).view(len(rows), -1)  # eight tokens at a time
    for row, line in zip(rows.tolist(), bias, strict=True):
        logits[row] += line[: logits.shape[1]]


@functools.cache
def _bias_of_byte(dtype: torch.dtype) -> torch.Tensor:
    """[256, 8]: 0 where the bit is set, the lowest bit first, else -inf."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return torch.where(bits == 1, 0.0, -torch.inf).to(dtype)


@mask_tokens.on_triton
def _mask_tokens(logits: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> None:
    num_masks, vocab = len(rows), logits.shape[1]
    if num_masks:
        grid = (num_masks, -(-vocab // TOKENS_A_PROGRAM))
        _mask_kernel[grid](logits, rows, mask, logits.stride(0), mask.stride(0), vocab, TOKENS_A_PROGRAM)


@jit
def _mask_kernel(logits, rows, mask, line_stride, mask_stride, vocab, BLOCK: tl.constexpr):
    """One part of one line; nothing is read of the logits, and only what is ruled out is written."""
    line, part = tl.program_id(0), tl.program_id(1)
    token = part * BLOCK + tl.arange(0, BLOCK)
    known = token < vocab
    word = tl.load(mask + line * mask_stride + token // 32, mask=known, other=0)
    forbidden = ((word >> (token % 32)) & 1) == 0
    place = tl.load(rows + line).to(tl.int64) * line_stride + token
    tl.store(logits + place, float("-inf"), mask=known & forbidden)
