"""The dense feed-forward layer. Knows nothing of its neighbours."""

import torch

from headrace.layers.layer import Layer
from headrace.layers.linear import Linear
from headrace.layers.slots import MlpSlot
from headrace.ops.activation import act_and_mul, activation
from headrace.quant.method import MethodFor, unquantized


class Mlp(Layer):
    """[T, dim] → [T, dim]; gate and up projections are one matrix."""

    def __init__(
        self,
        dim: int,
        slot: MlpSlot,
        *,
        method_for: MethodFor = unquantized,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()
        self.activation, self.gated = slot.activation, slot.gated
        parts = {"gate": slot.inner, "up": slot.inner} if slot.gated else {"up": slot.inner}
        self.gate_up = Linear(
            dim, parts, bias=slot.bias, split="column", dtype=dtype, device=device, method=method_for("gate_up")
        )
        self.down = Linear(
            slot.inner,
            {"down": dim},
            bias=slot.bias,
            split="row",
            dtype=dtype,
            device=device,
            method=method_for("down"),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.gate_up(x)
        inner = act_and_mul(inner, self.activation) if self.gated else activation(inner, self.activation)
        return self.down(inner)
