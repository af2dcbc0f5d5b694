"""Rotary position embedding of queries and keys, with the norms around it and the writing into the paged cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.norm import rms_norm
from headrace.ops.registry import next_power_of_2, op

NUMBERS_A_PROGRAM = 1024


@dataclass(frozen=True)
class HeadNorms:
    """RMS norms of each head of queries and keys, before the rotation or ``last``."""

    q_weight: torch.Tensor  # [D], or [H, D] for own weights
    k_weight: torch.Tensor
    eps: float
    offset: float
    last: bool = False


@op
def rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    angles: torch.Tensor | None,
    interleaved: bool,
    norms: HeadNorms | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise and rotate ``q`` [T, H, D] and ``k`` [T, H_kv, D]; write k and ``v`` [T, H_kv, D] at ``slots``.

    ``angles`` float32 [T, 2 * R]: what the first R <= D dimensions of each head are multiplied with, then what their
    partners are before these are added; the pairs are (i, i + R/2), or (2i, 2i + 1) if ``interleaved``. None: don't
    rotate. ``slots`` int64 [T]: block * block_size + offset in the caches [num_blocks, block_size, H_kv,
    D], which are contiguous. q, k and v have stride 1 in their last dimension; q and k may be overwritten. Returns
    (q, k).

    Source: Su et al., "RoFormer" (2021).
    """
    if norms is not None and not norms.last:
        q, k = normalise(q, k, norms)
    if angles is not None:
        turned = rotate(torch.cat((q, k), dim=1), angles, interleaved)
        q, k = turned.split_with_sizes((q.shape[1], k.shape[1]), dim=1)
    if norms is not None and norms.last:
        q, k = normalise(q, k, norms)
    k_cache.flatten(0, 1).index_copy_(0, slots, k)
    v_cache.flatten(0, 1).index_copy_(0, slots, v)
    return q, k


def normalise(q: torch.Tensor, k: torch.Tensor, norms: HeadNorms) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        rms_norm.reference(q, norms.q_weight, norms.eps, norms.offset),
        rms_norm.reference(k, norms.k_weight, norms.eps, norms.offset),
    )


