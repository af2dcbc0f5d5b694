"""OLMo, OLMo 2, OLMoE."""

from transformers import PretrainedConfig

from headrace.layers.slots import NormSlot, QueryKeyNorm
from headrace.models.declare import attention, decoder, mlp, moe
from headrace.models.names import Rename
from headrace.models.spec import POST_NORM, Spec

OUT_NORMS = (
    Rename(r"\.post_attention_layernorm\.", ".attention_out_norm."),
    Rename(r"\.post_feedforward_layernorm\.", ".mlp_out_norm."),
)


def olmo(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, bias=config.attention_bias, clip=config.clip_qkv)
    return decoder(config, max_positions, slot, mlp(config), NormSlot("layer", 1e-5, weight=False))


def olmo2(config: PretrainedConfig, max_positions: int) -> Spec:
    norm = QueryKeyNorm(NormSlot("rms", config.rms_norm_eps), "all_heads")
    slot = attention(config, max_positions, bias=config.attention_bias, qk_norm=norm)
    return decoder(config, max_positions, slot, mlp(config), wiring=POST_NORM, renames=OUT_NORMS)


def olmoe(config: PretrainedConfig, max_positions: int) -> Spec:
    norm = QueryKeyNorm(NormSlot("rms", config.rms_norm_eps), "all_heads")
    slot = attention(config, max_positions, bias=config.attention_bias, qk_norm=norm, clip=config.clip_qkv)
    experts = moe(config, config.intermediate_size, config.num_experts, renormalize=config.norm_topk_prob)
    return decoder(config, max_positions, slot, experts)
