"""The GPT-3 generation: GPT-2, OPT, GPT-NeoX. LayerNorm, biases, no gates; positions learned or rotary."""

from dataclasses import replace
from functools import partial

import torch
from transformers import PretrainedConfig

from headrace.errors import ConfigError
from headrace.layers.slots import NormSlot
from headrace.models.declare import activation, attention, decoder, mlp
from headrace.models.names import Rename
from headrace.models.spec import PARALLEL, PRE_NORM, LearnedPositions, Spec


def gpt2(config: PretrainedConfig, max_positions: int) -> Spec:
    if config.add_cross_attention:
        raise ConfigError("The config asks for cross-attention, but only decoders that stand alone can be served.")
    slot = attention(config, max_positions, rope=None, bias=True)
    scale = slot.scale if config.scale_attn_weights else 1.0
    by_layer = config.scale_attn_by_inverse_layer_idx
    slots = [replace(slot, scale=scale / (i + 1) if by_layer else scale) for i in range(config.num_hidden_layers)]
    inner = config.n_inner or 4 * config.hidden_size
    return decoder(
        config,
        max_positions,
        slots,
        mlp(config, inner=inner, activation=activation(config.activation_function), gated=False, bias=True),
        NormSlot("layer", config.layer_norm_epsilon, bias=True),
        learned_positions=LearnedPositions(config.max_position_embeddings),
        renames=(
            Rename(r"\.attn\.(masked_)?bias$", None),
            Rename(r"^transformer\.", ""),
            Rename(r"^h\.", "layers."),
            Rename(r"^wte\.", "embedding."),
            Rename(r"^wpe\.", "positions."),
            Rename(r"^ln_f\.", "norm."),
            Rename(r"\.ln_1\.", ".attention_norm."),
            Rename(r"\.ln_2\.", ".mlp_norm."),
            Rename(r"\.attn\.c_attn\.", ".attention.qkv.", input_last),
            Rename(r"\.attn\.c_proj\.", ".attention.o.", input_last),
            Rename(r"\.mlp\.c_fc\.", ".mlp.up.", input_last),
            Rename(r"\.mlp\.c_proj\.", ".mlp.down.", input_last),
        ),
    )


def opt(config: PretrainedConfig, max_positions: int) -> Spec:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        raise ConfigError("OPT models that normalise after each addition (OPT-350M) aren't supported.")
    if config.word_embed_proj_dim != config.hidden_size:
        raise ConfigError("OPT models whose embeddings are projected (word_embed_proj_dim) aren't supported.")
    bias, affine = config.enable_bias, config.layer_norm_elementwise_affine
    return decoder(
        config,
        max_positions,
        attention(config, max_positions, rope=None, bias=bias),
        mlp(
            config,
            inner=config.ffn_dim,
            activation=activation(config.activation_function),
            gated=False,
            bias=bias,
        ),
        NormSlot("layer", 1e-5, weight=affine, bias=affine),
        learned_positions=LearnedPositions(config.max_position_embeddings + 2, offset=2),
        renames=(
            Rename(r"^(model\.)?decoder\.", ""),
            Rename(r"^embed_positions\.", "positions."),
            Rename(r"^final_layer_norm\.", "norm."),
            Rename(r"\.self_attn\.out_proj\.", ".attention.o."),
            Rename(r"\.self_attn_layer_norm\.", ".attention_norm."),
            Rename(r"\.final_layer_norm\.", ".mlp_norm."),
            Rename(r"\.fc1\.", ".mlp.up."),
            Rename(r"\.fc2\.", ".mlp.down."),
        ),
    )


def gpt_neox(config: PretrainedConfig, max_positions: int) -> Spec:
    return decoder(
        config,
        max_positions,
        attention(config, max_positions, bias=config.attention_bias),
        mlp(config, gated=False, bias=True),
        NormSlot("layer", config.layer_norm_eps, bias=True),
        wiring=PARALLEL if config.use_parallel_residual else PRE_NORM,
        renames=(
            Rename(r"\.attention\.(rotary_emb\.inv_freq|bias|masked_bias)$", None),
            Rename(r"^gpt_neox\.", ""),
            Rename(r"^embed_in\.", "embedding."),
            Rename(r"^embed_out\.", "head."),
            Rename(r"^final_layer_norm\.", "norm."),
            Rename(
                r"\.attention\.query_key_value\.",
                ".attention.qkv.",
                partial(projection_first, num_heads=config.num_attention_heads),
            ),
            Rename(r"\.attention\.dense\.", ".attention.o."),
            Rename(r"\.mlp\.dense_h_to_4h\.", ".mlp.up."),
            Rename(r"\.mlp\.dense_4h_to_h\.", ".mlp.down."),
        ),
    )


def input_last(tensor: torch.Tensor) -> torch.Tensor:
    """A weight stored [in, out] as [out, in]; a bias as it is."""
    return tensor.t() if tensor.ndim == 2 else tensor


def projection_first(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows ordered (head, q/k/v, dimension) in the order (q/k/v, head, dimension)."""
    return tensor.unflatten(0, (num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
