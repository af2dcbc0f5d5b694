"""Activation functions of feed-forward layers, alone or multiplied with the gated input."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.registry import op

BLOCK = 1024


def relu2(x: torch.Tensor) -> torch.Tensor:
    return F.relu(x).square()


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": relu2,
}


# torch.nn.functional has no gelu in place, which spares a CPU half of the memory it would touch.
IN_PLACE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
}


def activation(x: torch.Tensor, name: str) -> torch.Tensor:
    """Elementwise ``silu``, ``gelu``, ``gelu_tanh``, ``relu`` or ``relu2`` (relu squared) of ``x``, which is spent.

    One torch kernel (two for ``relu2``) on every device: there is nothing to fuse it with here.
    """
    return IN_PLACE.get(name, FUNCTIONS[name])(x)


@op
def act_and_mul(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """``activation(gate) * up`` of ``gate_up`` [T, 2 * I], the gate first: [T, I]."""
    inner = gate_up.shape[-1] // 2
    gate, up = gate_up.split_with_sizes((inner, inner), dim=-1)
    return FUNCTIONS[activation](gate).mul_(up)


@act_and_mul.on_triton
def _act_and_mul(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """Reads the input once and writes the output once: 3 × the output's bytes."""
    gate_up = gate_up.contiguous()
    num_rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, inner)
    if num_rows:
        _act_and_mul_kernel[(num_rows, -(-inner // BLOCK))](
            gate_up, out, inner, activation, BLOCK, **early(gate_up.device)
        )
    return out


@jit
def _act_and_mul_kernel(gate_up, out, inner, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    await_predecessor(EARLY)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < inner
    places = gate_up + row * 2 * inner + columns
    gate = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(places + inner, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        gate = gate * 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # 0.5 * (1 + tanh(z)) is sigmoid(2z)
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    elif ACTIVATION == "relu":
        gate = tl.maximum(gate, 0.0)
    else:
        tl.static_assert(ACTIVATION == "relu2")
        gate = tl.maximum(gate, 0.0) * tl.maximum(gate, 0.0)
    tl.store(out + row * inner + columns, (gate * up).to(out.dtype.element_ty), mask=inside)
