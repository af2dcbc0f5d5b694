"""The rows of running requests."""

import pytest
import torch

from headrace.errors import ConfigError
from headrace.runner.rows import Rows
from headrace.types import NewRow, SamplingParams


def test_rows_larger_than_the_memory_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lower --max-num-seqs or --max-model-len\.$"):
        Rows(2_000_000_000, 8192, 1, 16, torch.device("cpu"))


def test_a_row_keeps_its_allowed_tokens_on_the_device_until_it_is_freed() -> None:
    rows = Rows(2, 16, 1, 16, torch.device("cpu"))
    params = SamplingParams(allowed_token_ids=[5, 3])
    rows.apply([], [NewRow(1, "a", [1, 2], 2, params, 0, [])], [])
    assert {row: ids.tolist() for row, ids in rows.allowed.items()} == {1: [5, 3]}
    rows.apply([1], [NewRow(1, "b", [1], 1, SamplingParams(), 0, [])], [])
    assert not rows.allowed
