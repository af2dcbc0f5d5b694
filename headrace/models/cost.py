"""How many bytes and operations a model needs: what its speed on a device can be judged by. Knows no device."""

import torch

from headrace.layers.moe import Moe
from headrace.models.decoder import Decoder
from headrace.types import StepCost


def step_cost(model: Decoder, dtype: torch.dtype) -> StepCost:
    """What a step reads and multiplies at least. All experts count as read, those of one token as multiplied."""
    tables = {id(table.weight) for table in (model.embedding, model.positions) if table is not None}
    tables.discard(id(model.head.weight))
    multiplied = sum(weight.numel() for weight in model.layers.parameters() if weight.ndim > 1)
    for moe in (module for module in model.modules() if isinstance(module, Moe)):
        idle = 1 - moe.slot.top_k / moe.slot.num_experts
        multiplied -= int(idle * sum(weight.numel() for weight in moe.experts.parameters()))
    specs = [layer.spec for layer in model.attention_layers]
    return StepCost(
        weight_bytes=sum(w.numel() * w.element_size() for w in model.parameters() if id(w) not in tables),
        layer_flops=2 * multiplied,
        head_flops=2 * model.head.weight.numel(),
        kv_bytes=sum(2 * spec.num_kv_heads * spec.head_dim for spec in specs) * dtype.itemsize,
        attention_flops=sum(4 * spec.num_heads * spec.head_dim for spec in specs),
    )
