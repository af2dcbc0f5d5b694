import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> None:
    """A test draws the same numbers and logs the same lines whichever tests ran before it in its process."""
    torch.manual_seed(0)
    for name in ("headrace", "uvicorn"):
        logging.getLogger(name).setLevel(logging.NOTSET)
