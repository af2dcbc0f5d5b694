"""A step's batch: packed into one vector of numbers on the host, unpacked on the device beside the persistent rows.

What is launched depends on the ``Shape`` alone, the rest is read from device memory; so a step can be padded to a
larger shape, and captured. Knows no sampling and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from headrace.attention.backend import Array, Backend, PagedBatch, StepInput
from headrace.ops.locate import locate
from headrace.runner.rows import Rows
from headrace.types import Plan


@dataclass(frozen=True)
class Shape:
    """Sizes of the parts of a packed step: R rows, T tokens, and the numbers of each KV group's work."""

    num_tokens: int
    num_rows: int
    num_work: tuple[int, ...]

    @property
    def parts(self) -> tuple[int, ...]:
        """query_start, rows, starts; of sampled tokens their rows, positions and indices into T; work by group."""
        return (self.num_rows + 1, *[self.num_rows] * 5, *self.num_work)


@dataclass(frozen=True)
class Batch:
    """One step on the host: its numbers int32 [sum(shape.parts)], and lists that describe them."""

    numbers: Array
    shape: Shape
    rows: list[int]
    counts: list[int]
    contexts: list[int]
    num_decodes: int
    num_sampled: int


class Places(NamedTuple):
    """Where the S sampled tokens of a step come from and go to: device tensors int32 [S]."""

    rows: torch.Tensor  # of the persistent rows
    positions: torch.Tensor  # where the tokens will stand
    tokens: torch.Tensor  # indices into the step's tokens, whose logits are sampled


def pack(plan: Plan, backends: Sequence[Backend], spare: int, shape: Shape | None = None) -> Batch:
    """The numbers of ``plan``, padded to ``shape`` if that is given. ``backends``: that of each KV group's layers.

    Padding tokens have id 0 and write into block 0, which is nobody's; what is sampled beyond those of the plan goes to
    the row ``spare``.
    """
    rows, counts, starts = (np.asarray(part, dtype=np.int64) for part in (plan.rows, plan.counts, plan.starts))
    sampled = np.asarray(plan.sampled, dtype=np.int64)
    ends, contexts = counts.cumsum(), starts + counts
    num_decodes = int((counts == 1).cumprod().sum())
    works = [backend.plan(rows, counts, contexts, num_decodes) for backend in backends]
    shape = shape or Shape(int(ends[-1]), len(rows), tuple(map(len, works)))
    numbers = np.zeros(sum(shape.parts), dtype=np.int32)
    sampled_rows = np.full(shape.num_rows, spare)
    sampled_rows[: len(sampled)] = rows[sampled]
    numbers[len(rows) + 1 : shape.num_rows + 1] = ends[-1]
    filling = (ends, rows, starts, sampled_rows, contexts[sampled], ends[sampled] - 1, *works)
    place = 1  # the first row's tokens start at 0
    for size, values in zip((shape.num_rows, *shape.parts[1:]), filling, strict=True):
        numbers[place : place + len(values)] = values
        place += size
    return Batch(numbers, shape, plan.rows, plan.counts, contexts.tolist(), num_decodes, len(sampled))


def unpack(numbers: torch.Tensor, batch: Batch, rows: Rows, block_size: int) -> tuple[torch.Tensor, StepInput]:
    """Token ids int64 [T] and the layers' input, of ``batch.numbers`` on the device. Nothing is awaited."""
    query_start, row_ids, starts, _, _, _, *works = numbers.split(batch.shape.parts)
    token_ids, positions, slots = locate(
        query_start, row_ids, starts, rows.tokens, rows.tables, block_size, batch.shape.num_tokens
    )
    groups = (
        PagedBatch(table, places, work, batch.rows, batch.counts, batch.contexts, batch.num_decodes)
        for table, places, work in zip(rows.tables, slots, works, strict=True)
    )
    return token_ids, StepInput(positions, tuple(groups))


def sampled_places(numbers: torch.Tensor, batch: Batch) -> Places:
    _, _, _, *parts = numbers.split(batch.shape.parts)
    return Places(*(part[: batch.num_sampled] for part in parts[:3]))
