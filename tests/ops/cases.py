"""One table of checks "the Triton kernel does what the torch reference does", for any device that runs kernels.

``interpreted.py`` runs them on the CPU through Triton's interpreter, ``tests/gpu`` compiled on a GPU. References run
on the CPU in float32 (what the kernels keep inside), so an error bound is one rounding to the dtype at hand.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace as replace_fields

from headrace.attention.backend import AttentionSpec, PagedBatch
from headrace.attention.torch_backend import TorchBackend
from headrace.attention.triton_backend import TritonBackend
from headrace.layers.rope import RotaryTable
from headrace.layers.slots import Rope
from headrace.ops.activation import FUNCTIONS, act_and_mul
from headrace.ops.join import join
from headrace.ops.linear import few_rows, linear
from headrace.ops.locate import locate
from headrace.ops.mask import mask_tokens
from headrace.ops.norm import add_rms_norm, rms_norm
from headrace.ops.rope import HeadNorms, rope_and_cache
from headrace.ops.sample import sample
from headrace.ops.tuned import Tiling
from headrace.ops.tuned.tuner import TILES

Check = Callable[[str, torch.dtype], None]
CPU = "cpu"
POISON = float("nan")  # what no kernel may read, or must have overwritten


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """``actual`` is ``expected`` float32, but for one rounding to ``dtype`` and float32 sums in another order."""
    tolerance = scale * max(2 * torch.finfo(dtype).eps, 2e-6)
    torch.testing.assert_close(actual.cpu().float(), expected, rtol=tolerance, atol=tolerance)


# -- norm, activation, rope -----------------------------------------------------------------------------------------


def check_norm(shape: tuple[int, ...], own_weights: bool, offset: float, device: str, dtype: torch.dtype) -> None:
    x, residual = randn(*shape).to(dtype), randn(*shape, seed=1).to(dtype)
    weight = randn(*(shape[1:] if own_weights else shape[-1:]), seed=2).to(dtype)
    on = x.to(device), residual.to(device), weight.to(device)
    expected = rms_norm.reference(x.float(), weight.float(), 1e-5, offset)
    assert_close(rms_norm.triton(on[0], on[2], 1e-5, offset), expected, dtype, 4)
    total = x + residual
    expected = rms_norm.reference(total.float(), weight.float(), 1e-5, offset)
    y, new_residual = add_rms_norm.triton(*on, 1e-5, offset)
    assert_close(y, expected, dtype, 4)
    assert torch.equal(new_residual.cpu(), total)
    assert torch.equal(on[0].cpu(), x) and torch.equal(on[1].cpu(), residual)


def check_activation(tokens: int, inner: int, device: str, dtype: torch.dtype) -> None:
    gate_up = (3 * randn(tokens, 2 * inner)).to(dtype)
    for name in FUNCTIONS:
        expected = act_and_mul.reference(gate_up.float(), name)
        assert_close(act_and_mul.triton(gate_up.to(device), name), expected, dtype, 4)


def check_linear(
    rows: int, outputs: int, inputs: int, bias: bool, tiling: Tiling | None, device: str, dtype: torch.dtype
) -> None:
    if tiling and dtype == torch.float32:  # such products are the library's
        return
    x, weight = randn(rows, inputs).to(dtype), (randn(outputs, inputs, seed=1) * inputs**-0.5).to(dtype)
    added = randn(outputs, seed=2).to(dtype) if bias else None
    expected = linear.reference(x.float(), weight.float(), None if added is None else added.float())
    on = [None if tensor is None else tensor.to(device) for tensor in (x, weight, added)]
    run = partial(few_rows, tiling=tiling) if tiling else linear.triton
    assert_close(run(*on), expected, dtype, 4)


def check_join(tokens: int, heads: int, dim: int, device: str, dtype: torch.dtype) -> None:
    one, other = randn(tokens, heads, dim).to(dtype), randn(tokens, heads, dim, seed=1).to(dtype)
    one_sums, other_sums = 5 * randn(tokens, heads, seed=2), 5 * randn(heads, tokens, seed=3).T
    expected = join.reference(one.float(), one_sums, other.float(), other_sums)
    actual = join.triton(*(tensor.to(device) for tensor in (one, one_sums, other, other_sums)))
    assert_close(actual[0], expected[0], dtype)
    assert_close(actual[1], expected[1], torch.float32, 4)


def check_rope(
    heads: int, kv_heads: int, dim: int, rotary: int | None, mixed: bool, norm: str, device: str, dtype: torch.dtype
) -> None:
    tokens, blocks, block_size = 5, 3, 4
    qkv = randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    slots = torch.tensor([11, 4, 0, 6, 5])
    rope = Rope(tuple(randn(rotary // 2).tolist()), mixed) if rotary else None
    angles = RotaryTable(rope, 20, torch.device(CPU))(torch.tensor([3, 0, 19, 7, 7])) if rope else None
    shapes = ((heads, dim), (kv_heads, dim)) if norm == "own" else ((dim,), (dim,))
    weights = [randn(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes, 1)]

    def run(implementation: Callable[..., Any], where: str, kept: torch.dtype) -> list[torch.Tensor]:
        # Views of one tensor, as a fused projection gives them.
        parts = qkv.to(where, kept, copy=True).split([heads * dim, *[kv_heads * dim] * 2], -1)
        caches = [torch.full((blocks, block_size, kv_heads, dim), -1.0, dtype=kept, device=where) for _ in range(2)]
        norms = HeadNorms(*(w.to(where, kept) for w in weights), 1e-5, 0.5, norm == "last") if norm else None
        return [
            *implementation(
                *(part.unflatten(-1, (-1, dim)) for part in parts),
                None if angles is None else angles.to(where),
                mixed,
                norms,
                *caches,
                slots.to(where),
            ),
            *caches,
        ]

    expected = run(rope_and_cache.reference, CPU, torch.float32)
    for actual, right in zip(run(rope_and_cache.triton, device, dtype), expected, strict=True):
        assert_close(actual, right, dtype, 8)


def check_locate(
    counts: list[int], starts: list[int], num_tokens: int, num_rows: int, device: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 1000, (6, 50), generator=generator, dtype=torch.int32)
    tables = torch.randint(1, 1000, (2, 6, 13), generator=generator, dtype=torch.int32)
    query_start = torch.full((num_rows + 1,), sum(counts), dtype=torch.int32)
    query_start[: len(counts) + 1] = torch.tensor([0, *counts]).cumsum(0)
    rows, padding = [5, 0, 3][: len(counts)], [0] * (num_rows - len(counts))
    inputs = (query_start, torch.tensor(rows + padding).int(), torch.tensor(starts + padding).int(), tokens, tables)
    expected = [
        (tokens[row, position], position, *(tables[:, row, position // 4] * 4 + position % 4))
        for row, start, count in zip(rows, starts, counts, strict=True)
        for position in range(start, start + count)
    ]
    columns = torch.tensor(expected + [(0, 0, 0, 0)] * (num_tokens - len(expected))).T
    for found in (
        locate.reference(*inputs, 4, num_tokens),
        locate.triton(*(tensor.to(device) for tensor in inputs), 4, num_tokens),
    ):
        assert torch.equal(torch.cat((found[0][None], found[1][None], found[2])).cpu(), columns)


# -- sampling -------------------------------------------------------------------------------------------------------


def check_sample(
    vocab: int, temperature: float, top_k: int, top_p: float, min_p: float, device: str, _: object
) -> None:
    rows = 5
    logits = randn(rows, vocab) * 3
    logits[2] = (logits[2] * 2).round() / 2  # many ties
    logits[3, 1::2] = -torch.inf
    row_ids, positions = torch.tensor([6, 0, 5, 2, 3]).int(), torch.tensor([0, 7, 7, 100_000, 3]).int()
    floats, integers = torch.full((3, 7), POISON), torch.full((2, 7), -1)
    floats[:, row_ids] = torch.tensor([temperature, top_p, min_p])[:, None]
    floats[0, row_ids[-1]] = 0.0
    integers[0, row_ids] = torch.tensor([0, 1, -1, 2**63 - 1, 5])
    integers[1, row_ids] = top_k
    tokens = torch.full((7, 100_001), -1).int()
    settings = (row_ids, positions, floats, integers, tokens)
    copies = [setting.to(device, copy=True) for setting in settings]
    expected = sample.reference(logits, *settings)
    actual = sample.triton(logits.to(device), *copies)
    assert actual.cpu().tolist() == expected.tolist()
    assert tokens[row_ids, positions].tolist() == expected.tolist() and (tokens >= 0).sum() == rows
    assert torch.equal(copies[-1].cpu(), tokens)


def check_sample_of_broken_logits(device: str, _: object) -> None:
    logits = torch.full((2, 37), float("nan"), device=device)
    logits[1] = -torch.inf
    rows, floats = torch.tensor([0, 1], device=device).int(), torch.tensor([[1.0], [0.5], [0.0]], device=device)
    integers, tokens = torch.tensor([[0], [3]], device=device), torch.zeros(2, 1, device=device).int()
    drawn = sample.triton(logits, rows, rows * 0, floats.repeat(1, 2), integers.repeat(1, 2), tokens)
    assert all(0 <= token < 37 for token in drawn.tolist())


# -- attention ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionCase:
    """``rows``: (query tokens, context length) of each; the other fields are those of ``AttentionSpec``."""

    rows: tuple[tuple[int, int], ...]
    heads: tuple[int, int] = (6, 2)
    dim: int = 32
    block_size: int = 16
    window: int | None = None
    softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False

    def __str__(self) -> str:
        rows = " ".join(f"{count}/{context}" for count, context in self.rows)
        others = [(field.name, field.default) for field in fields(self)[1:]]
        changed = (f"{name} {getattr(self, name)}" for name, default in others if getattr(self, name) != default)
        return ", ".join((f"attention {rows}", *changed))

    @property
    def spec(self) -> AttentionSpec:
        scale = 0.3 if self.softcap else self.dim**-0.5
        heads, kv_heads = self.heads
        return AttentionSpec(heads, kv_heads, self.dim, scale, self.window, self.softcap, self.sinks, self.alibi)


DECODE = ((1, 1), (1, 40), (1, 17), (1, 5))
PREFILL = ((9, 9), (40, 40))
MIXED = ((1, 33), (1, 8), (7, 7), (20, 61), (2, 35))
ATTENTION = [
    *(AttentionCase(rows, block_size=size) for rows, size in product((DECODE, PREFILL, MIXED), (1, 2, 16, 64))),
    *(AttentionCase(MIXED, dim=dim) for dim in (64, 80, 96, 112, 128, 256)),
    *(AttentionCase(MIXED, heads=heads) for heads in ((1, 1), (4, 4), (9, 3), (8, 1), (48, 1))),
    *(AttentionCase(MIXED, window=window, block_size=8) for window in (1, 6, 32, 100)),
    AttentionCase(DECODE, window=6, block_size=4),
    AttentionCase(MIXED, softcap=5.0),
    AttentionCase(MIXED, sinks=True),
    AttentionCase(MIXED, alibi=True),
    AttentionCase(MIXED, window=6, softcap=5.0, sinks=True),
    AttentionCase(MIXED, window=6, softcap=5.0, alibi=True),
    AttentionCase(((1, 700), (1, 3), (1, 301)), heads=(2, 1), dim=16, block_size=64),  # split over the keys
    AttentionCase(((1, 600), (1, 3)), heads=(2, 1), dim=16, window=550, sinks=True),
    AttentionCase(((130, 150), (70, 70), (1, 9)), heads=(2, 1)),  # several tiles of queries; a prefill of one token
]


@dataclass(frozen=True)
class AttentionInputs:
    """A case's tensors, float32 on the CPU."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    batch: PagedBatch
    sinks: torch.Tensor | None
    alibi_slopes: torch.Tensor | None
    keys: list[torch.Tensor]  # [context, kv_heads, dim] of each row: what its blocks hold
    values: list[torch.Tensor]

    def to(self, device: str, dtype: torch.dtype) -> tuple[object, ...]:
        """The arguments of ``Backend.run`` after the spec."""
        tensors = {name: getattr(self.batch, name).to(device) for name in ("block_table", "slots", "work")}
        floats = (tensor.to(device, dtype) for tensor in (self.q, self.k_cache, self.v_cache))
        extras = (tensor if tensor is None else tensor.to(device) for tensor in (self.sinks, self.alibi_slopes))
        return (*floats, replace(self.batch, **tensors), *extras)


