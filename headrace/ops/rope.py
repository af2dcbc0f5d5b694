"""Rotary position embedding of queries and keys, fused with writing keys and values into the paged cache."""

from __future__ import annotations

import torch

from headrace.ops.jit import jit, tl
from headrace.ops.registry import next_power_of_2, op

NUMBERS_A_PROGRAM = 1024


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
    D], which are contiguous. q, k and v have stride 1 in their last dimension; q and k may be overwritten.

    Source: Su et al., "RoFormer" (2021).
    """
    if cos_sin is not None:
        cos, sin = cos_sin.index_select(0, positions)[:, None].chunk(2, dim=-1)
        q, k = rotate(torch.cat((q, k), dim=1), cos, sin, interleaved).split((q.shape[1], k.shape[1]), dim=1)
    k_cache.view(-1, *k.shape[1:]).index_copy_(0, slots, k)
    v_cache.view(-1, *v.shape[1:]).index_copy_(0, slots, v)
    return q, k


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate pairs of ``x`` [T, H, D] by angles given as ``cos`` and ``sin`` float32 [T, 1, R/2]."""
    half = cos.shape[-1]
    turning, rest = x[..., : 2 * half].float(), x[..., 2 * half :]
    a, b = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.chunk(2, dim=-1)
    a, b = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
    turned = torch.stack((a, b), dim=-1).flatten(-2) if interleaved else torch.cat((a, b), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1) if rest.shape[-1] else turned.to(x.dtype)


@rope_and_cache.on_triton
def _rope_and_cache(
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
    """Reads q, k and v once; writes q and v once, k twice. One program: a token and some of its heads."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    rotary_dim = 0 if cos_sin is None else cos_sin.shape[1]
    block = next_power_of_2(head_dim)
    heads = max(min(NUMBERS_A_PROGRAM // block, next_power_of_2(num_heads)), 1)
    query_programs = -(-num_heads // heads) if rotary_dim else 0
    if num_tokens:
        _rope_and_cache_kernel[(num_tokens, query_programs - (-num_kv_heads // heads))](
            q,
            k,
            v,
            positions,
            cos_sin,
            k_cache,
            v_cache,
            slots,
            *(q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1)),
            num_heads,
            num_kv_heads,
            query_programs,
            INTERLEAVED=interleaved,
            HEAD_DIM=head_dim,
            HALF=rotary_dim // 2,
            HALF_BLOCK=next_power_of_2(rotary_dim // 2),
            BLOCK=block,
            HEADS=heads,
        )
    return q, k


@jit
def _rope_and_cache_kernel(
    q,
    k,
    v,
    positions,
    cos_sin,
    k_cache,
    v_cache,
    slots,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    num_heads,
    num_kv_heads,
    query_programs,
    INTERLEAVED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    if program < query_programs:
        heads = program * HEADS + tl.arange(0, HEADS)[:, None]
        places = q + token * q_token_stride + heads * q_head_stride
        if HALF > 0:
            _rotate(places, None, heads < num_heads, token, positions, cos_sin, INTERLEAVED, HALF, HALF_BLOCK)
    else:
        heads = (program - query_programs) * HEADS + tl.arange(0, HEADS)[:, None]
        slot = (tl.load(slots + token) * num_kv_heads + heads) * HEAD_DIM
        dims = tl.arange(0, BLOCK)[None, :]
        inside = (heads < num_kv_heads) & (dims < HEAD_DIM)
        value = tl.load(v + token * v_token_stride + heads * v_head_stride + dims, mask=inside)
        tl.store(v_cache + slot + dims, value.to(v_cache.dtype.element_ty), mask=inside)
        places = k + token * k_token_stride + heads * k_head_stride
        if HALF > 0:
            _rotate(
                places, k_cache + slot, heads < num_kv_heads, token, positions, cos_sin, INTERLEAVED, HALF, HALF_BLOCK
            )
        if HALF * 2 < HEAD_DIM:
            rest = inside & (dims >= 2 * HALF)
            key = tl.load(places + dims, mask=rest)
            tl.store(k_cache + slot + dims, key.to(k_cache.dtype.element_ty), mask=rest)


@jit
def _rotate(
    places,
    copies,
    inside,
    token,
    positions,
    cos_sin,
    INTERLEAVED: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    """Rotate the heads at ``places`` [HEADS, 1] where they are, and write them to ``copies`` too unless None."""
    pairs = tl.arange(0, HALF_BLOCK)[None, :]
    angles = cos_sin + tl.load(positions + token) * (2 * HALF) + pairs
    cos = tl.load(angles, mask=pairs < HALF, other=0.0)
    sin = tl.load(angles + HALF, mask=pairs < HALF, other=0.0)
    if INTERLEAVED:
        first, second = 2 * pairs, 2 * pairs + 1
    else:
        first, second = pairs, pairs + HALF
    inside = inside & (pairs < HALF)
    a = tl.load(places + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(places + second, mask=inside, other=0.0).to(tl.float32)
    rotated_a = a * cos - b * sin
    rotated_b = b * cos + a * sin
    tl.store(places + first, rotated_a.to(places.dtype.element_ty), mask=inside)
    tl.store(places + second, rotated_b.to(places.dtype.element_ty), mask=inside)
    if copies is not None:
        tl.store(copies + first, rotated_a.to(copies.dtype.element_ty), mask=inside)
        tl.store(copies + second, rotated_b.to(copies.dtype.element_ty), mask=inside)
