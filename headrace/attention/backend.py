"""What every attention implementation provides, and what it is given each step."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class AttentionSpec:
    """The static facts of one attention layer, as its kernel sees them."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # multiplies q·k
    window: int | None = None  # a query sees its own and the window-1 tokens before it; None = all
    softcap: float = 0.0  # scores become softcap * tanh(scores / softcap); 0 = off
    sinks: bool = False  # a learned logit a head joins the softmax and is then dropped
    alibi: bool = False  # scores get slope_h * (key position - query position); no model has both this and sinks
    causal: bool = True  # else ``encode`` is called, not ``run``


@dataclass(frozen=True)
class PagedBatch:
    """One step's tokens as attention sees them, for one KV group. R rows, T tokens; rows with one token come first.

    The tensors lie on the device. Lists and integers are of the host, and do not hold for a replay of a captured step.
    """

    block_table: torch.Tensor  # int32 [persistent rows, blocks]: entries outside a layer's window may be stale
    slots: torch.Tensor  # int64 [T]: flat cache slot (block * block_size + offset) each token's K and V go to
    work: torch.Tensor  # int32: what the backend's ``plan`` made of the step
    rows: list[int]  # [R]: rows of the block table
    counts: list[int]  # [R]: query tokens
    contexts: list[int]  # [R]: tokens in the cache, those of this step included
    num_decodes: int  # leading rows with exactly one query token


@dataclass(frozen=True)
class StepInput:
    """What the layers get beside the hidden states: positions, and a PagedBatch for each KV group."""

    positions: torch.Tensor  # int64 [T]
    groups: tuple[PagedBatch, ...]
    embeds: tuple[torch.Tensor, torch.Tensor] | None = None  # tokens [E] whose embeddings [E, dim] came, no ids
    token_types: torch.Tensor | None = None  # int64 [T], for models that tell texts of a pair apart; None: all 0


class Backend(Protocol):
    """Attention of one kind of layer, causal over a paged cache (prefill, decode and mixed steps) or bidirectional."""

    name: str
    capturable: int  # if no row has more query tokens, what ``run`` launches depends on its tensors' shapes alone

    def __init__(self, spec: AttentionSpec, device: torch.device, dtype: torch.dtype): ...

    @staticmethod
    def supports(spec: AttentionSpec, device: torch.device, dtype: torch.dtype, block_size: int) -> str | None:
        """None if this backend can run such a layer, else the reason why not, as a sentence."""
        ...

    def plan(self, rows: Array, counts: Array, contexts: Array, num_decodes: int) -> Array:
        """How to divide a step's work, int32: each layer's ``run`` finds these numbers on the device in ``batch.work``.

        int64 [R] each: ``rows`` of the block table, their query tokens ``counts``, and ``contexts``, the tokens in the
        cache, those included. The first ``num_decodes`` rows have one query token each.
        """
        ...

    def most_work(self, num_tokens: int, num_rows: int) -> int:
        """How many numbers ``plan`` returns at most for steps of this size."""
        ...

    def run(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        batch: PagedBatch,
        sinks: torch.Tensor | None = None,
        alibi_slopes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend ``q`` [T, num_heads, head_dim] to the cache [num_blocks, block_size, num_kv_heads, head_dim].

        The caches are contiguous, and so is each token in ``q``; the step's own keys and values are cached already.
        ``sinks`` and ``alibi_slopes`` are float32 [num_heads]. Returns [T, num_heads, head_dim].
        """
        ...

    def encode(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """Attend each row's tokens to all tokens of that row, which are all in this step; there is no cache.

        ``q`` [T, num_heads, head_dim], ``k`` and ``v`` [T, num_kv_heads, head_dim]; only each token must be contiguous.
        Returns [T, num_heads, head_dim].
        """
        ...
