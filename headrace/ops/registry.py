"""Which implementation of an op runs where: chosen once per op and device type, and logged with the reasons.

Owns that choice and the loading of Triton, which happens at the first launch of a kernel, so that an installation
without Triton imports every op. Knows no op.
"""

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

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


class Kernel:
    """Triton code, compiled when first launched: ``kernel[grid](...)``.

    The first launch of any of a module's kernels loads Triton and turns all of that module's kernels, and the
    functions they call, into ``triton.jit`` functions; it also sets the module's ``tl``, which the module itself
    imports for type checkers only.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._compiled: Any = None

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        if self._compiled is None:
            load_kernels(self.function.__globals__)
        return self._compiled[grid]

    def compile(self, jit: Callable[..., Any]) -> Any:
        self._compiled = self._compiled or jit(self.function)
        return self._compiled


def kernel(function: Callable[..., Any]) -> Any:
    """Mark a function as Triton code, as ``triton.jit`` would, without loading Triton."""
    return Kernel(function)


def load_kernels(module: dict[str, Any]) -> None:
    """Let Triton take over a module's kernels: it looks up what a kernel names among the module's globals."""
    triton = importlib.import_module("triton")
    module["tl"] = importlib.import_module("triton.language")
    for name, value in list(module.items()):
        if isinstance(value, Kernel):
            module[name] = value.compile(triton.jit)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
