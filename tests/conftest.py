import logging
import socket
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> None:
    """A test draws the same numbers and logs the same lines whichever tests ran before it in its process."""
    torch.manual_seed(0)
    for name in ("headrace", "uvicorn"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def port() -> Iterator[int]:
    """A port at which nobody listens: held, so that the system gives it to no one, but free to who asks for it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
