"""Gemma 1 to 3: norms with weights around one, scaled embeddings, soft caps, sliding windows."""

from dataclasses import replace
from typing import Any

from transformers import PretrainedConfig

from headrace.errors import ConfigError
from headrace.layers.slots import AttentionSlot, NormSlot
from headrace.models.declare import activation, attention, decoder, head_norm, mlp, rope, windowed
from headrace.models.names import Rename
from headrace.models.spec import SANDWICH_NORM, Spec

FOUR_NORMS = (
    Rename(r"\.post_attention_layernorm\.", ".attention_out_norm."),
    Rename(r"\.pre_feedforward_layernorm\.", ".mlp_norm."),
    Rename(r"\.post_feedforward_layernorm\.", ".mlp_out_norm."),
)


def gemma(config: PretrainedConfig, max_positions: int) -> Spec:
    _causal(config)
    slot = attention(config, max_positions, bias=config.attention_bias)
    scale = config.hidden_size**0.5
    return decoder(config, max_positions, slot, mlp(config), _norm(config), embedding_scale=scale)


def gemma2(config: PretrainedConfig, max_positions: int) -> Spec:
    slot = attention(config, max_positions, **_attention_options(config))
    return _capped(config, max_positions, windowed(config, slot))


def gemma3(config: PretrainedConfig, max_positions: int) -> Spec:
    ropes = {kind: rope(config, max_positions, layer_type=kind) for kind in set(config.layer_types)}
    options = _attention_options(config)
    slot = attention(config, max_positions, rope=None, qk_norm=head_norm(_norm(config)), **options)
    slots = [
        replace(layer, rope=ropes[kind]) for layer, kind in zip(windowed(config, slot), config.layer_types, strict=True)
    ]
    return _capped(config, max_positions, slots)


def gemma3_multimodal(config: PretrainedConfig, max_positions: int) -> Spec:
    """The language model of a checkpoint that has a vision tower too."""
    spec = gemma3(config.text_config, max_positions)
    renames = (
        Rename(r"^(model\.)?(vision_tower|multi_modal_projector)\.", None),
        Rename(r"^(model\.language_model|language_model\.model)\.", "model."),
        Rename(r"^language_model\.lm_head\.", "lm_head."),
    )
    tied = config.tie_word_embeddings
    architecture = (config.architectures or [spec.architecture])[0]
    return replace(spec, architecture=architecture, tied_embeddings=tied, renames=(*renames, *spec.renames))


def _norm(config: PretrainedConfig) -> NormSlot:
    return NormSlot("rms", config.rms_norm_eps, offset=1.0)


def _attention_options(config: PretrainedConfig) -> dict[str, Any]:
    scale, softcap = config.query_pre_attn_scalar**-0.5, config.attn_logit_softcapping or 0.0
    return {"bias": config.attention_bias, "scale": scale, "softcap": softcap}


def _capped(config: PretrainedConfig, max_positions: int, slots: list[AttentionSlot]) -> Spec:
    _causal(config)
    return decoder(
        config,
        max_positions,
        slots,
        mlp(config, activation=activation(config.hidden_activation)),
        _norm(config),
        wiring=SANDWICH_NORM,
        embedding_scale=config.hidden_size**0.5,
        logit_softcap=config.final_logit_softcapping or 0.0,
        renames=FOUR_NORMS,
    )


def _causal(config: PretrainedConfig) -> None:
    if config.use_bidirectional_attention:
        raise ConfigError("The config asks for bidirectional attention, but only causal models can be served.")
