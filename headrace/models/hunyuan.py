"""Tencent's dense Hunyuan: queries and keys are normalised after the rotation; its "dynamic" scaling is a fixed one."""

from transformers import PretrainedConfig

from headrace.layers.slots import NormSlot, Rope
from headrace.models.declare import attention, decoder, head_dim, head_norm, mlp, plain_rope, rope
from headrace.models.names import Rename
from headrace.models.spec import Spec


def hunyuan_dense(config: PretrainedConfig, max_positions: int) -> Spec:
    norm = NormSlot("rms", config.rms_norm_eps)
    slot = attention(
        config,
        max_positions,
        rope=_rope(config, max_positions),
        bias=config.attention_bias,
        qk_norm=head_norm(norm, after_rope=True),
    )
    renames = (
        Rename(r"\.self_attn\.query_layernorm\.", ".attention.q_norm."),
        Rename(r"\.self_attn\.key_layernorm\.", ".attention.k_norm."),
    )
    return decoder(config, max_positions, slot, mlp(config), renames=renames)


def _rope(config: PretrainedConfig, max_positions: int) -> Rope:
    """An ``alpha`` stretches the base once and for all, instead of with the context's length."""
    parameters, dim = config.rope_parameters, head_dim(config)
    if parameters.get("rope_type") == "dynamic" and parameters.get("alpha"):
        return plain_rope(dim, parameters["rope_theta"] * parameters["alpha"] ** (dim / (dim - 2)))
    return rope(config, max_positions)
