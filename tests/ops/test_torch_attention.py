"""The torch backend's decoding and encoding steps against a softmax spelled out."""

from typing import Any

import pytest
import torch

from headrace.attention import torch_backend
from headrace.attention.backend import AttentionSpec, PagedBatch
from headrace.attention.torch_backend import TorchBackend, alike

BLOCK, HEADS, KV_HEADS, DIM = 4, 6, 2, 8


def exact(spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One query [H, D] to the keys and values [length, H_kv, D] that it may see."""
    k, v = (part[-(spec.window or len(part)) :].repeat_interleave(HEADS // KV_HEADS, dim=1) for part in (k, v))
    return torch.einsum("hk,khd->hd", (torch.einsum("hd,khd->hk", q, k) * spec.scale).softmax(dim=-1), v)


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(
    ("tables", "contexts"),
    [
        ([[5, 6, 7]], [11]),  # a run
        ([[5, 7, 6]], [11]),
        ([[3, 4, 9], [5, 6, 7]], [12, 12]),  # one group, of equal lengths
        ([[3, 4, 9], [5, 7, 8]], [12, 9]),
        ([[5, 6, 7, 8, 9, 10], [2, 0, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]], [24, 3, 1]),  # groups: a run, and two rows
        ([[2, 0, 0, 0, 0, 0], [5, 6, 7, 8, 9, 10], [3, 0, 0, 0, 0, 0]], [2, 24, 3]),
    ],
)
def test_decoding(tables: list[list[int]], contexts: list[int], window: int | None) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(HEADS, KV_HEADS, DIM, DIM**-0.5, window=window)
    caches = torch.randn(2, 12, BLOCK, KV_HEADS, DIM)  # as they are allocated: the values' begin in the middle
    q, rows = torch.randn(len(tables), HEADS, DIM), list(range(len(tables)))
    empty = torch.zeros(0, dtype=torch.int64)
    table = torch.tensor(tables, dtype=torch.int32)
    batch = PagedBatch(table, empty, empty, rows, [1] * len(rows), contexts, len(rows))
    found = TorchBackend(spec, torch.device("cpu"), torch.float32).run(q, *caches, batch)
    for row, context in enumerate(contexts):
        k, v = (cache[table[row].long()].flatten(0, 1)[:context] for cache in caches)
        torch.testing.assert_close(found[row], exact(spec, q[row], k, v))


@pytest.mark.parametrize("window", [None, 6, 40])
@pytest.mark.parametrize(("count", "context"), [(2, 2), (7, 30), (32, 64), (300, 333)])
def test_prefill(count: int, context: int, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query sees its own keys, though some of both are added so that there are few numbers of them."""
    attend, sizes = torch_backend.attend, set()

    def noted(spec: AttentionSpec, q: torch.Tensor, k: torch.Tensor, *others: Any) -> torch.Tensor:
        sizes.update((q.shape[1], k.shape[1]))
        return attend(spec, q, k, *others)

    monkeypatch.setattr(torch_backend, "attend", noted)
    torch.manual_seed(0)
    spec = AttentionSpec(HEADS, KV_HEADS, DIM, DIM**-0.5, window=window)
    q, k, v = (torch.randn(length, heads, DIM) for length, heads in ((count, HEADS), (400, KV_HEADS), (400, KV_HEADS)))
    table, found = torch.randperm(400 // BLOCK), torch.empty_like(q)
    torch_backend.prefill(spec, q, found, (k, v), table, BLOCK, context, None, None)
    k, v = (cache.unflatten(0, (-1, BLOCK))[table].flatten(0, 1) for cache in (k, v))
    seen = range(context - count + 1, context + 1)
    expected = [exact(spec, query, k[:end], v[:end]) for query, end in zip(q, seen, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert not any(size % torch_backend.MULTIPLE for size in sizes)


@pytest.mark.parametrize("counts", [[7], [1, 1], [5, 9, 5, 1], [40, 2, 38, 3, 37, 2, 64]])
def test_encoding(counts: list[int]) -> None:
    torch.manual_seed(0)
    spec = AttentionSpec(HEADS, KV_HEADS, DIM, DIM**-0.5, causal=False)
    sizes = HEADS * DIM, KV_HEADS * DIM, KV_HEADS * DIM
    fused = torch.randn(sum(counts), sum(sizes))  # each token's query, keys and values, as the projection leaves them
    q, k, v = (part.unflatten(1, (-1, DIM)) for part in fused.split(sizes, dim=1))
    empty, rows = torch.zeros(0, dtype=torch.int64), list(range(len(counts)))
    batch = PagedBatch(empty[None], empty, empty, rows, counts, counts, 0)
    found = TorchBackend(spec, torch.device("cpu"), torch.float32).encode(q, k, v, batch)
    expected = [
        exact(spec, query, keys, values)
        for queries, keys, values in zip(*(part.split(counts) for part in (q, k, v)), strict=True)
        for query in queries
    ]
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("waste", [1.1, 2.0])
def test_groups_pad_no_more_than_allowed(waste: float) -> None:
    lengths = [int(length) for length in torch.randint(1, 200, (500,), generator=torch.Generator().manual_seed(0))]
    groups = alike(lengths, waste)
    assert sorted(place for group in groups for place in group) == list(range(500))
    for group in groups:
        own = [lengths[place] for place in group]
        assert max(own) * len(own) <= waste * sum(own)
    assert len(groups) < 60
