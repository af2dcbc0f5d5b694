"""Paged attention in Triton: flash attention over block tables, cut into pieces of work that fill the device.

The host cuts a step's rows into items: some queries of a row against a range of its keys. A fixed number of programs
works through the list, which lies in device memory: a launch looks the same whatever the batch, so it can be captured.
Knows nothing of how blocks are assigned; the kernels are in triton_kernels.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
import torch

from headrace.attention.backend import Array, AttentionSpec, PagedBatch
from headrace.attention.cudnn import LONG, CudnnPrefill
from headrace.attention.triton_kernels import attend_kernel
from headrace.ops.jit import early
from headrace.ops.registry import next_power_of_2, triton_unusable

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256
KEYS_A_RANGE = 128  # at least, and a multiple of every ``Tiling.block_n``: shorter ranges cost more than they save
MOST_RANGES = 64  # of an item: one program joins them all
FEW = 48  # decoding rows up to which few programs with large tiles read faster than many
FIELDS = 9  # of an item, see ``Tiling.cut``


@dataclass(frozen=True)
class Tiling:
    """How a launch is shaped."""

    queries: int  # of one row at a time
    block_m: int  # queries times the heads that share a key head, padded
    block_n: int  # keys at a time
    programs: int
    num_warps: int
    num_stages: int

    def most_ranges(self, num_kv_heads: int) -> int:
        """A bound of the ranges ``cut`` makes of items that it divides."""
        return -(-self.programs // num_kv_heads)

    def cut(self, spec: AttentionSpec, rows: Array, tokens: Array, counts: Array, contexts: Array) -> Array:
        """Items int32 [n, FIELDS], the longest first, of ``rows`` of the block table.

        Each row has ``counts`` queries, the first of them token ``tokens`` of the batch, and ``contexts`` cached
        tokens. Fields: row, first token, number of queries, position of the first, first key, last key + 1, number of
        the range among all ranges (-1: the item is whole), that of the item's first range, how many ranges it has.
        """
        if not len(rows):
            return np.empty((0, FIELDS), np.int64)
        row, tile = spread(-(-counts // self.queries))
        first = tile * self.queries
        token = tokens[row] + first
        queries = np.minimum(counts[row] - first, self.queries)
        position = (contexts - counts)[row] + first
        stop = position + queries if spec.causal else contexts[row]
        start = np.maximum(position - spec.window + 1, 0) if spec.window else np.zeros_like(position)
        visible = stop - start
        # As many ranges as keep all programs busy, not one more: it would have to wait for another to end.
        share = max(-(-int(visible.sum()) * spec.num_kv_heads // self.programs), KEYS_A_RANGE)
        ranges = np.clip(visible // share, 1, MOST_RANGES)
        length = -(-visible // (ranges * KEYS_A_RANGE)) * KEYS_A_RANGE
        ranges = -(-visible // length)
        parts = np.where(ranges > 1, ranges, 0)
        origin = np.where(ranges > 1, parts.cumsum() - parts, -1)
        order = np.argsort(-np.minimum(visible, length), kind="stable")
        item, place = spread(ranges[order])
        item = order[item]
        begin = start[item] + place * length[item]
        end = np.minimum(begin + length[item], stop[item])
        columns = (rows[row][item], token[item], queries[item], position[item], begin, end)
        return np.array((*columns, origin[item] + place, origin[item], ranges[item])).T


def spread(counts: Array) -> tuple[Array, Array]:
    """``counts[i]`` times each index i, and the place of each among its equals."""
    if counts.sum() == len(counts):  # once each: most steps are like that
        return np.arange(len(counts)), np.zeros(len(counts), np.int64)
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - (counts.cumsum() - counts)[index]


class TritonBackend:
    """Runs every kind of layer with heads of up to 256 dimensions, in any block size; never waits for the device."""

    name = "triton"
    capturable = LONG - 1

    def __init__(self, spec: AttentionSpec, device: torch.device, dtype: torch.dtype):
        self.spec = spec
        group = spec.num_heads // spec.num_kv_heads
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
        # Fastest of those tried on an H200, for heads of 128 in bfloat16; larger heads get what fits beside each other.
        wide = spec.head_dim > 128 or dtype == torch.float32
        queries = max((32 if wide else 256) // group, 1)
        one, several = (max(next_power_of_2(count * group), 16) for count in (1, queries))
        if wide:
            self.decode_few = self.decode_many = Tiling(1, one, 32, 2 * processors, 4, 2)
            self.prefill = Tiling(queries, several, 32, processors, 4, 2)
        else:
            self.decode_few = Tiling(1, one, 128, 2 * processors, 4, 2)
            self.decode_many = Tiling(1, one, 64, 4 * processors, 4, 2)
            self.prefill = Tiling(queries, several, 64, processors, 8, 3)
        tilings = (self.decode_few, self.decode_many, self.prefill)
        ranges = [tiling.most_ranges(spec.num_kv_heads) for tiling in tilings]
        size = max(n * tiling.queries for n, tiling in zip(ranges, tilings, strict=True)) * spec.num_heads
        self._results = torch.empty(size, spec.head_dim, dtype=torch.float32, device=device)
        self._sums = torch.empty(2, size, dtype=torch.float32, device=device)
        self._cudnn = CudnnPrefill(spec.scale)
        self._long = LONG if spec.causal and CudnnPrefill.supports(spec, device, dtype) else sys.maxsize  # cuDNN's rows
        self._arrived = torch.zeros(max(ranges) * spec.num_kv_heads, dtype=torch.int32, device=device)

    @staticmethod
    def supports(spec: AttentionSpec, device: torch.device, dtype: torch.dtype, block_size: int) -> str | None:
        if reason := triton_unusable(device.type):
            return reason
        if dtype not in DTYPES:
            return f"it has no kernel for {dtype}"
        if spec.head_dim > LARGEST_HEAD:
            return f"heads of {spec.head_dim} dimensions are larger than {LARGEST_HEAD}"
        return None

    def plan(self, rows: Array, counts: Array, contexts: Array, num_decodes: int) -> Array:
        """The number of items of decoding rows, that of the others', then the items. See ``Backend.plan``."""
        tokens = counts.cumsum() - counts
        rows = rows if self.spec.causal else tokens  # see ``encode``
        others = num_decodes + np.flatnonzero(counts[num_decodes:] < self._long)
        decodes, prefills = (
            tiling.cut(self.spec, rows[part], tokens[part], counts[part], contexts[part])
            for tiling, part in ((self._decode(num_decodes), slice(num_decodes)), (self.prefill, others))
        )
        return np.concatenate(([len(decodes), len(prefills)], decodes.ravel(), prefills.ravel()))

    def most_work(self, num_tokens: int, num_rows: int) -> int:
        """Every row, or tile of one, is an item; dividing adds no more than there are programs."""
        tiles = num_rows + num_tokens // self.prefill.queries + num_rows
        programs = (self.decode_many.programs + self.prefill.programs) // self.spec.num_kv_heads + 2
        return 2 + FIELDS * (tiles + programs)

    def run(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: PagedBatch,
        sinks: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ``Backend.run``. Reads q and each visible key and value once, or once per tile of a prefill's queries.

        Rows that decode and rows that prefill take a launch each, for their tiles differ; very long ones go to cuDNN.
        """
        if len(batch.counts) == 1 and batch.counts[0] >= self._long:
            return self._cudnn(q, k_cache, v_cache, batch.block_table[batch.rows[0]], batch.contexts[0])
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        operands = (q, k_cache, v_cache, batch, out, sinks, alibi_slopes)
        if batch.num_decodes:
            self._launch(self._decode(batch.num_decodes), True, *operands)
        start, short = batch.num_decodes, False
        for row, count, context in zip(
            *(part[start:] for part in (batch.rows, batch.counts, batch.contexts)), strict=True
        ):
            if count >= self._long:
                part = slice(start, start + count)
                out[part] = self._cudnn(q[part], k_cache, v_cache, batch.block_table[row], context)
            else:
                short = True
            start += count
        if short:
            self._launch(self.prefill, False, *operands)
        return out

    def encode(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """See ``Backend.encode``. To the kernel the step's own keys are a cache in blocks of one token, in order.

        A row's table begins with its first token, so rows go by their first tokens' numbers.
        """
        table = torch.arange(len(k), dtype=torch.int32, device=k.device)[:, None]
        return self.run(q, k[:, None], v[:, None], replace(batch, block_table=table))

    def _decode(self, num_decodes: int) -> Tiling:
        return self.decode_few if num_decodes <= FEW else self.decode_many

    def _launch(
        self,
        tiling: Tiling,
        decodes: bool,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: PagedBatch,
        out: torch.Tensor,
        sinks: torch.Tensor | None,
        alibi_slopes: torch.Tensor | None,
    ) -> None:
        spec = self.spec
        attend_kernel[(tiling.programs,)](
            *(q, k_cache, v_cache, out, self._results, self._sums, self._sums[1], self._arrived, sinks, alibi_slopes),
            *(batch.work, batch.block_table, batch.block_table.stride(0)),
            *(q.stride(0), spec.scale),
            WINDOW=spec.window or 0,
            SOFTCAP=spec.softcap,
            CAUSAL=spec.causal,
            BLOCK_SIZE=k_cache.shape[1],
            SLOT=k_cache.stride(0) // k_cache.shape[1],
            NUM_KV_HEADS=spec.num_kv_heads,
            GROUP=spec.num_heads // spec.num_kv_heads,
            HEAD_DIM=spec.head_dim,
            FIELDS=FIELDS,
            DECODES=decodes,
            QUERIES=tiling.queries,
            PROGRAMS=tiling.programs,
            BLOCK_M=tiling.block_m,
            BLOCK_N=tiling.block_n,
            BLOCK_D=max(next_power_of_2(spec.head_dim), 16),
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
            **early(q.device),
        )
