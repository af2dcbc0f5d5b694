"""Finds the fastest way to compute products of few rows by measuring all that may be. Knows shapes, and no models."""

import itertools
import logging
import statistics
from collections.abc import Callable, Iterator, Sequence

import msgspec
import torch
import torch.nn.functional as F

from headrace.ops.jit import compiling
from headrace.ops.linear import few_rows, rule
from headrace.ops.tuned import Product, Tiling

logger = logging.getLogger(__name__)

TILES = (  # that were among the three fastest of some shape on an H200
    Tiling(16, 1, 128, 4, 5),
    Tiling(16, 1, 256, 4, 3),
    Tiling(32, 1, 64, 4, 7),
    Tiling(32, 1, 128, 4, 4),
    Tiling(64, 1, 64, 4, 6),
    Tiling(64, 1, 64, 4, 8),
    Tiling(64, 1, 128, 4, 4),
    Tiling(64, 1, 128, 4, 5),
    Tiling(64, 1, 128, 4, 6),
    Tiling(64, 1, 128, 4, 7),
    Tiling(64, 1, 128, 8, 3),
    Tiling(128, 1, 64, 4, 4),
    Tiling(128, 1, 64, 8, 4),
    Tiling(128, 1, 128, 8, 4),
)
PARTS = (1, 2, 4, 8)
PROGRAMS = 768  # that dividing the inputs shouldn't lead beyond, as it takes memory for their sums
WORTH = 1.02  # ways that take no longer than this times the fastest's are as good
QUICK, CAREFUL = 3, 15  # repetitions: with all that may be, then with the FINALISTS
FINALISTS = 4
MOST_COPIES = 256  # of a small matrix

Way = Tiling | None  # None is the vendor's library


def candidates(num_outputs: int, num_inputs: int, rows: int) -> list[Way]:
    """The ways to be measured, the library and the rule's among them."""
    ways = [None, rule(num_outputs, num_inputs, rows)]
    for tile, parts in itertools.product(TILES, PARTS):
        programs = -(-num_outputs // tile.outputs) * parts
        if parts == 1 or (programs <= PROGRAMS and num_inputs >= 2 * parts * tile.block):
            ways.append(msgspec.structs.replace(tile, parts=parts))
    return list(dict.fromkeys(ways))


@torch.inference_mode()
def tune(
    shapes: Sequence[tuple[int, int]], rows: Sequence[int], device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Iterator[Product]:
    """The fastest way for each number of ``rows`` and each of the ``shapes`` (outputs, inputs), as they are found.

    ``rows`` ascend. Needs a CUDA device with nothing else running on it.
    """
    with compiling():
        for (num_outputs, num_inputs), count in itertools.product(shapes, rows):
            x, weight = (torch.empty(size, num_inputs, dtype=dtype, device=device) for size in (count, num_outputs))
            for way in filter(None, candidates(num_outputs, num_inputs, count)):
                few_rows(x, weight, None, way)
    cached = 4 * torch.cuda.get_device_properties(device).L2_cache_size
    for num_outputs, num_inputs in shapes:
        size = num_outputs * num_inputs
        copies = min(max(2, -(-cached // (size * dtype.itemsize))), MOST_COPIES)  # so that each is read from memory
        weights = torch.empty(copies, num_outputs, num_inputs, dtype=dtype, device=device).normal_(0, num_inputs**-0.5)
        before: Way = rule(num_outputs, num_inputs, rows[0])
        for count in rows:
            x = torch.randn(count, num_inputs, dtype=dtype, device=device)
            product = fastest(x, weights, before)
            before = product.tiling
            yield product


def fastest(x: torch.Tensor, weights: torch.Tensor, before: Way) -> Product:
    """The fastest for ``x`` [rows, inputs] times any of ``weights`` [copies, outputs, inputs].

    Of ways about as good the rule's is taken, else ``before``, which another number of rows needs: fewer kernels.
    """
    from triton.runtime.errors import OutOfResources

    (rows, num_inputs), num_outputs = x.shape, weights.shape[1]
    expected = F.linear(x, weights[0])

    def run(way: Way, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weight) if way is None else few_rows(x, weight, None, way)

    def usable(way: Way) -> bool:
        try:
            right = torch.allclose(run(way, weights[0]), expected, rtol=0.02, atol=0.02)
        except OutOfResources:  # of devices with little shared memory
            return False
        if not right:
            logger.warning("%s is wrong for %d rows by %d × %d", way, rows, num_outputs, num_inputs)
        return right

    def time(way: Way, repeats: int) -> float:
        return microseconds(lambda weight: run(way, weight), weights, repeats)

    usual = rule(num_outputs, num_inputs, rows)
    times = {way: time(way, QUICK) for way in candidates(num_outputs, num_inputs, rows) if usable(way)}
    known = [way for way in dict.fromkeys((usual, before, None)) if way in times]
    finalists = sorted(times, key=times.__getitem__)[:FINALISTS]
    times = {way: time(way, CAREFUL) for way in dict.fromkeys((*known, *finalists))}
    ranked = [*known, *sorted(times, key=times.__getitem__)]
    best = next(way for way in ranked if times[way] <= WORTH * min(times.values()))
    us, rule_us, library_us = (round(times.get(way, times[None]), 2) for way in (best, usual, None))
    return Product(num_outputs, num_inputs, rows, best, us, rule_us, library_us)


def microseconds(run: Callable[[torch.Tensor], object], weights: torch.Tensor, repeats: int) -> float:
    """How long ``run`` takes with one of the ``weights``: the median of ``repeats`` replays with all of them."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights:
            run(weight)
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()  # what the host needs to launch the next one is not to count
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return 1000 * statistics.median(times) / len(weights)
