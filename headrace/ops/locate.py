"""Where a step's tokens stand: their ids, their positions, and the cache slots their keys and values go to."""

from __future__ import annotations

import torch

from headrace.ops.jit import await_predecessor, early, jit, tl
from headrace.ops.registry import op

TOKENS_A_PROGRAM = 256


@op
def locate(
    query_start: torch.Tensor,
    row_ids: torch.Tensor,
    starts: torch.Tensor,
    tokens: torch.Tensor,
    tables: torch.Tensor,
    block_size: int,
    num_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token ids int64 [T], positions int64 [T], slots int64 [groups, T]) of a step with T = ``num_tokens``.

    The i-th of R rows owns the tokens ``query_start[i] .. query_start[i + 1] - 1`` (int32 [R + 1]), which stand at the
    positions from ``starts[i]`` (int32 [R]) on in row ``row_ids[i]`` (int32 [R]) of ``tokens`` int32 [rows, length] and
    ``tables`` int32 [groups, rows, blocks]. Tokens from ``query_start[R]`` on are padding: zeros throughout.
    """
    place = torch.arange(num_tokens, device=tokens.device)
    index = torch.searchsorted(query_start[1:].long(), place, right=True).clamp_(max=len(row_ids) - 1)
    real = place < query_start[-1]
    positions = torch.where(real, starts[index] + place - query_start[index], 0)
    rows = row_ids[index].long()
    token_ids = torch.where(real, tokens[rows, positions], 0).long()
    blocks = tables[:, rows, positions // block_size]
    return token_ids, positions, torch.where(real, blocks * block_size + positions % block_size, 0).long()


@locate.on_triton
def _locate(
    query_start: torch.Tensor,
    row_ids: torch.Tensor,
    starts: torch.Tensor,
    tokens: torch.Tensor,
    tables: torch.Tensor,
    block_size: int,
    num_tokens: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    num_groups, _, num_blocks = tables.shape
    token_ids, positions = torch.empty(2, num_tokens, dtype=torch.int64, device=tokens.device)
    slots = token_ids.new_empty(num_groups, num_tokens)
    _locate_kernel[(-(-num_tokens // TOKENS_A_PROGRAM),)](
        *(query_start, row_ids, starts, tokens, tables, token_ids, positions, slots),
        *(len(row_ids), num_tokens, tokens.stride(0), tables.stride(0), num_blocks),
        *(num_groups, block_size, TOKENS_A_PROGRAM),
        **early(tokens.device),
    )
    return token_ids, positions, slots


@jit(do_not_specialize=["num_rows", "num_tokens"])
def _locate_kernel(
    query_start,
    row_ids,
    starts,
    tokens,
    tables,
    token_ids,
    positions,
    slots,
    num_rows,
    num_tokens,
    row_stride,
    group_stride,
    num_blocks,
    NUM_GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    await_predecessor(EARLY)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = place < tl.load(query_start + num_rows)
    low = tl.zeros([BLOCK], dtype=tl.int32)  # the token's row is in [low, high)
    high = low + num_rows
    span = num_rows
    while span > 1:
        middle = (low + high) // 2
        after = tl.load(query_start + middle) <= place
        low, high = tl.where(after, middle, low), tl.where(after, high, middle)
        span = (span + 1) // 2
    position = tl.where(real, tl.load(starts + low) + place - tl.load(query_start + low), 0).to(tl.int64)
    row = tl.load(row_ids + low).to(tl.int64)
    token_id = tl.load(tokens + row * row_stride + position, mask=real, other=0)
    stored = place < num_tokens
    tl.store(token_ids + place, token_id.to(tl.int64), mask=stored)
    tl.store(positions + place, position, mask=stored)
    for group in range(NUM_GROUPS):
        entry = tables + group * group_stride + row * num_blocks + position // BLOCK_SIZE
        block = tl.load(entry, mask=real, other=0).to(tl.int64)
        slot = tl.where(real, block * BLOCK_SIZE + position % BLOCK_SIZE, 0)
        tl.store(slots + group * num_tokens + place, slot, mask=stored)
