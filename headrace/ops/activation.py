"""Activation functions of feed-forward layers, alone or multiplied with the gated input."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from headrace.ops.registry import op


def relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
}


def activation(x: torch.Tensor, name: str) -> torch.Tensor:
    """Elementwise ``silu``, ``gelu``, ``gelu_tanh``, ``relu`` or ``relu2`` (relu squared); same shape and dtype.

    One torch kernel (two for ``relu2``) on every device: there is nothing to fuse it with here.
    """
    return FUNCTIONS[name](x)


@op
def act_and_mul(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """``activation(gate) * up`` of ``gate_up`` [T, 2 * I], the gate first: [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return FUNCTIONS[activation](gate) * up
