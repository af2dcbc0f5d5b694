"""What a quantization scheme provides to a linear layer, and the plain scheme that stores weights as they are.

Knows neither models nor checkpoint names nor ranks.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from headrace.ops.linear import linear


class Method(Protocol):
    """One way to store and multiply the weights of a linear layer, or to look rows of them up for an embedding.

    Holds no state, so one instance serves all layers: what ``allocate`` made, a layer has as attributes.
    """

    def allocate(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, nn.Parameter]:
        """Uninitialised parameters by attribute name; dimension 0 of each runs over the output features."""
        ...

    def finish(self, layer: Any) -> None:
        """Repack ``layer``'s tensors in place once all of them are loaded."""
        ...

    def apply(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """``x`` [..., in_features] times the weights, plus the bias if there is one: [..., out_features]."""
        ...

    def lookup(self, layer: Any, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weights of the outputs ``indices`` int64 [T]: [T, in_features] in ``dtype``."""
        ...

    def num_bytes(self, layer: Any) -> int:
        """How many bytes of weights a product with one row reads."""
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

    def finish(self, layer: Any) -> None:
        pass

    def apply(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        return linear(x, layer.weight, layer.bias)

    def lookup(self, layer: Any, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return F.embedding(indices, layer.weight)

    def num_bytes(self, layer: Any) -> int:
        return int(layer.weight.nbytes)


MethodFor = Callable[[str], Method]  # of each of a layer's matrices, by its name there


def unquantized(name: str) -> Method:
    return Unquantized()


def within(name: str, method_for: MethodFor) -> MethodFor:
    """``method_for`` as a sub-layer called ``name`` sees it."""
    return lambda inner: method_for(f"{name}.{inner}")
