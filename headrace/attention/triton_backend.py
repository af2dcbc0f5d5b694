"""Paged attention in Triton: flash attention over block tables, cut into pieces of work that fill the device.

The host cuts a step's rows into items: some queries of a row against a range of its keys. A fixed number of programs
works through the list, which lies in device memory, and whoever finishes a row's last range joins its results: a
launch looks the same whatever the batch, so it can be captured. The query heads that share a key head are packed into
the rows of one matrix product, so keys and values are read once for all of them. Source of the algorithm: Dao,
"FlashAttention-2" (2023), and its "Flash-Decoding" (2023). Knows nothing of how blocks are assigned.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from headrace.attention.backend import Array, AttentionSpec, PagedBatch
from headrace.attention.cudnn import LONG, CudnnPrefill
from headrace.ops.jit import await_predecessor, early, jit, tl
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
        self._long = CudnnPrefill(spec.scale) if spec.causal and CudnnPrefill.supports(spec, device, dtype) else None
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
        others = np.arange(num_decodes, len(rows))
        if self._long is not None:
            others = others[counts[others] < LONG]
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
        if self._long is not None and len(batch.counts) == 1 and batch.counts[0] >= LONG:
            return self._long(q, k_cache, v_cache, batch.block_table[batch.rows[0]], batch.contexts[0])
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        operands = (q, k_cache, v_cache, batch, out, sinks, alibi_slopes)
        if batch.num_decodes:
            self._launch(self._decode(batch.num_decodes), True, *operands)
        start, short = batch.num_decodes, False
        for row, count, context in zip(
            *(part[start:] for part in (batch.rows, batch.counts, batch.contexts)), strict=True
        ):
            if self._long is not None and count >= LONG:
                part = slice(start, start + count)
                out[part] = self._long(q[part], k_cache, v_cache, batch.block_table[row], context)
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
        _attend_kernel[(tiling.programs,)](
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


@jit
def _attend_kernel(
    q,
    k_cache,
    v_cache,
    out,
    results,
    largests,
    totals,
    arrived,
    sinks,
    alibi_slopes,
    work,
    block_table,
    table_stride,
    q_stride,
    scale,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SLOT: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    FIELDS: tl.constexpr,
    DECODES: tl.constexpr,
    QUERIES: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Its share of the pairs of an item and a key head: the heads of the item's queries against its keys."""
    await_predecessor(EARLY)
    num_items = tl.load(work) if DECODES else tl.load(work + 1)
    items = work + 2 if DECODES else work + 2 + tl.load(work) * FIELDS
    line = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)[None, :]
    number = tl.program_id(0)
    while number < num_items * NUM_KV_HEADS:
        item = items + number // NUM_KV_HEADS * FIELDS
        kv_head = number % NUM_KV_HEADS
        row, first_token, num_queries = tl.load(item), tl.load(item + 1), tl.load(item + 2)
        position = tl.load(item + 3) + line // GROUP
        own_range, first_range, ranges = tl.load(item + 6), tl.load(item + 7), tl.load(item + 8)
        head = kv_head * GROUP + line % GROUP
        real = line < num_queries * GROUP
        token = (first_token + line // GROUP).to(tl.int64)
        inside = real[:, None] & (dims < HEAD_DIM)
        q_tile = tl.load(q + token[:, None] * q_stride + head[:, None] * HEAD_DIM + dims, inside, other=0.0)
        largest, total = tl.full([BLOCK_M], float("-inf"), tl.float32), tl.zeros([BLOCK_M], tl.float32)
        if sinks is not None:  # counted in the first range
            sink = tl.load(sinks + head, mask=real, other=0.0) * 1.4426950408889634
            largest = tl.where(own_range == first_range, sink, largest)
            total += tl.where(own_range == first_range, 1.0, 0.0)
        slope = largest if alibi_slopes is None else tl.load(alibi_slopes + head, mask=real, other=0.0)
        result, largest, total = _attend_keys(
            *(q_tile, position, largest, total, slope, tl.load(item + 3), tl.load(item + 4), tl.load(item + 5)),
            *(k_cache + kv_head * HEAD_DIM, v_cache + kv_head * HEAD_DIM),
            *(block_table + row.to(tl.int64) * table_stride, scale),
            *(alibi_slopes is not None, CAUSAL, SLOT, WINDOW, SOFTCAP, BLOCK_SIZE, HEAD_DIM, BLOCK_N),
        )
        done = ranges == 1
        if not done:
            done, result, total = _hand_in(
                *(result, largest, total, results, largests, totals, arrived, line, real, inside),
                *(own_range, first_range, ranges, kv_head, NUM_KV_HEADS, QUERIES * GROUP, HEAD_DIM, BLOCK_D),
            )
        if done:
            places = (token[:, None] * (NUM_KV_HEADS * GROUP) + head[:, None]) * HEAD_DIM + dims
            tl.store(out + places, (result / total[:, None]).to(out.dtype.element_ty), mask=inside)
        # Back and forth: the items get shorter, so whoever had the longest of one round gets the shortest of the next.
        number = (number // PROGRAMS + 2) * PROGRAMS - 1 - number % PROGRAMS


@jit
def _attend_keys(
    q_tile,
    position,
    largest,
    total,
    slope,
    first_position,
    first_key,
    stop,
    k_head,
    v_head,
    table,
    scale,
    ALIBI: tl.constexpr,
    CAUSAL: tl.constexpr,
    SLOT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """(sum of the values by weight, largest score, sum of the weights) of each line of queries over a range of keys."""
    result = tl.zeros(q_tile.shape, dtype=tl.float32)
    masked_from = first_key
    if not CAUSAL:
        masked_from += (stop - first_key) // BLOCK_N * BLOCK_N
    elif WINDOW == 0:  # up to the first query's position every query sees every key
        masked_from += tl.maximum(tl.minimum(first_position + 1, stop) - first_key, 0) // BLOCK_N * BLOCK_N
    for start in range(first_key, masked_from, BLOCK_N):
        result, largest, total = _visit(
            *(q_tile, position, result, largest, total, slope, start, stop, k_head, v_head, table, scale),
            *(False, ALIBI, CAUSAL, SLOT, WINDOW, SOFTCAP, BLOCK_SIZE, HEAD_DIM, BLOCK_N),
        )
    for start in range(masked_from, stop, BLOCK_N):
        result, largest, total = _visit(
            *(q_tile, position, result, largest, total, slope, start, stop, k_head, v_head, table, scale),
            *(True, ALIBI, CAUSAL, SLOT, WINDOW, SOFTCAP, BLOCK_SIZE, HEAD_DIM, BLOCK_N),
        )
    return result, largest, total


@jit
def _visit(
    q_tile,
    position,
    result,
    largest,
    total,
    slope,
    start,
    stop,
    k_head,
    v_head,
    table,
    scale,
    MASKED: tl.constexpr,
    ALIBI: tl.constexpr,
    CAUSAL: tl.constexpr,
    SLOT: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Let the queries see ``BLOCK_N`` more keys.

    Base-2 logarithms and exponentials throughout: the device has instructions for those.
    """
    dims = tl.arange(0, q_tile.shape[1])[None, :]
    key = start + tl.arange(0, BLOCK_N)
    cached = dims < HEAD_DIM
    if MASKED:
        cached = cached & (key[:, None] < stop)
        block = tl.load(table + key // BLOCK_SIZE, mask=key < stop, other=0).to(tl.int64)
    else:
        block = tl.load(table + key // BLOCK_SIZE).to(tl.int64)
    slot = (block * BLOCK_SIZE + key % BLOCK_SIZE) * SLOT
    keys = tl.load(k_head + slot[:, None] + dims, mask=cached, other=0.0)
    scores = tl.dot(q_tile, tl.trans(keys), input_precision="ieee")
    if SOFTCAP > 0.0:
        scores = SOFTCAP * (2.0 * tl.sigmoid(2.0 / SOFTCAP * scale * scores) - 1.0) * 1.4426950408889634
    else:
        scores *= scale * 1.4426950408889634
    if ALIBI:
        scores += (slope * 1.4426950408889634)[:, None] * (key[None, :] - position[:, None]).to(tl.float32)
    if MASKED:
        visible = key[None, :] < stop
        if CAUSAL:
            visible = visible & (key[None, :] <= position[:, None])
        if WINDOW > 0:
            visible = visible & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    anchor = new_largest
    if MASKED:  # a line may have seen no key yet
        anchor = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp2(scores - anchor[:, None])
    kept = tl.exp2(largest - anchor)
    values = tl.load(v_head + slot[:, None] + dims, mask=cached, other=0.0)
    result = tl.dot(weights.to(values.dtype), values, result * kept[:, None], input_precision="ieee")
    return result, new_largest, total * kept + tl.sum(weights, axis=1)


@jit
def _hand_in(
    result,
    largest,
    total,
    results,
    largests,
    totals,
    arrived,
    line,
    real,
    inside,
    own_range,
    first_range,
    ranges,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Leave what one range of an item gave for whoever comes last: (whether that is now, result, total of them all)."""
    lines = (own_range * NUM_KV_HEADS + kv_head) * WIDTH + line
    dims = tl.arange(0, BLOCK_D)[None, :]
    tl.store(results + lines.to(tl.int64)[:, None] * HEAD_DIM + dims, result, mask=inside)
    tl.store(largests + lines, largest, mask=real)
    tl.store(totals + lines, total, mask=real)
    tl.debug_barrier()  # all of the program's stores come before it announces them
    counter = arrived + first_range * NUM_KV_HEADS + kv_head
    last = tl.atomic_add(counter, 1, sem="acq_rel") == ranges - 1
    if last:
        tl.store(counter, 0)  # for the next launch
        lines = (first_range * NUM_KV_HEADS + kv_head) * WIDTH + line
        step: tl.constexpr = NUM_KV_HEADS * WIDTH
        result, total = _join(results, largests, totals, lines, ranges, real, step, HEAD_DIM, BLOCK_D)
    return last, result, total


@jit
def _join(
    results,
    largests,
    totals,
    lines,
    ranges,
    real,
    RANGE_LINES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    AT_ONCE: tl.constexpr = 4,  # ranges, so that it waits for all of them at a time
):
    """(result, total) over all ranges of an item, of which ``lines`` are the first's; read past the L1 cache."""
    dims = tl.arange(0, BLOCK_D)[None, :]
    largest = tl.full(lines.shape, float("-inf"), tl.float32)
    total = tl.zeros(lines.shape, dtype=tl.float32)
    result = tl.zeros([lines.shape[0], BLOCK_D], dtype=tl.float32)
    for first in range(0, ranges, AT_ONCE):
        for part in tl.static_range(AT_ONCE):
            there = lines + (first + part) * RANGE_LINES
            part_real = real & (there < lines + ranges * RANGE_LINES)
            part_largest = tl.load(largests + there, mask=part_real, other=float("-inf"), cache_modifier=".cg")
            part_total = tl.load(totals + there, mask=part_real, other=0.0, cache_modifier=".cg")
            places = results + there.to(tl.int64)[:, None] * HEAD_DIM + dims
            part_result = tl.load(places, mask=part_real[:, None] & (dims < HEAD_DIM), other=0.0, cache_modifier=".cg")
            new_largest = tl.maximum(largest, part_largest)
            anchor = tl.where(new_largest == float("-inf"), 0.0, new_largest)
            kept, share = tl.exp2(largest - anchor), tl.exp2(part_largest - anchor)
            result = result * kept[:, None] + part_result * share[:, None]
            total = total * kept + part_total * share
            largest = new_largest
    return result, total
