"""Multi-head latent attention (DeepSeek-V2 and later) as far as planning needs it: its matrices and its cache.

The decoder can't compute it yet. Sizes by the model's config.json; source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from transformers import PretrainedConfig

from headrace.errors import ConfigError
from headrace.layers.linear import Linear
from headrace.layers.moe import Moe
from headrace.layers.norm import Norm
from headrace.layers.slots import AttentionSlot, MlpSlot, MoeSlot, NormSlot
from headrace.models.declare import decoder as declared
from headrace.models.declare import mlp, moe
from headrace.models.decoder import Decoder
from headrace.models.spec import Spec


@dataclass(frozen=True)
class Latent:
    """One rank's heads. All of them read one latent vector, and one rotated key, a token: each rank caches both."""

    num_heads: int
    query_rank: int | None  # None: queries are projected directly
    kv_rank: int
    plain_dim: int  # of a query and key that position doesn't rotate
    rotated_dim: int
    value_dim: int

    @property
    def attention_flops(self) -> int:
        """Of a layer, a token and token of context, keys and values being expanded as in prefill."""
        return 2 * self.num_heads * (self.plain_dim + self.rotated_dim + self.value_dim)

    def rank(self, ranks: int) -> "Latent":
        return replace(self, num_heads=self.num_heads // ranks)

    def replace_attention(self, model: Decoder, dtype: torch.dtype, device: torch.device) -> None:
        """Give each layer of ``model`` these projections instead of its own; DeepSeek's shared experts have no gate."""
        linear: Callable[..., Linear] = partial(Linear, dtype=dtype, device=device)
        queries, dim = self.num_heads * (self.plain_dim + self.rotated_dim), model.spec.dim
        for attention in model.attention_layers:
            norms = [self.kv_rank] + ([self.query_rank] if self.query_rank else [])
            parts: list[nn.Module] = [
                Norm(NormSlot("rms", 1e-6), (size,), dtype=dtype, device=device) for size in norms
            ]
            if self.query_rank:
                parts.append(linear(dim, {"q_a": self.query_rank}))
            parts.append(linear(self.query_rank or dim, {"q": queries}))
            parts.append(linear(dim, {"kv_a": self.kv_rank + self.rotated_dim}))
            parts.append(linear(self.kv_rank, {"kv_b": self.num_heads * (self.plain_dim + self.value_dim)}))
            attention.add_module("qkv", nn.ModuleList(parts))
            attention.add_module("o", linear(self.num_heads * self.value_dim, {"o": dim}))
        for module in model.modules():
            if isinstance(module, Moe) and module.slot.shared_inner:
                del module.shared_gate


def latent_spec(config: PretrainedConfig, max_positions: int) -> tuple[Spec, Latent]:
    """A model whose config has ``kv_lora_rank``, as far as a plan needs it: its cache is that of one key-value head."""
    try:
        latent = Latent(
            config.num_attention_heads,
            config.q_lora_rank,
            config.kv_lora_rank,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        half = (latent.kv_rank + latent.rotated_dim) // 2  # the cache's formula counts a key and a value
        slot = AttentionSlot(latent.num_heads, 1, half, scale=1.0)
        inner = config.moe_intermediate_size
        sparse = moe(config, inner, config.n_routed_experts, shared_inner=inner * (config.n_shared_experts or 0))
        first = min(config.first_k_dense_replace, config.num_hidden_layers)
        mlps: list[MlpSlot | MoeSlot] = [*[mlp(config)] * first, *[sparse] * (config.num_hidden_layers - first)]
        return declared(config, max_positions, slot, mlps), latent
    except (AttributeError, TypeError) as error:
        raise ConfigError(f"The configuration doesn't describe latent attention with experts: {error}.") from error
