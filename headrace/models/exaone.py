"""LG's EXAONE 4: norms after the sub-layers; only the sliding layers are rotated, where there are some."""

from dataclasses import replace

from transformers import PretrainedConfig

from headrace.layers.slots import NormSlot
from headrace.models.declare import attention, decoder, head_norm, mlp, windowed
from headrace.models.olmo import OUT_NORMS
from headrace.models.spec import POST_NORM, Spec


def exaone4(config: PretrainedConfig, max_positions: int) -> Spec:
    qk_norm = head_norm(NormSlot("rms", config.rms_norm_eps))
    slots = windowed(config, attention(config, max_positions, qk_norm=qk_norm))
    if config.sliding_window is not None:
        slots = [slot if slot.window else replace(slot, rope=None) for slot in slots]
    return decoder(config, max_positions, slots, mlp(config), wiring=POST_NORM, renames=OUT_NORMS)
