"""Quantized weights that a CPU multiplies without expanding them. Knows neither files nor models.

Which product is taken for how many rows is decided here, from measurements at the shapes of a 135M model on two cores
(docs/performance.md): the packed one reads less but works row by row, so expanding first wins from ``few_rows`` on.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from headrace.ops import int4, int8


@dataclass(frozen=True)
class Products:
    """What is fastest on this CPU: packed products of up to ``few_rows`` rows, else expanded ones in ``dtype``."""

    few_rows: int
    dtype: torch.dtype
    cpu: str


@cache
def products() -> Products:
    """A product of 3072 x 576 weights with 16 / 32 / 64 rows takes, in µs, packed 356 / 673 / 1301 and expanded 586 /
    653 / 800 with AMX; with AVX2 it takes 616 / 1228 / 2464 and 595 / 858 / 1312."""
    capability, flags = torch.backends.cpu.get_cpu_capability(), torch.cpu.get_capabilities()
    for flag in ("amx_bf16", "avx512_bf16"):
        if "512" in capability and flags.get(flag):
            return Products(32, torch.bfloat16, f"{capability} with {flag}")
    return Products(12, torch.float32, capability)


class Packed:
    """What the methods here share: how a layer multiplies, given its two products."""

    def packed(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """``x`` [M, in_features] times the weights as they are: [M, out_features]."""
        raise NotImplementedError

    def expanded(self, layer: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The same by the weights' values in ``dtype``."""
        raise NotImplementedError

    def apply(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        best = products()
        y = self.packed(layer, x) if len(x) <= best.few_rows else self.expanded(layer, x, best.dtype)
        return y if layer.bias is None else y.add_(layer.bias)


class Int4Blocks(Packed):
    """4-bit codes in blocks of 32 with a scale and a bias each (``ops.int4``), multiplied in bfloat16.

    ``blocks`` uint8 [N, K / 32, 20] is what is loaded, looked up and expanded; ``finish`` adds ``packed`` and
    ``groups``, the same once more for the packed product.
    """

    def allocate(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, nn.Parameter]:
        blocks = torch.empty(out_features, in_features // int4.BLOCK, int4.BLOCK_BYTES, dtype=torch.uint8)
        return frozen({"blocks": blocks} | ({"bias": torch.empty(out_features, dtype=dtype)} if bias else {}))

    def finish(self, layer: Any) -> None:
        for name, parameter in frozen(dict(zip(("packed", "groups"), int4.pack(layer.blocks), strict=True))).items():
            layer.register_parameter(name, parameter)

    def packed(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        y, num_outputs = int4.linear_packed(x, layer.packed, layer.groups), layer.blocks.shape[0]
        return y if y.shape[1] == num_outputs else y[:, :num_outputs]

    def expanded(self, layer: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return int4.linear_expanded(x, layer.blocks, dtype)

    def lookup(self, layer: Any, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return int4.expand(layer.blocks.index_select(0, indices)).to(dtype)

    def num_bytes(self, layer: Any) -> int:
        return int(layer.packed.nbytes + layer.groups.nbytes)


class Int8Rows(Packed):
    """8-bit ``codes`` [N, K] with one of ``scales`` [N] for each output (``ops.int8``), multiplied in bfloat16."""

    def allocate(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device: torch.device
    ) -> dict[str, nn.Parameter]:
        codes = torch.empty(out_features, in_features, dtype=torch.int8)
        scales = torch.empty(out_features, dtype=torch.bfloat16)
        bias_of = {"bias": torch.empty(out_features, dtype=dtype)} if bias else {}
        return frozen({"codes": codes, "scales": scales} | bias_of)

    def finish(self, layer: Any) -> None:
        pass

    def packed(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        return int8.linear_packed(x, layer.codes, layer.scales)

    def expanded(self, layer: Any, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return int8.linear_expanded(x, layer.codes, layer.scales, dtype)

    def lookup(self, layer: Any, indices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        rows = F.embedding(indices, layer.codes)
        return int8.expand_reference(rows, layer.scales.index_select(0, indices)).to(dtype)

    def num_bytes(self, layer: Any) -> int:
        return int(layer.codes.nbytes + layer.scales.nbytes)


def frozen(tensors: dict[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
