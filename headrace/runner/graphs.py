"""Captured steps: small steps are padded to one of a few sizes and replayed as one CUDA graph, not launched in pieces.

Owns which sizes are captured, and when: some before the engine is ready, the others while it has nothing else to do, or
once steps have had to be padded beyond them for a while. Knows no schedule.
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from headrace.attention.backend import Backend
from headrace.config import Config
from headrace.device import copy_to
from headrace.runner.batch import Batch, Shape, pack
from headrace.types import Plan

LARGEST = 512  # tokens of a step with prefill; launching the pieces of larger ones takes less time than running them
OVERDUE = 16  # steps of a size that isn't captured yet: about what they lost by padding is what a capture takes


@dataclass(frozen=True)
class Step:
    """A step on the device: its packed numbers, hidden states [T, dim], and logits [S, V] and draws int64 [S] if made.

    What a captured step leaves is good until the next replay of any.
    """

    numbers: torch.Tensor
    hidden: torch.Tensor
    logits: torch.Tensor | None = None
    tokens: torch.Tensor | None = None


class Launch(Protocol):
    def __call__(self, numbers: torch.Tensor, batch: Batch, draw: bool) -> Step:
        """Launch a packed step; ``draw``: up to its sampled tokens."""
        ...


@dataclass(frozen=True)
class Graph:
    """One captured step: each time it is replayed it reads ``step.numbers`` and writes the rest of ``step``."""

    shape: Shape
    step: Step
    graph: torch.cuda.CUDAGraph

    def replay(self, batch: Batch) -> Step:
        """The step packed to this shape."""
        copy_to(self.step.numbers, torch.from_numpy(batch.numbers))
        self.graph.replay()
        return self.step


def capture_sizes(config: Config, limit: int, num_rows: int) -> list[int]:
    """Numbers of tokens, up to ``limit``, to capture steps for: those asked for, or close where padding costs most.

    Of those over ``LARGEST`` only steps in which each of up to ``num_rows`` rows decodes.
    """
    if config.model.enforce_eager:
        return []
    most = min(config.model.max_cudagraph_capture_size or max(LARGEST, num_rows), limit)
    usual = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, LARGEST, 32), *range(LARGEST, most, 128), most]
    return sorted({size for size in config.model.cudagraph_capture_sizes or usual if 0 < size <= most})


def dummy_plan(num_tokens: int, num_rows: int, spare: int, max_model_len: int, mixed: bool) -> Plan:
    """A step of ``num_tokens`` of the ``spare`` row: one a row if they fit, or if ``mixed``, all but the first prefill.

    Only a step that isn't mixed may draw.
    """
    counts = [1] * min(num_tokens, num_rows)
    if mixed:
        counts = [1] if num_rows > 1 else []
        while (left := num_tokens - sum(counts)) > 0 and len(counts) < num_rows:
            counts.append(min(left, max_model_len))
    places = list(range(len(counts)))
    return Plan(0, [spare] * len(counts), [0] * len(counts), counts, places)


class Graphs:
    """The captured steps of a model, by size and by whether rows prefill in them. ``sizes`` ascend."""

    def __init__(
        self, launch: Launch, backends: Sequence[Backend], sizes: Sequence[int], num_rows: int, max_model_len: int
    ):
        """``num_rows``: how many hold requests, and so the spare one's number."""
        self.sizes = sizes
        self._launch, self._backends = launch, backends
        self._num_rows, self._max_model_len = num_rows, max_model_len
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self._missed: collections.Counter[int] = collections.Counter()
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    @property
    def first(self) -> list[int]:
        """The sizes to begin with, the largest first: smaller ones then fit into the same memory."""
        return [size for size in reversed(self.sizes) if size & (size - 1) == 0 or size == self.sizes[-1]]

    def capture_next(self) -> bool:
        """Capture the largest of the sizes that are left; False if none is."""
        left = [size for size in self.sizes if (size, False) not in self._graphs]
        if left:
            self.capture(left[-1])
        return bool(left)

    @torch.inference_mode()
    def capture(self, num_tokens: int) -> None:
        """Capture the two steps of this size. May be done between any two steps."""
        for mixed in (True, False) if 2 < num_tokens <= LARGEST else (False,):
            num_rows = min(num_tokens, self._num_rows)
            plan = dummy_plan(num_tokens, num_rows, self._num_rows, self._max_model_len, mixed)
            work = tuple(backend.most_work(num_tokens, num_rows) for backend in self._backends)
            batch = pack(plan, self._backends, self._num_rows, Shape(num_tokens, num_rows, work))
            numbers = torch.from_numpy(batch.numbers).to(self._stream.device)
            graph = torch.cuda.CUDAGraph()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._launch(numbers, batch, not mixed)  # compiles what this size needs
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                step = self._launch(numbers, batch, not mixed)
                graph.capture_end()
            torch.cuda.current_stream().wait_stream(self._stream)
            self._graphs[num_tokens, mixed] = Graph(batch.shape, step, graph)

    def find(self, plan: Plan) -> Graph | None:
        """The smallest captured step that holds ``plan``."""
        num_tokens = sum(plan.counts)
        mixed = num_tokens > len(plan.counts)
        if num_tokens > self.sizes[-1] or (mixed and num_tokens > LARGEST):
            return None
        place = bisect.bisect_left(self.sizes, num_tokens)
        size = self.sizes[place]
        if (size, False) not in self._graphs:
            self._missed[size] += 1
            if self._missed[size] >= OVERDUE:
                self.capture(size)
            else:
                size = next(larger for larger in self.sizes[place:] if (larger, False) in self._graphs)
        return self._graphs.get((size, mixed))
