"""Stability's StableLM."""

from transformers import PretrainedConfig

from headrace.layers.slots import NormSlot, QueryKeyNorm
from headrace.models.declare import attention, decoder, mlp
from headrace.models.names import Rename
from headrace.models.spec import PARALLEL_ONE_NORM, PRE_NORM, Spec


def stablelm(config: PretrainedConfig, max_positions: int) -> Spec:
    eps = config.layer_norm_eps
    qk_norm = QueryKeyNorm(NormSlot("layer", eps), "own_head") if config.qk_layernorm else None
    return decoder(
        config,
        max_positions,
        attention(config, max_positions, bias=config.use_qkv_bias, out_bias=False, qk_norm=qk_norm),
        mlp(config),
        NormSlot("layer", eps, bias=True),
        wiring=PARALLEL_ONE_NORM if config.use_parallel_residual else PRE_NORM,
        renames=(Rename(r"\.([qk])_layernorm\.norms\.", r".\1_norm."),),
    )
