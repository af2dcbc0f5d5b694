"""Paged attention in Triton: flash attention over block tables, and split over the keys for rows that decode.

The query heads that share a key head are packed into the rows of one matrix product, so keys and values are read once
for all of them. Source of the algorithm: Dao, "FlashAttention-2" (2023), and its "Flash-Decoding" (2023). Knows
nothing of how blocks are assigned.
"""

from __future__ import annotations

import torch

from headrace.attention.backend import AttentionSpec, PagedBatch
from headrace.ops.jit import jit, tl
from headrace.ops.registry import next_power_of_2, triton_unusable

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LARGEST_HEAD = 256
PROGRAMS_WANTED = 512  # when decoding: some for each multiprocessor of the largest GPUs
KEYS_A_SPLIT = 256  # at least, or joining the parts would cost more than they save
MOST_SPLITS = 64


class TritonBackend:
    """Runs every kind of layer with heads of up to 256 dimensions, in any block size; never waits for the device."""

    name = "triton"

    @staticmethod
    def supports(spec: AttentionSpec, device: torch.device, dtype: torch.dtype, block_size: int) -> str | None:
        if reason := triton_unusable(device.type):
            return reason
        if dtype not in DTYPES:
            return f"it has no kernel for {dtype}"
        if spec.head_dim > LARGEST_HEAD:
            return f"heads of {spec.head_dim} dimensions are larger than {LARGEST_HEAD}"
        return None

    def run(
        self,
        spec: AttentionSpec,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: PagedBatch,
        sinks: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ``Backend.run``. Reads q and each visible key and value once, or once per tile of a prefill's queries.

        Rows that decode and rows that prefill take a launch each: their tiles differ.
        """
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        num_decodes, num_rows = batch.num_decodes, len(batch.query_lens_host)
        operands = (q, k_cache, v_cache, batch, out, sinks, alibi_slopes)
        if num_decodes:
            launch(spec, *operands, rows=num_decodes, first_row=0, decodes=True)
        if num_rows > num_decodes:
            launch(spec, *operands, rows=num_rows - num_decodes, first_row=num_decodes, decodes=False)
        return out


def num_splits(programs: int, visible: int) -> int:
    """Into how many parts to cut the keys of decoding rows, so that enough programs run side by side."""
    useful = min(-(-PROGRAMS_WANTED // programs), -(-visible // KEYS_A_SPLIT), MOST_SPLITS)
    return max(useful, 1)


def launch(
    spec: AttentionSpec,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    out: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    *,
    rows: int,
    first_row: int,
    decodes: bool,
) -> None:
    """Attend the tokens of ``rows`` rows from ``first_row`` on, which all ``decodes`` (one token each) or not."""
    group = spec.num_heads // spec.num_kv_heads
    wide = spec.head_dim > 128 or q.dtype == torch.float32
    queries, tiles, splits = 1, rows, 1
    if decodes:
        visible = min(batch.max_context_len, spec.window or batch.max_context_len)
        splits = num_splits(rows * spec.num_kv_heads, visible)
    else:
        # Row i's tiles start at number query_start[i] // queries + i: enough for each, known without asking the device.
        queries = max((32 if wide else 128) // group, 1)
        tiles = (q.shape[0] - first_row) // queries + rows
    parts = lasts = None
    if splits > 1:
        parts = torch.empty(rows, spec.num_heads, splits, spec.head_dim, dtype=torch.float32, device=q.device)
        lasts = torch.empty(2, rows, spec.num_heads, splits, dtype=torch.float32, device=q.device)
    block_d = max(next_power_of_2(spec.head_dim), 16)
    _attend_kernel[(tiles, spec.num_kv_heads, splits)](
        *(q, k_cache, v_cache, out, parts, lasts, sinks, alibi_slopes),
        *(batch.query_start, batch.context_lens, batch.block_table, batch.block_table.stride(0)),
        *(q.stride(0), q.stride(1), k_cache.stride(1), k_cache.stride(2), rows, first_row, splits, spec.scale),
        WINDOW=spec.window or 0,
        SOFTCAP=spec.softcap,
        BLOCK_SIZE=k_cache.shape[1],
        NUM_HEADS=spec.num_heads,
        GROUP=group,
        HEAD_DIM=spec.head_dim,
        DECODES=decodes,
        QUERIES=queries,
        BLOCK_M=max(next_power_of_2(queries * group), 16),
        BLOCK_N=32 if wide else 64,
        BLOCK_D=block_d,
        num_warps=4 if decodes or wide else 8,
        num_stages=2 if wide else 3,
    )
    if splits > 1:
        _join_kernel[(rows, spec.num_heads)](
            *(parts, lasts, out, rows, splits, spec.num_heads, spec.head_dim, MOST_SPLITS, block_d)
        )


# Triton compiles a kernel anew where an integer is 1 or divisible by 16: not for these, which change from step to step.
VARYING = ["table_stride", "rows", "first_row", "splits"]


@jit(do_not_specialize=VARYING)
def _attend_kernel(
    q,
    k_cache,
    v_cache,
    out,
    parts,
    lasts,
    sinks,
    alibi_slopes,
    query_start,
    context_lens,
    block_table,
    table_stride,
    q_token_stride,
    q_head_stride,
    slot_stride,
    kv_head_stride,
    rows,
    first_row,
    splits,
    scale,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DECODES: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """``QUERIES`` tokens of a row, their ``GROUP`` heads of one key head, against a part of the keys."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    if DECODES:
        row, tile_in_row = first_row + tile, 0
    else:
        row, tile_in_row = _row_of_tile(tile, query_start, rows, first_row, QUERIES)
    row_start = tl.load(query_start + row)
    num_queries = tl.load(query_start + row + 1) - row_start
    first_query = tile_in_row * QUERIES
    if first_query >= num_queries:
        return
    context = tl.load(context_lens + row)
    earlier = context - num_queries

    line = tl.arange(0, BLOCK_M)
    query = first_query + line // GROUP
    head = kv_head * GROUP + line % GROUP
    dims = tl.arange(0, BLOCK_D)
    real = (line < QUERIES * GROUP) & (query < num_queries)
    token = (row_start + query).to(tl.int64)
    places = token[:, None] * q_token_stride + head[:, None] * q_head_stride + dims[None, :]
    q_tile = tl.load(q + places, mask=real[:, None] & (dims[None, :] < HEAD_DIM), other=0.0)
    position = earlier + query

    # The keys that any of the tile's queries sees, and this split's part of them.
    stop = tl.minimum(earlier + first_query + QUERIES, context)
    start = 0
    if WINDOW > 0:
        start = tl.maximum(earlier + first_query - WINDOW + 1, 0)
    if parts is not None:
        share = tl.cdiv(tl.cdiv(stop - start, splits), BLOCK_N) * BLOCK_N
        start += split * share
        stop = tl.minimum(stop, start + share)

    # Base-2 logarithms and exponentials throughout: the device has instructions for those.
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    if sinks is not None:  # the first part counts them
        sink = tl.load(sinks + head, mask=real, other=0.0) * 1.4426950408889634
        largest = tl.where(split == 0, sink, float("-inf"))
        total += tl.where(split == 0, 1.0, 0.0)
    slope = tl.zeros([BLOCK_M], dtype=tl.float32)
    if alibi_slopes is not None:
        slope = tl.load(alibi_slopes + head, mask=real, other=0.0)
    result = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    table = block_table + row.to(tl.int64) * table_stride
    k_head = k_cache + kv_head * kv_head_stride
    v_head = v_cache + kv_head * kv_head_stride
    for first_key in range(start, stop, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)
        block = tl.load(table + key // BLOCK_SIZE, mask=key < stop, other=0).to(tl.int64)
        slot = (block * BLOCK_SIZE + key % BLOCK_SIZE) * slot_stride
        cached = (key[:, None] < stop) & (dims[None, :] < HEAD_DIM)
        keys = tl.load(k_head + slot[:, None] + dims[None, :], mask=cached, other=0.0)
        scores = tl.dot(q_tile, tl.trans(keys), input_precision="ieee") * scale
        if SOFTCAP > 0.0:
            scores = SOFTCAP * (2.0 * tl.sigmoid(2.0 / SOFTCAP * scores) - 1.0)
        if alibi_slopes is not None:
            scores += slope[:, None] * (key[None, :] - position[:, None]).to(tl.float32)
        visible = (key[None, :] <= position[:, None]) & (key[None, :] < stop)
        if WINDOW > 0:
            visible = visible & (key[None, :] > position[:, None] - WINDOW)
        scores = tl.where(visible, scores * 1.4426950408889634, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        anchor = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # a line may have seen no key yet
        weights = tl.exp2(scores - anchor[:, None])
        kept = tl.exp2(largest - anchor)
        values = tl.load(v_head + slot[:, None] + dims[None, :], mask=cached, other=0.0)
        result = result * kept[:, None]
        result = tl.dot(weights.to(values.dtype), values, result, input_precision="ieee")
        total = total * kept + tl.sum(weights, axis=1)
        largest = new_largest

    inside = real[:, None] & (dims[None, :] < HEAD_DIM)
    if parts is not None:
        place = ((row - first_row) * NUM_HEADS + head) * splits + split
        tl.store(parts + place[:, None] * HEAD_DIM + dims[None, :], result, mask=inside)
        tl.store(lasts + place, largest, mask=real)
        tl.store(lasts + rows * NUM_HEADS * splits + place, total, mask=real)
    else:
        places = (token[:, None] * NUM_HEADS + head[:, None]) * HEAD_DIM + dims[None, :]
        tl.store(out + places, (result / total[:, None]).to(out.dtype.element_ty), mask=inside)


@jit
def _row_of_tile(tile, query_start, rows, first_row, QUERIES: tl.constexpr):
    """(row, number of the tile in the row): the last row whose tiles start at or before this one's number."""
    origin = tl.load(query_start + first_row)
    low = tile * 0
    high = low + rows
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(query_start + first_row + middle) - origin) // QUERIES + middle <= tile:
            low = middle
        else:
            high = middle
    first_tile = (tl.load(query_start + first_row + low) - origin) // QUERIES + low
    return first_row + low, tile - first_tile


@jit(do_not_specialize=VARYING)
def _join_kernel(
    parts,
    lasts,
    out,
    rows,
    splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    MOST_SPLITS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One head of one decoding row: the mean of the parts' results by their share of the softmax's sum."""
    line = tl.program_id(0) * NUM_HEADS + tl.program_id(1)
    split = tl.arange(0, MOST_SPLITS)
    dims = tl.arange(0, BLOCK_D)
    used = split < splits
    places = line * splits + split
    largest = tl.load(lasts + places, mask=used, other=float("-inf"))
    factor = tl.exp2(largest - tl.max(largest, axis=0))
    total = tl.sum(tl.load(lasts + rows * NUM_HEADS * splits + places, mask=used, other=0.0) * factor, axis=0)
    inside = used[:, None] & (dims < HEAD_DIM)[None, :]
    results = tl.load(parts + places[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    result = tl.sum(results * factor[:, None], axis=0) / total
    tl.store(out + line * HEAD_DIM + dims, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
