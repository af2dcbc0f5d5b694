"""Captured steps: small steps are padded to one of a few sizes and replayed as one CUDA graph, not launched in pieces.

A graph holds the model's layers from the packed numbers to the hidden states. Knows no sampling and no schedule.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from headrace.attention.backend import Backend
from headrace.config import Config
from headrace.runner.batch import Batch, Shape, pack
from headrace.types import Plan

LARGEST = 512  # tokens; launching the pieces of larger steps takes less time than running them
Forward = Callable[[torch.Tensor, Batch], torch.Tensor]  # a packed step's numbers → hidden states


@dataclass(frozen=True)
class Graph:
    """One captured step: it reads ``numbers`` and writes ``hidden`` [tokens, dim] each time it is replayed."""

    shape: Shape
    numbers: torch.Tensor
    graph: torch.cuda.CUDAGraph
    hidden: torch.Tensor

    def replay(self, numbers: torch.Tensor) -> torch.Tensor:
        """Hidden states [tokens, dim] of a step packed to this shape, good until the next replay."""
        self.numbers.copy_(numbers)
        self.graph.replay()
        return self.hidden


def capture_sizes(config: Config, limit: int) -> list[int]:
    """Numbers of tokens, up to ``limit``, to capture steps for: those asked for, or close where padding costs most."""
    if config.model.enforce_eager:
        return []
    most = min(config.model.max_cudagraph_capture_size or LARGEST, limit)
    usual = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, most, 32), most]
    return sorted({size for size in config.model.cudagraph_capture_sizes or usual if 0 < size <= most})


def dummy_plan(num_tokens: int, max_num_seqs: int, max_model_len: int, mixed: bool) -> Plan:
    """A step of ``num_tokens``: one a row if they fit, or else, and if ``mixed``, all but the first row prefill."""
    counts = [1] * min(num_tokens, max_num_seqs)
    if mixed:
        counts = [1] if max_num_seqs > 1 else []
        while (left := num_tokens - sum(counts)) > 0 and len(counts) < max_num_seqs:
            counts.append(min(left, max_model_len))
    return Plan(0, list(range(len(counts))), [0] * len(counts), counts, list(range(len(counts))))


class Graphs:
    """The captured steps of a model, by size and by whether rows prefill in them."""

    def __init__(self, forward: Forward, backends: Sequence[Backend], max_num_seqs: int, max_model_len: int):
        """``max_num_seqs`` and ``max_model_len``: the size of the persistent rows that ``forward`` reads."""
        self._forward, self._backends = forward, backends
        self._max_num_seqs, self._max_model_len = max_num_seqs, max_model_len
        self._graphs: dict[tuple[int, bool], Graph] = {}
        self._sizes: list[int] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def capture(self, num_tokens: int) -> None:
        """Capture the two steps of this size. The rows must be empty: what a dummy step writes goes to block 0."""
        for mixed in (True, False) if num_tokens > 2 else (False,):
            plan = dummy_plan(num_tokens, self._max_num_seqs, self._max_model_len, mixed)
            num_rows = min(num_tokens, self._max_num_seqs)
            work = tuple(backend.most_work(num_tokens, num_rows) for backend in self._backends)
            batch = pack(plan, self._backends, Shape(num_tokens, num_rows, work))
            numbers = torch.from_numpy(batch.numbers).to(self._stream.device)
            graph = torch.cuda.CUDAGraph()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._forward(numbers, batch)  # compiles what this size needs
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                hidden = self._forward(numbers, batch)
                graph.capture_end()
            torch.cuda.current_stream().wait_stream(self._stream)
            self._graphs[num_tokens, mixed] = Graph(batch.shape, numbers, graph, hidden)
        bisect.insort(self._sizes, num_tokens)

    def find(self, plan: Plan) -> Graph | None:
        """The smallest captured step that holds ``plan``."""
        num_tokens = sum(plan.counts)
        place = bisect.bisect_left(self._sizes, num_tokens)
        if place == len(self._sizes):
            return None
        return self._graphs.get((self._sizes[place], num_tokens > len(plan.counts)))
