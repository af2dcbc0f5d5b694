import logging
import socket
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.load_profile("ci")  # the same examples in every run, however slow the machine is


@pytest.fixture(autouse=True)
def as_in_a_new_process() -> Iterator[None]:
    """A test draws the same numbers, and logs the same lines to the same places, whichever ran before it."""
    torch.manual_seed(0)
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield
    root.handlers[:] = handlers  # without those that a command of ours has set up
    for name in ("headrace", "uvicorn"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def port() -> Iterator[int]:
    """A port at which nobody listens: held, so that the system gives it to no one, but free to who asks for it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
