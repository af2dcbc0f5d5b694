"""The words of model declarations: slots filled from a Hugging Face config's usual fields.

Families call these with what differs. Owns how config fields and rope scalings are read; knows no layer's code.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from headrace.errors import ConfigError
from headrace.layers.slots import AttentionSlot, ClassifierSlot, MlpSlot, MoeSlot, NormSlot, QueryKeyNorm, Rope
from headrace.models.names import Rename
from headrace.models.spec import Layer, Spec

Slot = TypeVar("Slot")

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def decoder(
    config: PretrainedConfig,
    max_positions: int,
    attention: AttentionSlot | Sequence[AttentionSlot],
    mlp: MlpSlot | MoeSlot | Sequence[MlpSlot | MoeSlot],
    norm: NormSlot | None = None,
    **fields: Any,
) -> Spec:
    """A ``Spec`` of ``config``'s sizes; ``attention`` and ``mlp`` are one slot for all layers or one a layer.

    Windows that no context of ``max_positions`` tokens outgrows are dropped. The norm is RMS unless given.
    """
    attentions = [
        replace(slot, window=None) if (slot.window or 0) >= max_positions else slot
        for slot in each_layer(config, attention)
    ]
    mlps: list[MlpSlot | MoeSlot] = each_layer(config, mlp)
    return Spec(
        architecture=(config.architectures or [type(config).__name__])[0],
        vocab_size=config.vocab_size,
        dim=config.hidden_size,
        layers=tuple(Layer(*slots) for slots in zip(attentions, mlps, strict=True)),
        norm=norm or NormSlot("rms", config.rms_norm_eps),
        max_positions=max_positions,
        tied_embeddings=getattr(config, "tie_word_embeddings", False),
        **fields,
    )


def scored(spec: Spec, num_labels: int) -> Spec:
    """A decoder with a classifier in its head's place, which transformers calls ``score``."""
    names = (Rename(r"^score\.", "classifier.out."), *spec.renames)
    return replace(spec, head=False, classifier=ClassifierSlot(num_labels, bias=False), renames=names)


def each_layer(config: PretrainedConfig, slots: Slot | Sequence[Slot]) -> list[Slot]:
    """``slots`` as a list with one entry a layer."""
    return list(slots) if isinstance(slots, Sequence) else [slots] * config.num_hidden_layers


def attention(config: PretrainedConfig, max_positions: int, **changes: Any) -> AttentionSlot:
    """The attention slot of a Llama-like config, with ``changes``: rotary embedding by ``rope`` unless given, and a
    ``bias`` that goes for the output projection, too, unless ``out_bias`` says otherwise."""
    if "rope" not in changes:
        changes["rope"] = rope(config, max_positions)
    changes.setdefault("out_bias", changes.get("bias", False))
    slot = AttentionSlot(
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim(config),
        scale=head_dim(config) ** -0.5,
    )
    return replace(slot, **changes)


def mlp(config: PretrainedConfig, **changes: Any) -> MlpSlot:
    """The gated feed-forward slot of a Llama-like config, with ``changes``."""
    inner = changes.pop("inner", None) or config.intermediate_size
    act = changes.pop("activation", None) or activation(config.hidden_act)
    return MlpSlot(inner, act, **changes)


def moe(config: PretrainedConfig, inner: int, num_experts: int, **changes: Any) -> MoeSlot:
    """The mixture-of-experts slot, with ``changes``."""
    slot = MoeSlot(inner, activation(config.hidden_act), num_experts, config.num_experts_per_tok, renormalize=True)
    return replace(slot, **changes)


def head_dim(config: PretrainedConfig) -> int:
    """Many configs leave it out, or null, where it follows from the other sizes."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def head_norm(norm: NormSlot, **changes: Any) -> QueryKeyNorm:
    """Queries and keys normalised head by head with shared weights."""
    return replace(QueryKeyNorm(norm, "head"), **changes)


def activation(name: str) -> str:
    """Our name of the activation that configs call ``name``."""
    if name not in ACTIVATIONS:
        raise ConfigError(f"The activation {name!r} isn't supported; supported are {', '.join(sorted(ACTIVATIONS))}.")
    return ACTIVATIONS[name]


def windowed(config: PretrainedConfig, slot: AttentionSlot) -> list[AttentionSlot]:
    """``slot`` for each layer, with the config's window in those that ``layer_types`` calls sliding."""
    if unknown := set(config.layer_types) - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"Layers of type {unknown.pop()!r} aren't supported, only full and sliding attention.")
    sliding = replace(slot, window=config.sliding_window or None)
    return [sliding if kind == "sliding_attention" else slot for kind in config.layer_types]


def rope(
    config: PretrainedConfig, max_positions: int, *, layer_type: str | None = None, interleaved: bool = False
) -> Rope:
    """The rotary embedding by the config's ``rope_parameters`` (of ``layer_type``, where they differ by layer).

    Scalings that depend on the context's length (dynamic, longrope) are fixed here for ``max_positions``.
    """
    parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    kind = parameters.get("rope_type", "default")
    rotary_dim = int(head_dim(config) * (parameters.get("partial_rotary_factor") or 1.0))
    if kind == "default":
        return plain_rope(rotary_dim, parameters["rope_theta"], interleaved=interleaved)
    if kind not in ROPE_INIT_FUNCTIONS:
        known = ", ".join(sorted(("default", *ROPE_INIT_FUNCTIONS)))
        raise ConfigError(f"The rope type {kind!r} isn't supported; supported are {known}.")
    for factors in (parameters.get("short_factor"), parameters.get("long_factor")):
        if factors is not None and len(factors) != rotary_dim // 2:
            raise ConfigError(f"The {kind} rope needs {rotary_dim // 2} factors for each length, got {len(factors)}.")
    complete = copy.deepcopy(config)
    complete.head_dim = head_dim(config)  # transformers' functions don't all cope with its absence
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](
        complete, torch.device("cpu"), seq_len=max_positions, layer_type=layer_type
    )
    return Rope(tuple(frequencies.tolist()), interleaved, float(scale))


def plain_rope(rotary_dim: int, theta: float, *, interleaved: bool = False) -> Rope:
    """Frequencies theta^(-2i / rotary_dim), rounded to float32 as checkpoints were trained with."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    return Rope(tuple((1.0 / theta**exponents).tolist()), interleaved)
