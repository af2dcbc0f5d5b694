"""The persistent device rows: all tokens, the block tables and the sampling parameters of each running request.

Rows change only when a request starts or gains blocks; each step's batch is gathered from them. Knows no schedule.
"""

from collections.abc import Callable

import numpy as np
import torch

from headrace.device import GIB, to_device, total_memory
from headrace.errors import ConfigError
from headrace.types import NewBlocks, NewRow

# What a row may ask for beyond a plain draw. Steps look after those rows alone, so the others cost nothing.
WISHES: dict[str, Callable[[NewRow], bool]] = {
    "restrict": lambda row: bool(
        row.params.logit_bias
        or row.params.allowed_token_ids is not None
        or row.params.min_tokens
        or row.bad_word_ids
        or row.params.trace_decode_token_ids
    ),
    "penalize": lambda row: bool(
        row.params.presence_penalty or row.params.frequency_penalty or row.params.repetition_penalty != 1
    ),
    "logprobs": lambda row: row.params.logprobs is not None,
    "prompt_logprobs": lambda row: row.params.prompt_logprobs is not None,
    "embeds": lambda row: row.embeds is not None,
}


class Rows:
    """Device tensors: tokens int32 [R, max_model_len], tables int32 [groups, R, blocks], sampling parameters.

    The last row is ``spare``: no request's, with block 0 in all its tables. Trial steps and padding use it.
    """

    def __init__(self, num_rows: int, max_model_len: int, num_groups: int, block_size: int, device: torch.device):
        self.device = device
        self.spare, self.max_model_len = num_rows, max_model_len
        self.max_blocks = -(-max_model_len // block_size)
        size = 4 * (num_rows + 1) * (max_model_len + num_groups * self.max_blocks)
        if size > total_memory(device):
            raise ConfigError(
                f"The token ids and block tables of {num_rows:,} requests of up to {max_model_len:,} tokens take "
                f"{size / GIB:,.0f} GiB, more than there is; lower --max-num-seqs or --max-model-len."
            )
        self.tokens = torch.zeros(num_rows + 1, max_model_len, dtype=torch.int32, device=device)
        self.tables = torch.zeros(num_groups, num_rows + 1, self.max_blocks, dtype=torch.int32, device=device)
        self.floats = torch.zeros(3, num_rows + 1, device=device)  # temperature, top_p, min_p
        self.integers = torch.zeros(2, num_rows + 1, dtype=torch.int64, device=device)  # seed, top_k
        self.allowed: dict[int, torch.Tensor] = {}  # by row: allowed_token_ids, maybe half of the vocabulary
        self.facts: list[NewRow | None] = [None] * num_rows  # the host's copy of what never changes
        self._wishing: dict[str, set[int]] = {wish: set() for wish in WISHES}

    def apply(self, freed: list[int], new_rows: list[NewRow], new_blocks: list[NewBlocks]) -> None:
        """Bring the rows up to date with a plan."""
        for index in freed:
            self.facts[index] = None
            self.allowed.pop(index, None)
            for rows in self._wishing.values():
                rows.discard(index)
        for row in new_rows:
            self._start(row)
        if new_blocks:
            self._extend_tables(new_blocks)

    def fact(self, row: int) -> NewRow:
        fact = self.facts[row]
        if fact is None:
            raise RuntimeError(f"row {row} is planned but holds no request")
        return fact

    def wishing(self, wish: str, rows: list[int]) -> list[int]:
        """The places in ``rows`` of those that ask for one of ``WISHES``."""
        wishing = self._wishing[wish]
        return [place for place, row in enumerate(rows) if row in wishing] if wishing else []

    def _start(self, row: NewRow) -> None:
        params = row.params
        self.facts[row.row] = row
        for wish, asks in WISHES.items():
            if asks(row):
                self._wishing[wish].add(row.row)
        token_ids = torch.from_numpy(np.asarray(row.token_ids, dtype=np.int32))
        self.tokens[row.row, : len(row.token_ids)] = to_device(token_ids, self.device)
        if row.pooling is not None:
            return  # nothing is sampled
        if params.allowed_token_ids is not None:
            self.allowed[row.row] = to_device(torch.tensor(params.allowed_token_ids), self.device)
        floats = torch.tensor([params.temperature, params.top_p, params.min_p])
        self.floats[:, row.row] = to_device(floats, self.device)
        self.integers[:, row.row] = to_device(torch.tensor([row.seed, params.top_k]), self.device)

    def _extend_tables(self, new_blocks: list[NewBlocks]) -> None:
        """Write all new entries with one copy: flat positions in the tables, and block ids."""
        num_rows = self.tables.shape[1]
        places = [
            np.arange(len(new.block_ids), dtype=np.int64)
            + ((new.group * num_rows + new.row) * self.max_blocks + new.offset)
            for new in new_blocks
        ]
        ids = [np.asarray(new.block_ids, dtype=np.int64) for new in new_blocks]
        pair = to_device(torch.from_numpy(np.stack([np.concatenate(places), np.concatenate(ids)])), self.device)
        self.tables.view(-1)[pair[0]] = pair[1].int()
