"""Paged attention in plain torch: what a CPU runs, and the oracle for the other backends.

Rows of similar length are attended in one call where they decode or are encoded; each prefilling row in its own. Owns
the gathering of keys and values from blocks; does not know how blocks are assigned.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from headrace.attention.backend import Array, AttentionSpec, PagedBatch

QUERIES_AT_ONCE = 256  # bounds the scores and masks of a long prefill
MULTIPLE = 32  # of queries and of keys in a prefill: with AMX torch keeps kernels for every number of them
WASTE = 2.0  # decoding rows are padded to at most this multiple of their own keys
ENCODED_WASTE = 1.1  # and encoded ones to this multiple of their tokens, as work grows with the square of the length


@dataclass(frozen=True)
class DecodeGroup:
    """Rows with one query token each, padded to the length of the longest."""

    num_rows: int
    rows: torch.Tensor | slice  # int64 [n], or the first n
    slots: torch.Tensor | int  # [n * length] of the cache: of each row's visible keys, then of its last one repeated;
    length: int  # or, for one row, the first of as many that follow each other
    positions: torch.Tensor  # int64 [n, length]: of those keys
    mask: torch.Tensor | None  # bool [n, 1, 1, length]: which are no padding; None if all


@dataclass(frozen=True)
class EncodeGroup:
    """Rows padded to the length of the longest."""

    tokens: torch.Tensor  # int64 [n * length]: of each row its tokens, then its last one repeated
    shape: tuple[int, int]  # n, length
    mask: torch.Tensor | None  # bool [n, 1, 1, length]: which are no padding; None if all


class TorchBackend:
    """Runs every layer on every device."""

    name = "torch"
    capturable = 0

    def __init__(self, spec: AttentionSpec, device: torch.device, dtype: torch.dtype):
        self.spec = spec
        self._batch: PagedBatch | None = None  # the last one seen: all layers of a step share its decode groups
        self._groups: list[DecodeGroup] = []
        self._encoded: tuple[list[EncodeGroup], torch.Tensor] = [], torch.empty(0)  # and where each token's result lies

    @staticmethod
    def supports(spec: AttentionSpec, device: torch.device, dtype: torch.dtype, block_size: int) -> str | None:
        return None

    def plan(self, rows: Array, counts: Array, contexts: Array, num_decodes: int) -> Array:
        return np.zeros(0, dtype=np.int64)

    def most_work(self, num_tokens: int, num_rows: int) -> int:
        return 0

    def run(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: PagedBatch,
        sinks: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ``Backend.run``. Waits for nothing on a CPU; on a GPU this is for tests only."""
        spec = self.spec
        if self._batch is not batch:
            self._batch, self._groups = batch, decode_groups(batch, k_cache.shape[1], spec.window)
        results = [decode(spec, q, group, k_cache, v_cache, sinks, alibi_slopes) for group in self._groups]
        if len(results) == 1 and len(batch.rows) == batch.num_decodes:
            return results[0]
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for group, result in zip(self._groups, results, strict=True):
            out[group.rows] = result
        start, caches = batch.num_decodes, (k_cache.flatten(0, 1), v_cache.flatten(0, 1))
        for row in range(batch.num_decodes, len(batch.counts)):
            end = start + batch.counts[row]
            context = batch.contexts[row]
            prefill(
                spec,
                q[start:end],
                out[start:end],
                caches,
                batch.block_table[batch.rows[row]],
                k_cache.shape[1],
                context,
                sinks,
                alibi_slopes,
            )
            start = end
        return out

    def encode(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """See ``Backend.encode``."""
        if self._batch is not batch:
            self._batch, self._encoded = batch, encode_groups(batch.counts, q.device)
        groups, places = self._encoded
        shared = self.spec.num_heads != self.spec.num_kv_heads  # asked for in vain, it would cost the fast path
        results = []
        for group in groups:
            queries, keys, values = (
                x.index_select(0, group.tokens).unflatten(0, group.shape).transpose(1, 2) for x in (q, k, v)
            )
            result = F.scaled_dot_product_attention(
                queries, keys, values, group.mask, scale=self.spec.scale, enable_gqa=shared
            )
            results.append(result.transpose(1, 2).flatten(0, 1))
        return torch.cat(results).index_select(0, places)


def encode_groups(counts: list[int], device: torch.device) -> tuple[list[EncodeGroup], torch.Tensor]:
    """Rows of ``counts`` tokens by similar length, and int64 [T]: where a token lies when all groups are joined."""
    starts = np.cumsum([0, *counts])
    places, groups, end = np.empty(starts[-1], dtype=np.int64), [], 0
    for rows in alike(counts, ENCODED_WASTE):
        sizes, length = np.array([counts[row] for row in rows]), max(counts[row] for row in rows)
        column = np.arange(length)
        real = column < sizes[:, None]
        tokens = starts[rows][:, None] + np.minimum(column, sizes[:, None] - 1)
        places[tokens[real]] = end + np.flatnonzero(real)
        end += real.size
        mask = None if real.all() else torch.from_numpy(real)[:, None, None].to(device)
        groups.append(EncodeGroup(torch.from_numpy(tokens.flatten()).to(device), real.shape, mask))
    return groups, torch.from_numpy(places).to(device)


def alike(lengths: list[int], waste: float) -> list[list[int]]:
    """Places in ``lengths``, in groups that take at most ``waste`` times their own when padded to their longest."""
    groups: list[list[int]] = []
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    while order:
        total, n = 0, 0
        for place in order:
            if lengths[order[0]] * (n + 1) > waste * (total + lengths[place]):
                break
            total, n = total + lengths[place], n + 1
        groups.append(sorted(order[:n]))
        order = order[n:]
    return groups


def decode_groups(batch: PagedBatch, block_size: int, window: int | None) -> list[DecodeGroup]:
    contexts = batch.contexts[: batch.num_decodes]
    visible = [min(context, window or context) for context in contexts]
    return [decode_group(batch, rows, contexts, visible, block_size) for rows in alike(visible, WASTE)]


def decode_group(
    batch: PagedBatch, rows: list[int], contexts: list[int], visible: list[int], block_size: int
) -> DecodeGroup:
    device = batch.block_table.device
    length = max(visible[row] for row in rows)
    if len(rows) == 1:
        (row,) = rows
        oldest = contexts[row] - length
        start = start_of_run(batch.block_table[batch.rows[row]], oldest, contexts[row], block_size)
        if start is not None:
            positions = torch.arange(oldest, contexts[row], device=device)[None]
            return DecodeGroup(1, slice(row, row + 1), start, length, positions, None)
    index = torch.tensor(rows, device=device)
    last = torch.tensor([contexts[row] - 1 for row in rows], device=device)[:, None]
    first = torch.tensor([contexts[row] - visible[row] for row in rows], device=device)[:, None]
    positions = first + torch.arange(length, device=device)
    mask = (positions <= last)[:, None, None] if len({visible[row] for row in rows}) > 1 else None
    positions = torch.minimum(positions, last)
    tables = torch.tensor([batch.rows[row] for row in rows], device=device)[:, None]
    blocks = batch.block_table[tables, positions // block_size].long()
    slots = (blocks * block_size + positions % block_size).flatten()
    leading = rows == list(range(len(rows)))
    return DecodeGroup(len(rows), slice(len(rows)) if leading else index, slots, length, positions, mask)


def start_of_run(table: torch.Tensor, first: int, end: int, block_size: int) -> int | None:
    """The slot of position ``first`` if all up to ``end`` follow it, as a single row's often do; else None."""
    blocks = table[first // block_size : -(-end // block_size)].tolist()
    together = blocks == list(range(blocks[0], blocks[0] + len(blocks)))
    return blocks[0] * block_size + first % block_size if together else None


def decode(
    spec: AttentionSpec,
    q: torch.Tensor,
    group: DecodeGroup,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
) -> torch.Tensor:
    """Attend a group's rows of ``q`` [T, H, D]: [n, H, D]. Takes few calls, as each costs more than its work."""
    queries = q if group.num_rows == q.shape[0] else q[group.rows]
    keys, values = taken(k_cache, group), taken(v_cache, group)
    if spec.softcap or spec.sinks or spec.alibi:
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        queries = queries.unsqueeze(1)
        return attend(spec, queries, keys, values, group.mask, group.positions, sinks, alibi_slopes).squeeze(1)
    # The heads that share keys go as queries of one head: nothing is repeated.
    shared = queries.view(group.num_rows, spec.num_kv_heads, -1, spec.head_dim)
    return F.scaled_dot_product_attention(shared, keys, values, group.mask, scale=spec.scale).view(queries.shape)


def taken(cache: torch.Tensor, group: DecodeGroup) -> torch.Tensor:
    """A group's keys or values [n, H_kv, length, D], copied only if they don't lie together."""
    _, _, num_heads, dim = cache.shape
    if isinstance(group.slots, int):
        start = cache.storage_offset() + group.slots * num_heads * dim
        return cache.as_strided((1, num_heads, group.length, dim), (0, dim, num_heads * dim, 1), start)
    rows = cache.flatten(0, 1).index_select(0, group.slots)
    return rows.view(-1, group.length, num_heads, dim).transpose(1, 2)


def prefill(
    spec: AttentionSpec,
    q: torch.Tensor,
    out: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    block_size: int,
    context: int,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
) -> None:
    """Attend the last ``len(q)`` tokens of one row with ``context`` tokens in the cache."""
    num_queries = q.shape[0]
    earlier = context - num_queries
    oldest = max(earlier - (spec.window or context) + 1, 0)
    key_positions = torch.arange(oldest, context + MULTIPLE - 1, device=q.device)  # no query sees those after its own
    held = key_positions.clamp(max=context - 1)
    slots = table[held // block_size].long() * block_size + held % block_size
    keys, values = (cache.index_select(0, slots) for cache in caches)
    for start in range(0, num_queries, QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, num_queries)
        first = max(earlier + start - (spec.window or context) + 1, 0) - oldest
        stop = earlier + end - oldest
        stop += (first - stop) % MULTIPLE
        queries = F.pad(q[start:end], (0, 0, 0, 0, 0, (start - end) % MULTIPLE))
        query_positions = earlier + start + torch.arange(len(queries), device=q.device)[:, None]
        mask = key_positions[first:stop] <= query_positions
        if spec.window is not None:
            mask &= key_positions[first:stop] > query_positions - spec.window
        out[start:end] = attend(
            spec,
            queries[None],
            keys[None, first:stop],
            values[None, first:stop],
            mask[None, None],
            key_positions[None, first:stop],
            sinks,
            alibi_slopes,
        )[0, : end - start]


def attend(
    spec: AttentionSpec,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    key_positions: torch.Tensor,
    sinks: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
) -> torch.Tensor:
    """Attend ``q`` [B, Tq, H, D] to ``k``, ``v`` [B, Tk, H_kv, D] where ``mask`` (bool, to [B, H, Tq, Tk]) is set."""
    if not spec.softcap and not spec.sinks and not spec.alibi:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale=spec.scale, enable_gqa=True
        )
        return out.transpose(1, 2)
    shape = q.shape
    q = q.unflatten(2, (spec.num_kv_heads, -1)).float()
    scores = torch.einsum("bqhgd,bkhd->bhgqk", q, k.float()).flatten(1, 2) * spec.scale
    if spec.softcap:
        scores = torch.tanh(scores / spec.softcap) * spec.softcap
    if spec.alibi:
        assert alibi_slopes is not None
        # Distances are counted from the last key: a constant per query, the rest of the bias, leaves softmax alone.
        distance = key_positions - key_positions.amax(dim=-1, keepdim=True)
        scores = scores + alibi_slopes[:, None, None] * distance[:, None, None]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if spec.sinks:
        assert sinks is not None
        column = sinks[:, None, None].expand(*scores.shape[:-1], 1)
        weights = torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    weights = weights.unflatten(1, (spec.num_kv_heads, -1))
    return torch.einsum("bhgqk,bkhd->bqhgd", weights, v.float()).reshape(shape).to(v.dtype)
