"""Normalisation layers, alone or fused with the residual addition before them. Knows nothing of its neighbours."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from headrace.layers.layer import Layer
from headrace.layers.slots import NormSlot
from headrace.layers.weights import Target, single
from headrace.ops.norm import add_rms_norm, rms_norm


class Norm(Layer):
    """Normalises the last dimension in float32; ``shape`` is the weight's: [dim], or [heads, dim] for own weights."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, slot: NormSlot, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.slot, self.shape = slot, shape
        if device.type == "cpu" and slot.kind == "rms":
            dtype = torch.float32  # to which weights would be converted each time, a hundredth of a small model's step
        for name, present in (("weight", slot.weight), ("bias", slot.bias)):
            empty = torch.empty(shape, dtype=dtype, device=device) if present else None
            self.register_parameter(name, None if empty is None else nn.Parameter(empty, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slot = self.slot
        if slot.kind == "rms":
            return rms_norm(x, self.weight, slot.eps, slot.offset)
        weight = self.weight + slot.offset if slot.offset else self.weight
        if len(self.shape) == 1:
            return F.layer_norm(x, self.shape, weight, self.bias, slot.eps)
        y = F.layer_norm(x.float(), self.shape[-1:], None, None, slot.eps) * weight.float()
        return y.to(x.dtype)

    def add(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of the sum, the sum) of a sub-layer's output, here spent, and the residual stream, both [T, dim]."""
        if residual is None:
            return self(x), x
        if self.slot.kind == "rms":
            return add_rms_norm(x, residual, self.weight, self.slot.eps, self.slot.offset)
        x += residual
        return self(x), x

    def targets(self, path: str) -> Iterator[Target]:
        for name, parameter in self.named_parameters(recurse=False):
            if len(self.shape) == 1:
                yield single(f"{path}.{name}", parameter)
                continue
            rows = [single(f"{path}.{head}.{name}", row) for head, row in enumerate(parameter)]
            yield from rows
            yield Target(f"{path}.{name}", parameter, tuple(row.name for row in rows))
