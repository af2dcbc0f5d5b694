"""GLM-4: half of each head rotated, in neighbouring pairs; the 0414 models norm each sub-layer's output as well."""

from dataclasses import replace

from transformers import PretrainedConfig

from headrace.models.declare import attention, decoder, mlp, rope
from headrace.models.names import Rename
from headrace.models.spec import SANDWICH_NORM, Spec


def glm(config: PretrainedConfig, max_positions: int) -> Spec:
    rotary = rope(config, max_positions, interleaved=True)
    slot = attention(config, max_positions, rope=rotary, bias=config.attention_bias, out_bias=False)
    return decoder(config, max_positions, slot, mlp(config))


def glm4(config: PretrainedConfig, max_positions: int) -> Spec:
    renames = (
        Rename(r"\.post_self_attn_layernorm\.", ".attention_out_norm."),
        Rename(r"\.post_mlp_layernorm\.", ".mlp_out_norm."),
    )
    return replace(glm(config, max_positions), wiring=SANDWICH_NORM, renames=renames)
