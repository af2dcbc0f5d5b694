"""Rotary position embedding of queries and keys, fused with writing keys and values into the paged cache."""

import torch

from headrace.ops.registry import op


@op
def rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor | None,
    interleaved: bool,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate ``q`` [T, H, D] and ``k`` [T, H_kv, D], write k and ``v`` [T, H_kv, D] at ``slots``; return (q, k).

    ``positions`` int64 [T] choose rows of ``cos_sin`` float32 [max_positions, R]: R/2 cosines, then R/2 sines, for
    the first R <= D dimensions of each head, whose pairs are (i, i + R/2), or (2i, 2i + 1) if ``interleaved``.
    None: don't rotate. ``slots`` int64 [T]: block * block_size + offset in the caches [num_blocks, block_size, H_kv,
    D], which are contiguous. May work in place: the caller must not use what it passed as q and k again.

    Source: Su et al., "RoFormer" (2021).
    """
    if cos_sin is not None:
        cos, sin = cos_sin.index_select(0, positions)[:, None].chunk(2, dim=-1)
        rotate_(q, cos, sin, interleaved)
        rotate_(k, cos, sin, interleaved)
    k_cache.view(-1, *k.shape[1:]).index_copy_(0, slots, k)
    v_cache.view(-1, *v.shape[1:]).index_copy_(0, slots, v)
    return q, k


def rotate_(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> None:
    """Rotate pairs of ``x`` [T, H, D] in place by angles given as ``cos`` and ``sin`` float32 [T, 1, R/2]."""
    half = cos.shape[-1]
    a, b = (x[..., : 2 * half : 2], x[..., 1 : 2 * half : 2]) if interleaved else x[..., : 2 * half].chunk(2, dim=-1)
    rotated = a * cos - b * sin
    torch.add(a * sin, b * cos, out=b) if b.dtype == cos.dtype else b.copy_(a * sin + b * cos)
    a.copy_(rotated)
