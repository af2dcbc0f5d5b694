"""Which steps are captured as CUDA graphs; that they give what others give is tested on a GPU."""

from typing import Any

import pytest

from headrace.config import Config
from headrace.runner.graphs import LARGEST, capture_sizes


@pytest.mark.parametrize(
    ("options", "limit", "num_rows", "largest"),
    [
        ({}, 8192, 1024, 1024),  # every number of decoding rows
        ({}, 8192, 64, LARGEST),  # and prefill beside them
        ({}, 100, 64, 100),
        ({"max_cudagraph_capture_size": 48}, 8192, 256, 48),
        ({"cudagraph_capture_sizes": [16, 3, 16]}, 8192, 256, 16),
    ],
)
def test_sizes_to_capture(options: dict[str, Any], limit: int, num_rows: int, largest: int) -> None:
    sizes = capture_sizes(Config.from_kwargs(**options), limit, num_rows)
    assert sizes == sorted(set(sizes)) and sizes[-1] == largest
    assert options.get("cudagraph_capture_sizes") or {1, 2, 4, 8, 16, 32} < set(sizes)


def test_nothing_is_captured_if_all_is_to_be_eager() -> None:
    assert capture_sizes(Config.from_kwargs(enforce_eager=True), 8192, 256) == []
