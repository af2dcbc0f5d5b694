"""What a quantization scheme provides to a linear layer, and the plain scheme that stores weights as they are.

Knows neither models nor checkpoint names nor ranks.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn


class Weighted(Protocol):
    """A layer as its method sees it: the tensors that ``allocate`` made, as attributes."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class Method(Protocol):
    """One way to store and multiply the weights of a linear layer. Holds no state: one instance serves all layers."""

    def allocate(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, nn.Parameter]:
        """Uninitialised parameters by attribute name; dimension 0 of each runs over the output features."""
        ...

    def finish(self, layer: Weighted) -> None:
        """Repack ``layer``'s tensors in place once all of them are loaded."""
        ...

    def apply(self, layer: Weighted, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in_features] times the weights, plus the bias if there is one: [..., out_features]."""
        ...


class Unquantized:
    """Weights in the model's dtype, multiplied by the vendor library."""

    def allocate(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, nn.Parameter]:
        shapes = {"weight": (out_features, in_features)} | ({"bias": (out_features,)} if bias else {})
        return {
            name: nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
            for name, shape in shapes.items()
        }

    def finish(self, layer: Weighted) -> None:
        pass

    def apply(self, layer: Weighted, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1 and x.ndim == 2 and x.is_cpu:  # a matrix-vector product is a third faster here
            y = torch.mv(layer.weight, x[0])
            return (y if layer.bias is None else y + layer.bias)[None]
        return F.linear(x, layer.weight, layer.bias)
