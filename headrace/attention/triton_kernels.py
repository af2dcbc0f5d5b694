"""The kernels of triton_backend.py: flash attention over block tables, and the joining of ranges of keys.

The query heads that share a key head are packed into the rows of one matrix product, so keys and values are read once
for all of them. Whoever finishes an item's last range joins its results. Source of the algorithm: Dao,
"FlashAttention-2" (2023), and its "Flash-Decoding" (2023).
"""

from __future__ import annotations

from headrace.ops.jit import await_predecessor, jit, tl


@jit
def attend_kernel(
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
        await_predecessor(EARLY)  # which writes no items
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
    await_predecessor(EARLY)  # had there been no item


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
