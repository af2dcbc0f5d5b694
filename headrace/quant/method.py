"""What a quantization scheme provides to a linear layer, and the plain scheme that stores weights as they are.

Knows neither models nor checkpoint names nor ranks.
"""

from typing import Protocol

import torch
from torch import nn

from headrace.ops.linear import linear


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
    """Weights in the model's dtype."""

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
        return linear(x, layer.weight, layer.bias)
