"""Llama and the models that differ from it by a flag or two."""

from dataclasses import replace

from transformers import PretrainedConfig

from headrace.models.declare import attention, decoder, mlp, windowed
from headrace.models.spec import Spec


def llama(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, bias=config.attention_bias)
    return decoder(config, max_positions, slot, mlp(config, bias=config.mlp_bias))


def seed_oss(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, bias=config.attention_bias, out_bias=config.attention_out_bias)
    return decoder(config, max_positions, slot, mlp(config, bias=config.mlp_bias))


def smollm3(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, bias=config.attention_bias)
    slots = windowed(config, slot) if config.use_sliding_window else [slot] * config.num_hidden_layers
    slots = [
        layer if rotate else replace(layer, rope=None)
        for layer, rotate in zip(slots, config.no_rope_layers, strict=True)
    ]
    return decoder(config, max_positions, slots, mlp(config, bias=config.mlp_bias))
