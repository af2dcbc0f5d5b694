"""What a device allows: how fast it reads and multiplies, the least time of a step by that, and the share reached.

The one owner of this arithmetic: benchmarks use it with ceilings measured in the same run, the roofline with those of a
data sheet. Seconds throughout.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from headrace.device import pick_device
from headrace.ops.linear import linear
from headrace.types import StepCost


class StepTime(NamedTuple):
    """The least times of a step's parts. Weights are read while products run; the cache is read beside neither."""

    weights: float  # reading them
    products: float  # of matrices, and attention's in prefill
    cache: float  # reading it

    @property
    def total(self) -> float:
        return max(self.weights, self.products) + self.cache


class Work(NamedTuple):
    """What was computed in some time.

    ``steps``: how many there were, each of which reads the weights once (of a batch that starts at once: its longest
    output; of a load: output tokens over the mean number of running requests). ``prompts``: lengths of those computed,
    tokens found in the prefix cache left out. ``output_tokens``: tokens decoded after each request's first, with
    ``context`` tokens in the cache on average. 8 requests at once, 1,024 tokens in and 128 out, are
    ``Work(128, [1024] * 8, 8 * 127, 1088)``.
    """

    steps: float
    prompts: Sequence[int] = ()
    output_tokens: float = 0
    context: float = 0


class Utilization(NamedTuple):
    """Shares of the device's ceilings, 0 to 1."""

    mbu: float  # model bandwidth utilization: bytes that had to be read, of those that could have been
    mfu: float  # model FLOP utilization: likewise of the operations


@dataclass(frozen=True)
class Ceilings:
    """How fast the device reads memory and multiplies matrices."""

    bytes_per_second: float
    flops_per_second: float
    layer_flops_per_second: float | None = None  # where the layers' matrices are of other numbers than the rest

    def decode_step(self, cost: StepCost, batch: float, context: float) -> StepTime:
        """Of one token for each of ``batch`` requests with ``context`` tokens in the cache."""
        return StepTime(
            weights_read(cost, batch) / self.bytes_per_second,
            batch * (self.layers(cost) + cost.head_flops / self.flops_per_second),
            batch * cache_read(cost, context) / self.bytes_per_second,
        )

    def prefill_step(self, cost: StepCost, tokens: int) -> StepTime:
        """Of one prompt of ``tokens`` tokens, whose keys and values are still at hand when they are needed."""
        others = prefill_flops(cost, tokens) - tokens * cost.layer_flops
        products = tokens * self.layers(cost) + others / self.flops_per_second
        return StepTime(weights_read(cost, tokens) / self.bytes_per_second, products, 0.0)

    def used(self, cost: StepCost, work: Work, seconds: float) -> Utilization:
        """How much of what the device could have done in ``seconds`` the work done then needed at least."""
        context, tokens = work.context, sum(work.prompts) + work.output_tokens
        num_bytes = work.steps * weights_read(cost, tokens / work.steps)
        num_bytes += work.output_tokens * cache_read(cost, context)
        unseen = sum(max(context - window, 0) * flops for window, _, flops in cost.windowed)
        others = cost.head_flops + context * cost.attention_flops - unseen
        products = sum(self.prefill_step(cost, length).products for length in work.prompts)
        products += work.output_tokens * (self.layers(cost) + others / self.flops_per_second)
        return Utilization(num_bytes / seconds / self.bytes_per_second, products / seconds)

    def layers(self, cost: StepCost) -> float:
        """Of the layers' products with one token."""
        return cost.layer_flops / (self.layer_flops_per_second or self.flops_per_second)


def weights_read(cost: StepCost, tokens: float) -> float:
    """Bytes of weights that a step of ``tokens`` tokens reads: of experts those expected if all are as likely."""
    return cost.weight_bytes - cost.expert_bytes * (1.0 - cost.expert_share) ** tokens


def cache_read(cost: StepCost, context: float) -> float:
    """Bytes of keys and values that one token reads, ``context`` being cached."""
    unseen = sum(max(context - window, 0) * num_bytes for window, num_bytes, _ in cost.windowed)
    return context * cost.kv_bytes - unseen


def prefill_flops(cost: StepCost, tokens: float) -> float:
    """Of one prompt: the products of all its tokens, and its attention's, half of which the triangle saves."""
    unseen = sum(max(tokens - window, 0) ** 2 / 2 * flops for window, _, flops in cost.windowed)
    return tokens * cost.layer_flops + tokens**2 / 2 * cost.attention_flops - unseen + cost.head_flops


def measure(dtype_name: str, device: torch.device | None = None) -> Ceilings:
    """The ceilings of ``device``, or of the one Headrace takes, for ``dtype_name``: by a sum and a product as
    layers compute it, of squares.
    """
    device = device or pick_device("auto")
    gpu, dtype = device.type != "cpu", getattr(torch, dtype_name)
    if gpu:
        time.sleep(1.0)  # a chip that comes from work at its power limit multiplies a sixth slower
    memory = torch.ones(2**29 if gpu else 2**26, dtype=torch.float32, device=device)
    square = torch.randn(8192 if gpu else 1536, 8192 if gpu else 1536, device=device).to(dtype)
    return Ceilings(
        memory.numel() * 4 / best_seconds(memory.sum),
        2 * len(square) ** 3 / best_seconds(lambda: linear.reference(square, square)),
    )


def best_seconds(run: Callable[[], object]) -> float:
    """The shortest of seven runs, or of fewer that take a second; the device's queue is empty before and after."""
    times: list[float] = []
    while len(times) < 7 and sum(times) < 1.0:  # a CPU without bfloat16 takes six seconds for a product
        synchronize()
        started = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
