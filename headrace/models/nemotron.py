"""Nemotron and Arcee: squared ReLU without a gate."""

from transformers import PretrainedConfig

from headrace.layers.slots import NormSlot
from headrace.models.declare import attention, decoder, mlp
from headrace.models.spec import Spec


def nemotron(config: PretrainedConfig, max_positions: int) -> Spec:
    norm = NormSlot("layer", config.norm_eps, offset=1.0, bias=True)
    slot = attention(config, max_positions, bias=config.attention_bias)
    return decoder(config, max_positions, slot, mlp(config, gated=False, bias=config.mlp_bias), norm)


def arcee(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, bias=config.attention_bias)
    return decoder(config, max_positions, slot, mlp(config, gated=False, bias=config.mlp_bias))
