"""IBM's Granite: Llama with four multipliers."""

from dataclasses import replace

from transformers import PretrainedConfig

from headrace.models.declare import attention, decoder, mlp
from headrace.models.spec import Spec


def granite(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, bias=config.attention_bias, scale=config.attention_multiplier)
    return replace(
        decoder(config, max_positions, slot, mlp(config, bias=config.mlp_bias)),
        embedding_scale=config.embedding_multiplier,
        given_scale=config.embedding_multiplier,
        residual_scale=config.residual_multiplier,
        logit_scale=1.0 / config.logits_scaling,
    )
