"""The self-attention layer: fused projections, optional query/key norms, rotation and cache write, attention, output.

The paged attention itself is the given ``Backend``'s. Knows no scheduler and no block table beyond passing it on.
"""

import math

import torch

from headrace.attention.backend import AttentionSpec, Backend, StepInput
from headrace.layers.layer import Layer
from headrace.layers.linear import Linear
from headrace.layers.norm import Norm
from headrace.layers.rope import RotaryTable
from headrace.layers.slots import AttentionSlot
from headrace.ops.rope import HeadNorms, rope_and_cache
from headrace.quant.method import MethodFor, unquantized


class Attention(Layer):
    """Self-attention, over the paged KV cache that ``bind`` gave it if it is causal: [T, dim] → [T, dim]."""

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    alibi_slopes: torch.Tensor | None
    group = 0

    def __init__(
        self,
        dim: int,
        slot: AttentionSlot,
        rotary: RotaryTable | None,
        backend: Backend,
        *,
        method_for: MethodFor = unquantized,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        self.slot, self.spec, self.backend, self.rotary = slot, attention_spec(slot), backend, rotary
        self.q_size, self.kv_size = slot.num_heads * slot.head_dim, slot.num_kv_heads * slot.head_dim
        self.qkv = Linear(
            dim,
            {"q": self.q_size, "k": self.kv_size, "v": self.kv_size},
            bias=slot.bias,
            split="column",
            dtype=dtype,
            device=device,
            method=method_for("qkv"),
        )
        self.o = Linear(
            self.q_size,
            {"o": dim},
            bias=slot.out_bias,
            split="row",
            dtype=dtype,
            device=device,
            method=method_for("o"),
        )
        self.q_norm = self._head_norm(slot.num_heads, dtype, device)
        self.k_norm = self._head_norm(slot.num_kv_heads, dtype, device)
        self.head_norms = fused_norms(self.q_norm, self.k_norm, slot)
        slopes = torch.tensor(alibi_slopes(slot.num_heads), device=device) if slot.alibi else None
        self.register_buffer("alibi_slopes", slopes, persistent=False)

    def bind(self, k_cache: torch.Tensor, v_cache: torch.Tensor, group: int) -> None:
        """Use these caches [num_blocks, block_size, num_kv_heads, head_dim] and the step's KV group ``group``."""
        self.k_cache, self.v_cache, self.group = k_cache, v_cache, group

    def forward(self, x: torch.Tensor, step: StepInput) -> torch.Tensor:
        slot, batch, rotary = self.slot, step.groups[self.group], self.rotary
        q, k, v = self.qkv(x).split_with_sizes((self.q_size, self.kv_size, self.kv_size), dim=-1)
        if self.head_norms is None:
            q, k = self._norm(self.q_norm, q), self._norm(self.k_norm, k)
        if slot.clip is not None:
            q, k, v = (part.clamp(-slot.clip, slot.clip) for part in (q, k, v))
        num_tokens = x.shape[0]
        q, k, v = (part.view(num_tokens, -1, slot.head_dim) for part in (q, k, v))
        if not slot.causal:
            return self.o(self.backend.encode(q, k, v, batch).view(num_tokens, self.q_size))
        angles, interleaved = (None, False) if rotary is None else (rotary(step.positions), rotary.interleaved)
        caches = self.k_cache, self.v_cache
        q, k = rope_and_cache(q, k, v, angles, interleaved, self.head_norms, *caches, batch.slots)
        out = self.backend.run(q, *caches, batch, alibi_slopes=self.alibi_slopes)
        return self.o(out.view(num_tokens, self.q_size))

    def _head_norm(self, num_heads: int, dtype: torch.dtype, device: torch.device) -> Norm | None:
        if self.slot.qk_norm is None:
            return None
        dim = self.slot.head_dim
        shapes = {"head": (dim,), "own_head": (num_heads, dim), "all_heads": (num_heads * dim,)}
        return Norm(self.slot.qk_norm.norm, shapes[self.slot.qk_norm.over], dtype=dtype, device=device)

    def _norm(self, norm: Norm | None, x: torch.Tensor) -> torch.Tensor:
        """``x`` [T, heads * head_dim] normalised, by head or as a whole."""
        if norm is None:
            return x
        if self.slot.qk_norm is not None and self.slot.qk_norm.over != "all_heads":
            return norm(x.unflatten(-1, (-1, self.slot.head_dim)).contiguous()).flatten(1)
        return norm(x.contiguous())


def fused_norms(q_norm: Norm | None, k_norm: Norm | None, slot: AttentionSlot) -> HeadNorms | None:
    """The norms of single heads that the rotation can do on its way; None if it can't."""
    if slot.qk_norm is None or q_norm is None or k_norm is None:
        return None
    if slot.qk_norm.norm.kind != "rms" or slot.qk_norm.over == "all_heads":
        assert not slot.qk_norm.after_rope
        return None
    norm = slot.qk_norm.norm
    return HeadNorms(q_norm.weight, k_norm.weight, norm.eps, norm.offset, slot.qk_norm.after_rope)


def attention_spec(slot: AttentionSlot) -> AttentionSpec:
    """What the backend must know of the layer."""
    return AttentionSpec(
        num_heads=slot.num_heads,
        num_kv_heads=slot.num_kv_heads,
        head_dim=slot.head_dim,
        scale=slot.scale,
        window=slot.window,
        softcap=slot.softcap,
        alibi=slot.alibi,
        causal=slot.causal,
    )


def alibi_slopes(num_heads: int) -> list[float]:
    """One slope a head: a geometric series for a power of two, else filled up with every other of the next power's.

    Source: Press, Smith, Lewis, "Train Short, Test Long" (2022), and its published code.
    """
    whole = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (head + 1) / whole) for head in range(whole)]
    between = [2.0 ** (-4.0 * (2 * head + 1) / whole) for head in range(num_heads - whole)]
    return slopes + between
