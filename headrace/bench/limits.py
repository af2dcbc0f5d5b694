"""What the device allows: its ceilings, measured in the same run, and the least time a step can take by them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from headrace.types import EngineInfo


@dataclass(frozen=True)
class Ceilings:
    """How fast the device reads memory and multiplies matrices."""

    bytes_per_second: float
    flops_per_second: float

    def decode_seconds(self, info: EngineInfo, batch: int, context: float) -> float:
        """Of one decoding step: the matrices are read or multiplied, whichever takes longer, then the cache is read."""
        cost = info.cost
        products = batch * (cost.layer_flops + cost.head_flops) / self.flops_per_second
        return max(cost.weight_bytes / self.bytes_per_second, products) + (
            batch * context * cost.kv_bytes / self.bytes_per_second
        )

    def prefill_seconds(self, info: EngineInfo, tokens: int) -> float:
        """Of one prompt: the products of all its tokens, and its attention's, half of which the triangle saves."""
        cost = info.cost
        flops = tokens * cost.layer_flops + tokens**2 / 2 * cost.attention_flops + cost.head_flops
        return max(flops / self.flops_per_second, cost.weight_bytes / self.bytes_per_second)


def measure(dtype_name: str) -> Ceilings:
    """The ceilings of the device that Headrace takes, for matrices of ``dtype_name``: a sum, and a square product."""
    gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if gpu else "cpu"), getattr(torch, dtype_name)
    memory = torch.ones(2**29 if gpu else 2**26, dtype=torch.float32, device=device)
    square = torch.randn(8192 if gpu else 1536, 8192 if gpu else 1536, device=device).to(dtype)
    return Ceilings(
        memory.numel() * 4 / best_seconds(memory.sum),
        2 * len(square) ** 3 / best_seconds(lambda: square @ square),
    )


def best_seconds(run: Callable[[], object]) -> float:
    """The shortest of several runs, the device's queue empty before and after."""
    times = []
    for _ in range(7):
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
