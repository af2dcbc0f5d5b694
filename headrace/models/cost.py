"""How many bytes and operations a model needs: what its speed on a device can be judged by. Knows no device."""

from collections import defaultdict

import torch
from torch import nn

from headrace.attention.backend import AttentionSpec
from headrace.layers.embedding import Embedding
from headrace.layers.linear import Linear
from headrace.layers.moe import Moe
from headrace.models.decoder import Decoder
from headrace.types import StepCost


def step_cost(model: Decoder, dtype: torch.dtype) -> StepCost:
    """What a step reads and multiplies at least. ``weight_bytes`` are all experts', the products those of a token's."""
    linears = [module for module in model.layers.modules() if isinstance(module, Linear)]
    moes = [module for module in model.modules() if isinstance(module, Moe)]
    experts = [weight for moe in moes for weight in moe.experts.parameters()]
    share = moes[0].slot.top_k / moes[0].slot.num_experts if moes else 0.0  # no model has layers that differ in it
    multiplied = sum(linear.in_features * linear.out_features for linear in linears)
    multiplied += int(share * sum(weight.numel() for weight in experts))
    specs = [layer.spec for layer in model.attention_layers]
    by_window: dict[int, list[AttentionSpec]] = defaultdict(list)
    for spec in specs:
        if spec.window is not None:
            by_window[spec.window].append(spec)
    return StepCost(
        weight_bytes=sum(map(_bytes_read, model.modules())),
        layer_flops=2 * multiplied,
        head_flops=2 * model.head.in_features * model.head.out_features if model.spec.head else 0,
        kv_bytes=_kv_bytes(specs, dtype),
        attention_flops=_attention_flops(specs),
        expert_bytes=sum(weight.nbytes for weight in experts),
        expert_share=share,
        windowed=[(window, _kv_bytes(own, dtype), _attention_flops(own)) for window, own in sorted(by_window.items())],
    )


def _kv_bytes(specs: list[AttentionSpec], dtype: torch.dtype) -> int:
    return sum(2 * spec.num_kv_heads * spec.head_dim for spec in specs) * dtype.itemsize


def _attention_flops(specs: list[AttentionSpec]) -> int:
    return sum(4 * spec.num_heads * spec.head_dim for spec in specs)


def _bytes_read(module: nn.Module) -> int:
    """Bytes of a layer's own weights that a step reads whole: of a table it looks up but a few rows."""
    if isinstance(module, Embedding):
        return 0
    if isinstance(module, Linear):
        return module.method.num_bytes(module) + (0 if module.bias is None else module.bias.nbytes)
    return sum(weight.nbytes for weight in module.parameters(recurse=False))
