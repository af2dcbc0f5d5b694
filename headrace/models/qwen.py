"""Qwen 1.5 to 3, dense and mixtures of experts."""

from transformers import PretrainedConfig

from headrace.layers.slots import MlpSlot, MoeSlot, NormSlot
from headrace.models.declare import attention, decoder, head_norm, mlp, moe, windowed
from headrace.models.spec import Spec


def qwen2(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, bias=True, out_bias=False)
    return decoder(config, max_positions, windowed(config, slot), mlp(config))


def qwen3(config: PretrainedConfig, max_positions: int) -> Spec:
    norm = head_norm(NormSlot("rms", config.rms_norm_eps))
    slot = attention(config, max_positions, bias=config.attention_bias, qk_norm=norm)
    return decoder(config, max_positions, windowed(config, slot), mlp(config))


def qwen2_moe(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, bias=config.qkv_bias, out_bias=False)
    slots = _sparse(config, shared_inner=config.shared_expert_intermediate_size)
    return decoder(config, max_positions, windowed(config, slot), slots)


def qwen3_moe(config: PretrainedConfig, max_positions: int) -> Spec:
    norm = head_norm(NormSlot("rms", config.rms_norm_eps))
    window = config.sliding_window or None
    slot = attention(config, max_positions, bias=config.attention_bias, qk_norm=norm, window=window)
    return decoder(config, max_positions, slot, _sparse(config))


def _sparse(config: PretrainedConfig, shared_inner: int = 0) -> list[MlpSlot | MoeSlot]:
    """Experts in every ``decoder_sparse_step``-th layer, dense layers elsewhere and where the config lists them."""
    dense, step = mlp(config), config.decoder_sparse_step
    experts = moe(
        config,
        config.moe_intermediate_size,
        config.num_experts,
        renormalize=config.norm_topk_prob,
        shared_inner=shared_inner,
    )
    return [
        experts if config.num_experts and i not in config.mlp_only_layers and (i + 1) % step == 0 else dense
        for i in range(config.num_hidden_layers)
    ]
