"""Cohere's Command R."""

from transformers import PretrainedConfig

from headrace.layers.slots import NormSlot, QueryKeyNorm
from headrace.models.declare import attention, decoder, mlp, rope
from headrace.models.spec import PARALLEL_ONE_NORM, Spec


def cohere(config: PretrainedConfig, max_positions: int) -> Spec:
    norm = NormSlot("layer", config.layer_norm_eps)
    slot = attention(
        config,
        max_positions,
        rope=rope(config, max_positions, interleaved=True),
        bias=config.attention_bias,
        qk_norm=QueryKeyNorm(norm, "own_head") if config.use_qk_norm else None,
    )
    scale = config.logit_scale
    return decoder(config, max_positions, slot, mlp(config), norm, wiring=PARALLEL_ONE_NORM, logit_scale=scale)
