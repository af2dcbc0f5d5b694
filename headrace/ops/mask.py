"""Ruling tokens out: the logits of those whose bit is not set become -inf. Knows no grammars."""

from __future__ import annotations

import numpy as np
import torch

from headrace.ops.jit import jit, tl
from headrace.ops.registry import op

TOKENS_A_PROGRAM = 1024


@op
def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor) -> None:
    """Rule tokens out of ``logits`` float32 [S, V], in place, in its lines ``rows`` int64 [M], all different.

    ``mask`` int32 [M, ceil(V / 32)]: bit t % 32 of word t // 32 is set if token t may come.
    """
    # NumPy's loops take a third of torch's time for so few numbers, and wait for no other thread.
    lines, vocab = logits.numpy(), logits.shape[1]
    for row, octets in zip(rows.tolist(), mask.contiguous().numpy().view(np.uint8), strict=True):
        lines[row] += _BIAS_OF_BYTE.take(octets, axis=0).reshape(-1)[:vocab]  # eight tokens at a time


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_BIAS_OF_BYTE = np.where(_BITS == 1, 0, -np.inf).astype(np.float32)  # [256, 8]: 0 where the bit is set


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
