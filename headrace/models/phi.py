"""Phi-1 to Phi-2, and Phi-3 and 4."""

from transformers import PretrainedConfig

from headrace.layers.slots import NormSlot
from headrace.models.declare import attention, decoder, head_norm, mlp
from headrace.models.names import Rename
from headrace.models.spec import PARALLEL_ONE_NORM, Spec


def phi(config: PretrainedConfig, max_positions: int) -> Spec:
    norm = NormSlot("layer", config.layer_norm_eps, bias=True)
    qk_norm = head_norm(norm) if config.qk_layernorm else None
    return decoder(
        config,
        max_positions,
        attention(config, max_positions, bias=True, qk_norm=qk_norm),
        mlp(config, gated=False, bias=True),
        norm,
        wiring=PARALLEL_ONE_NORM,
        head_bias=True,
        renames=(
            Rename(r"\.self_attn\.dense\.", ".attention.o."),
            Rename(r"\.mlp\.fc1\.", ".mlp.up."),
            Rename(r"\.mlp\.fc2\.", ".mlp.down."),
            Rename(r"\.final_layernorm\.", ".norm."),
        ),
    )


def phi3(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, window=config.sliding_window)
    return decoder(config, max_positions, slot, mlp(config))
