"""Mistral, Ministral, Mixtral, and StarCoder2, which follows Mistral's attention."""

from dataclasses import replace
from itertools import cycle, islice

from transformers import PretrainedConfig

from headrace.layers.slots import AttentionSlot, NormSlot
from headrace.models.declare import attention, decoder, mlp, moe, windowed
from headrace.models.names import Rename
from headrace.models.spec import Spec


def mistral(config: PretrainedConfig, max_positions: int) -> Spec:
    slots = _windows(config, attention(config, max_positions))
    return decoder(config, max_positions, slots, mlp(config))


def mixtral(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, window=config.sliding_window)
    experts = moe(config, config.intermediate_size, config.num_local_experts)
    renames = (
        Rename(r"\.block_sparse_moe\.", ".mlp."),
        Rename(r"\.w1\.", ".gate."),
        Rename(r"\.w2\.", ".down."),
        Rename(r"\.w3\.", ".up."),
    )
    return decoder(config, max_positions, slot, experts, renames=renames)


def starcoder2(config: PretrainedConfig, max_positions: int) -> Spec:
    bias = config.use_bias
    slot = attention(config, max_positions, bias=bias, window=config.sliding_window)
    norm = NormSlot("layer", config.norm_epsilon, bias=True)
    renames = (Rename(r"\.mlp\.c_fc\.", ".mlp.up."), Rename(r"\.mlp\.c_proj\.", ".mlp.down."))
    return decoder(config, max_positions, slot, mlp(config, gated=False, bias=bias), norm, renames=renames)


def _windows(config: PretrainedConfig, slot: AttentionSlot) -> list[AttentionSlot]:
    """One window for all layers, or by ``layer_types``, or by Ministral's repeating pattern of windows."""
    pattern = getattr(config, "interleaved_sliding_window", None)
    if pattern is None and getattr(config, "layer_types", None):
        return windowed(config, slot)
    if not isinstance(pattern, list):
        pattern = [pattern or config.sliding_window]
    return [replace(slot, window=window or None) for window in islice(cycle(pattern), config.num_hidden_layers)]
