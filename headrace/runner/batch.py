"""Gathers one step's batch from the persistent rows: tokens, positions, cache slots. Knows no sampling and no model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headrace.attention.backend import Backend, PagedBatch, StepInput
from headrace.device import to_device
from headrace.runner.rows import Rows
from headrace.types import Plan


@dataclass(frozen=True)
class Batch:
    """The device tensors of one step with R rows, T tokens and S sampled rows."""

    token_ids: torch.Tensor  # int64 [T]
    step: StepInput
    sampled_rows: torch.Tensor  # int64 [S]: indices of persistent rows
    sampled_positions: torch.Tensor  # int64 [S]: where the sampled tokens will stand
    sampled_tokens: torch.Tensor  # int64 [S]: indices into T of the tokens whose logits are sampled


def gather(plan: Plan, rows: Rows, block_size: int, backends: Sequence[Backend]) -> Batch:
    """The batch of ``plan``, whose changes ``rows`` holds already. One small copy to the device; nothing is awaited.

    ``backends``: that of each KV group's layers.
    """
    counts = np.asarray(plan.counts, dtype=np.int64)
    num_rows, num_tokens = len(plan.rows), int(counts.sum())
    query_start = np.zeros(num_rows + 1, dtype=np.int64)
    np.cumsum(counts, out=query_start[1:])
    starts = np.asarray(plan.starts, dtype=np.int64)
    num_decodes = int((counts == 1).cumprod().sum())
    contexts = starts + counts
    works = [backend.plan(counts, contexts, num_decodes) for backend in backends]
    parts = (query_start, np.asarray(plan.rows, np.int64), starts, np.asarray(plan.sampled, np.int64), *works)
    packed = to_device(torch.from_numpy(np.concatenate(parts)), rows.device)
    query_start_d, rows_d, starts_d, sampled, *works_d = packed.split([len(part) for part in parts])

    counts_d = query_start_d.diff()
    index = torch.arange(num_rows, device=rows.device).repeat_interleave(counts_d, output_size=num_tokens)
    positions = torch.arange(num_tokens, device=rows.device) + (starts_d - query_start_d[:-1])[index]
    token_rows = rows_d[index]
    context_lens = starts_d + counts_d
    context_lens_host = contexts.tolist()
    longest = max(context_lens_host)
    groups = []
    for tables, work in zip(rows.tables, works_d, strict=True):
        blocks = tables[token_rows, positions // block_size].long()
        groups.append(
            PagedBatch(
                query_start=query_start_d.int(),
                context_lens=context_lens.int(),
                block_table=tables[rows_d, : -(-longest // block_size)],
                slots=blocks * block_size + positions % block_size,
                query_lens_host=plan.counts,
                context_lens_host=context_lens_host,
                max_query_len=max(plan.counts),
                max_context_len=longest,
                num_decodes=num_decodes,
                work=work.int(),
            )
        )
    return Batch(
        token_ids=rows.tokens[token_rows, positions].long(),
        step=StepInput(positions, tuple(groups)),
        sampled_rows=rows_d[sampled],
        sampled_positions=context_lens[sampled],
        sampled_tokens=query_start_d[1:][sampled] - 1,
    )