def rotate(x: torch.Tensor, angles: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate pairs of ``x`` [T, H, D] by ``angles`` as above."""
    size = angles.shape[1] // 2
    own, of_partner = angles.unsqueeze(1).split_with_sizes((size, size), dim=-1)
    turning = (x if size == x.shape[-1] else x[..., :size]).float()
    partner = turning.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else turning.roll(size // 2, -1)
    turned = torch.addcmul(turning * own, partner, of_partner).to(x.dtype)
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), dim=-1)


@rope_and_cache.on_triton
def _rope_and_cache(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    angles: torch.Tensor | None,
    interleaved: bool,
    norms: HeadNorms | None,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads q, k and v once; writes q and v once, k twice. One program: a token and some of its heads."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    rotary_dim = 0 if angles is None else angles.shape[1] // 2
    block = next_power_of_2(head_dim)
    heads = max(min(NUMBERS_A_PROGRAM // block, next_power_of_2(num_heads)), 1)
    query_programs = -(-num_heads // heads) if rotary_dim or norms else 0
    weights = (norms.q_weight, norms.k_weight) if norms else (None, None)
    if num_tokens:
        _rope_and_cache_kernel[(num_tokens, query_programs - (-num_kv_heads // heads))](
            *(q, k, v, *weights, angles, k_cache, v_cache, slots),
            *(q.stride(0), k.stride(0), v.stride(0), num_heads, num_kv_heads, query_programs),
            *(norms.eps if norms else 0.0, norms.offset if norms else 0.0),
            NORM_LAST=norms is not None and norms.last,
            OWN_WEIGHTS=norms is not None and norms.q_weight.ndim == 2,
            INTERLEAVED=interleaved,
            HEAD_DIM=head_dim,
            HALF=rotary_dim // 2,
            HALF_BLOCK=next_power_of_2(rotary_dim // 2),
            BLOCK=block,
            HEADS=heads,
            **early(q.device),
        )
    return q, k


@jit
def _rope_and_cache_kernel(
    q,
    k,
    v,
    q_weight,
    k_weight,
    angles,
    k_cache,
    v_cache,
    slots,
    q_stride,
    k_stride,
    v_stride,
    num_heads,
    num_kv_heads,
    query_programs,
    eps,
    offset,
    NORM_LAST: tl.constexpr,
    OWN_WEIGHTS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    EARLY: tl.constexpr,
):
    await_predecessor(EARLY)
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    if HALF > 0:
        angles += token * (4 * HALF)
    if program < query_programs:
        heads = program * HEADS + tl.arange(0, HEADS)[:, None]
        places = q + token * q_stride + heads * HEAD_DIM
        _turn_heads(
            *(places, None, heads, heads < num_heads, angles, q_weight, eps, offset),
            *(NORM_LAST, OWN_WEIGHTS, INTERLEAVED, HEAD_DIM, HALF, HALF_BLOCK, BLOCK),
        )
    else:
        heads = (program - query_programs) * HEADS + tl.arange(0, HEADS)[:, None]
        slot = (tl.load(slots + token) * num_kv_heads + heads) * HEAD_DIM
        dims = tl.arange(0, BLOCK)[None, :]
        inside = (heads < num_kv_heads) & (dims < HEAD_DIM)
        value = tl.load(v + token * v_stride + heads * HEAD_DIM + dims, mask=inside)
        tl.store(v_cache + slot + dims, value.to(v_cache.dtype.element_ty), mask=inside)
        places = k + token * k_stride + heads * HEAD_DIM
        _turn_heads(
            *(places, k_cache + slot, heads, heads < num_kv_heads, angles, k_weight, eps, offset),
            *(NORM_LAST, OWN_WEIGHTS, INTERLEAVED, HEAD_DIM, HALF, HALF_BLOCK, BLOCK),
        )


@jit
def _turn_heads(
    places,
    copies,
    heads,
    inside,
    angles,
    weight,
    eps,
    offset,
    NORM_LAST: tl.constexpr,
    OWN_WEIGHTS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise and rotate the heads at ``places`` [HEADS, 1] where they are; write them to ``copies`` too unless None.

    A rotation leaves the mean square alone, so the scale is that of the numbers as they come.
    """
    dims = tl.arange(0, BLOCK)[None, :]
    scale = 1.0
    weights = weight
    if weight is not None:
        whole = tl.load(places + dims, mask=inside & (dims < HEAD_DIM), other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(whole * whole, axis=1, keep_dims=True) / HEAD_DIM + eps)
        weights = weight + heads * HEAD_DIM if OWN_WEIGHTS else weight + heads * 0
    if HALF > 0:
        pairs = tl.arange(0, HALF_BLOCK)[None, :]
        first = 2 * pairs if INTERLEAVED else pairs
        second = first + 1 if INTERLEAVED else first + HALF
        there = pairs < HALF
        a_own, b_own = tl.load(angles + first, there), tl.load(angles + second, there)
        a_other, b_other = tl.load(angles + 2 * HALF + first, there), tl.load(angles + 2 * HALF + second, there)
        turning = inside & there
        a = tl.load(places + first, mask=turning, other=0.0).to(tl.float32)
        b = tl.load(places + second, mask=turning, other=0.0).to(tl.float32)
        if weight is not None:
            a_factor = (tl.load(weights + first, mask=turning, other=0.0).to(tl.float32) + offset) * scale
            b_factor = (tl.load(weights + second, mask=turning, other=0.0).to(tl.float32) + offset) * scale
            if not NORM_LAST:
                a, b = a * a_factor, b * b_factor
        a, b = a * a_own + b * a_other, b * b_own + a * b_other
        if weight is not None and NORM_LAST:
            a, b = a * a_factor, b * b_factor
        _store(places + first, copies, first, a, turning)
        _store(places + second, copies, second, b, turning)
    if HALF * 2 < HEAD_DIM:
        rest = inside & (dims >= 2 * HALF) & (dims < HEAD_DIM)
        values = tl.load(places + dims, mask=rest, other=0.0).to(tl.float32)
        if weight is not None:
            values *= (tl.load(weights + dims, mask=rest, other=0.0).to(tl.float32) + offset) * scale
        _store(places + dims, copies, dims, values, rest)


@jit
def _store(places, copies, dims, values, inside):
    tl.store(places, values.to(places.dtype.element_ty), mask=inside)
    if copies is not None:
        tl.store(copies + dims, values.to(copies.dtype.element_ty), mask=inside)
