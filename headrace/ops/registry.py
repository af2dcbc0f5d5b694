"""Which implementation of an op runs where: chosen once per op and device type, and logged with the reasons.

Owns that choice; knows no op.
"""

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

TRITON_DEVICES = ("cuda", "xpu")


class Op(Generic[P, R]):
    """An op as its callers see it: dispatches on the device of its first argument, a tensor.

    Made of a torch ``reference``, which serves every device and defines what is right; ``@the_op.on_triton`` adds a
    Triton implementation with the same signature.
    """

    def __init__(self, reference: Callable[P, R]):
        self.reference = reference
        self.triton = reference
        self._chosen: dict[str, Callable[P, R]] = {}
        functools.update_wrapper(self, reference)

    def on_triton(self, implementation: Callable[P, R]) -> Callable[P, R]:
        self.triton = implementation
        return implementation

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        device_type = args[0].device.type  # type: ignore[attr-defined]
        chosen = self._chosen.get(device_type) or self._choose(device_type)
        return chosen(*args, **kwargs)

    def _choose(self, device_type: str) -> Callable[P, R]:
        reason = triton_unusable(device_type)
        choice = "Triton" if reason is None else f"torch (rejected Triton: {reason})"
        logger.info("%s on %s: %s", self.reference.__name__, device_type, choice)
        self._chosen[device_type] = self.triton if reason is None else self.reference
        return self._chosen[device_type]


def op(reference: Callable[P, R]) -> Op[P, R]:
    """Make an op of its torch reference."""
    return Op(reference)


def triton_unusable(device_type: str) -> str | None:
    """Why Triton kernels can't run on such a device, or None if they can."""
    if device_type not in TRITON_DEVICES:
        return f"it compiles nothing for {device_type}"
    if importlib.util.find_spec("triton") is None:
        return "it is not installed"
    return None


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