def attention_inputs(case: AttentionCase, seed: int = 0) -> AttentionInputs:
    """Keys and values in blocks of random order; whatever no query may see is poisoned, also in the block tables."""
    generator = torch.Generator().manual_seed(seed)
    heads, kv_heads = case.heads
    queries, contexts = [row[0] for row in case.rows], [row[1] for row in case.rows]
    needed = [-(-context // case.block_size) for context in contexts]
    order = (1 + torch.randperm(sum(needed), generator=generator)).split(needed)
    shape = (1 + sum(needed), case.block_size, kv_heads, case.dim)
    caches = [torch.full(shape, POISON) for _ in range(2)]
    table = torch.zeros(len(needed), max(needed) + 1, dtype=torch.int32)
    history: list[list[torch.Tensor]] = [[], []]
    slots = []
    for row, (count, context) in enumerate(case.rows):
        position = torch.arange(context)
        slot = order[row][position // case.block_size] * case.block_size + position % case.block_size
        slots.append(slot[-count:])
        unseen = max(context - count - (case.window or context) + 1, 0)
        for cache, lists in zip(caches, history, strict=True):
            lists.append(torch.randn(context, kv_heads, case.dim, generator=generator))
            cache.view(-1, kv_heads, case.dim)[slot[unseen:]] = lists[-1][unseen:]
        table[row, : needed[row]] = order[row]
        table[row, : unseen // case.block_size] = 0  # freed: block 0 is all poison
    batch = PagedBatch(
        block_table=table,
        slots=torch.cat(slots),
        work=torch.zeros(0, dtype=torch.int32),
        rows=list(range(len(queries))),
        counts=queries,
        contexts=contexts,
        num_decodes=next((i for i, count in enumerate(queries) if count > 1), len(queries)),
    )
    fused = torch.randn(sum(queries), heads + 2, case.dim, generator=generator)  # so that q isn't contiguous
    sinks = torch.randn(heads, generator=generator) * 2 if case.sinks else None
    slopes = torch.rand(heads, generator=generator) if case.alibi else None
    return AttentionInputs(fused[:, :heads], *caches, batch, sinks, slopes, *history)


def check_attention(case: AttentionCase, device: str, dtype: torch.dtype) -> None:
    inputs = attention_inputs(case)
    rounded = replace(inputs, q=inputs.q.to(dtype), k_cache=inputs.k_cache.to(dtype), v_cache=inputs.v_cache.to(dtype))
    expected = TorchBackend(case.spec, torch.device(CPU), torch.float32).run(*rounded.to(CPU, torch.float32))
    backend, batch = TritonBackend(case.spec, torch.device(device), dtype), inputs.batch
    work = backend.plan(np.array(batch.rows), np.array(batch.counts), np.array(batch.contexts), batch.num_decodes)
    assert len(work) <= backend.most_work(sum(batch.counts), len(batch.rows))
    planned = replace(inputs, batch=replace(batch, work=torch.from_numpy(work).int()))
    actual = backend.run(*planned.to(device, dtype))
    assert actual.shape == expected.shape and actual.is_contiguous()
    # The softmax's weights are rounded to the dtype too before they meet the values.
    assert_close(actual, expected, dtype, 4)


def check_encode(counts: list[int], heads: int, kv_heads: int, device: str, dtype: torch.dtype) -> None:
    """Rows of ``counts`` tokens, each seeing all of its row; those of one token lead, as in every step."""
    spec = AttentionSpec(heads, kv_heads, 40, 0.2, causal=False)
    fused = randn(sum(counts), heads + 2 * kv_heads, spec.head_dim).to(dtype)
    no_table, numbers = torch.zeros(0, dtype=torch.int32), np.arange(len(counts))
    batch = PagedBatch(no_table, no_table, no_table, numbers.tolist(), counts, counts, counts.count(1))
    parts = (heads, kv_heads, kv_heads)
    expected = TorchBackend(spec, torch.device(CPU), torch.float32).encode(*fused.float().split(parts, 1), batch)
    backend = TritonBackend(spec, torch.device(device), dtype)
    work = torch.from_numpy(backend.plan(numbers, np.array(counts), np.array(counts), counts.count(1))).int()
    actual = backend.encode(*fused.to(device).split(parts, 1), replace(batch, work=work.to(device)))
    assert_close(actual, expected, dtype, 4)


def check_mask(lines: int, vocab: int, chosen: list[int], device: str, dtype: torch.dtype) -> None:
    logits, rows = randn(lines, vocab), torch.tensor(chosen)  # which are float32 whatever the model's dtype
    words = torch.randint(-(2**31), 2**31, (len(chosen), -(-vocab // 32)), dtype=torch.int32)
    expected = logits.clone()
    for row, line in zip(chosen, words.tolist(), strict=True):
        for token in range(vocab):
            if not line[token // 32] >> token % 32 & 1:
                expected[row, token] = -torch.inf
    for run, where in ((mask_tokens.reference, CPU), (mask_tokens.triton, device)):
        actual = logits.to(where, copy=True)
        run(actual, rows.to(where), words.to(where))
        assert torch.equal(actual.cpu(), expected)


# -- the table ------------------------------------------------------------------------------------------------------

CHECKS: dict[str, Check] = {
    **{
        f"norm {shape} {own} {offset}": partial(check_norm, shape, own, offset)
        for shape, own, offset in (((1, 576), 0, 0.0), ((3, 100), 0, 1.0), ((5, 3, 80), 0, 0.0), ((2, 4, 128), 1, 0.5))
    },
    **{
        f"activation {tokens}x{inner}": partial(check_activation, tokens, inner)
        for tokens, inner in ((1, 1), (3, 1500), (2, 96))
    },
    **{
        f"linear {rows}x{inputs} by {outputs}{' and bias' * bias}": partial(
            check_linear, rows, outputs, inputs, bias, None
        )
        for rows, outputs, inputs, bias in (
            (1, 7, 100, True),
            (1, 33, 5000, False),
            (1, 64, 1024, True),
            (3, 9, 64, True),
            (5, 4100, 200, True),
            (20, 70, 2100, True),
            (32, 9, 3072, False),
            (65, 20, 300, True),
        )
    },
    **{
        f"linear 64 rows or fewer as {tile.outputs} by {tile.block}, {tile.warps} warps": partial(
            check_linear,
            64 - 62 * i // (len(TILES) - 1),
            150,
            1024 - 100 * (i % 2),
            i < 3,
            replace_fields(tile, parts=1 + i % 3),
        )
        for i, tile in enumerate(TILES)
    },
    **{f"join {shape}": partial(check_join, *shape) for shape in ((1, 1, 16), (37, 3, 80))},
    **{
        f"rope {heads} heads of {dim}, {rotary} {'interleaved' if mixed else 'in halves'}, norm {norm}": partial(
            check_rope, *heads, dim, rotary, mixed, norm
        )
        for heads, dim, rotary, mixed, norm in (
            ((9, 3), 64, 64, False, ""),
            ((4, 4), 80, 32, False, ""),
            ((40, 2), 128, 128, True, ""),
            ((2, 1), 96, 24, True, ""),
            ((3, 3), 32, None, False, ""),
            ((16, 8), 128, 128, False, "first"),
            ((3, 1), 80, 32, True, "own"),
            ((4, 2), 64, 64, False, "last"),
            ((3, 3), 32, None, False, "first"),
        )
    },
    **{
        f"locate {counts} at {starts} in {num_tokens}": partial(check_locate, counts, starts, num_tokens, num_rows)
        for counts, starts, num_tokens, num_rows in (
            ([1], [0], 1, 1),
            ([1, 1, 4], [7, 49, 3], 6, 3),
            ([1, 30, 9], [12, 0, 20], 300, 3),
            ([3], [5], 8, 8),
        )
    },
    **{
        f"sample {vocab} temperature {heat} top_k {k} top_p {p} min_p {m}": partial(check_sample, vocab, heat, k, p, m)
        for vocab, heat, k, p, m in (
            (1, 1.0, 0, 1.0, 0.0),
            (50, 0.0, 3, 0.5, 0.1),
            (5000, 0.8, 0, 1.0, 0.0),
            (300, 1.3, 1, 1.0, 0.0),
            (300, 1.0, 20, 1.0, 0.0),
            (300, 1.0, 0, 0.7, 0.0),
            (300, 5.0, 0, 0.999, 0.0),
            (300, 2.0, 0, 1.0, 0.2),
            (300, 1.5, 50, 0.9, 0.02),
        )
    },
    "sample of broken logits": check_sample_of_broken_logits,
    **{
        f"mask rows {chosen} of {vocab}": partial(check_mask, 5, vocab, chosen)
        for vocab, chosen in ((1, [0]), (31, [4, 0]), (64, [1, 3, 2]), (2051, [3]))
    },
    **{
        f"attention in both directions {counts}": partial(check_encode, counts, *heads)
        for counts, heads in (([1, 1, 5, 300], (4, 2)), ([70, 3], (3, 3)))
    },
    **{str(case): partial(check_attention, case) for case in ATTENTION},
}
