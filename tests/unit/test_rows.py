"""The rows of running requests."""

import pytest
import torch

from headrace.errors import ConfigError
from headrace.runner.rows import Rows


def test_rows_larger_than_the_memory_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lower --max-num-seqs or --max-model-len\.$"):
        Rows(2_000_000_000, 8192, 1, 16, torch.device("cpu"))
