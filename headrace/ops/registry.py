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

import torch

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

TRITON_DEVICES = ("cuda", "xpu")


class Op(Generic[P, R]):
    """An op as its callers see it: dispatches on the device of its first argument, a tensor.

    Made of a torch ``reference``, which serves every device and defines what is right; ``@that_op.kernel`` adds the
    Triton implementation of the same signature.
    """

    def __init__(self, reference: Callable[P, R]):
        self.reference = reference
        self.triton: Callable[P, R] | None = None
        self._chosen: dict[str, Callable[P, R]] = {}
        functools.update_wrapper(self, reference)

    def kernel(self, implementation: Callable[P, R]) -> Callable[P, R]:
        self.triton = implementation
        return implementation

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        device_type = args[0].device.type  # type: ignore[attr-defined]
        chosen = self._chosen.get(device_type) or self._choose(device_type)
        return chosen(*args, **kwargs)

    def _choose(self, device_type: str) -> Callable[P, R]:
        reason = "it has none" if self.triton is None else triton_unusable(device_type)
        name = self.reference.__name__
        if self.triton is None or reason is not None:
            logger.info("%s on %s: torch (Triton kernel rejected: %s)", name, device_type, reason)
            self._chosen[device_type] = self.reference
        else:
            logger.info("%s on %s: Triton kernel", name, device_type)
            self._chosen[device_type] = self.triton
        return self._chosen[device_type]


def op(reference: Callable[P, R]) -> Op[P, R]:
    """Make an op of its torch reference."""
    return Op(reference)


def triton_unusable(device_type: str) -> str | None:
    """Why Triton kernels can't run on such a device, or None if they can."""
    if device_type not in TRITON_DEVICES:
        return f"Triton compiles nothing for {device_type}"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


class Kernel:
    """A Triton kernel, or a function that kernels call, compiled when first launched: ``kernel[grid](...)``.

    The first launch of any of a module's kernels loads Triton and turns all of that module's kernels into
    ``triton.jit`` functions; it also gives the module the name ``tl``, which it imports for type checkers only.
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


def kernel(function: Callable[..., Any]) -> Kernel:
    """Mark a function as Triton code, as ``triton.jit`` would, without loading Triton."""
    return Kernel(function)


def load_kernels(module: dict[str, Any]) -> None:
    """Let Triton take over a module's kernels; Triton resolves what a kernel names among the module's globals."""
    triton = importlib.import_module("triton")
    module["tl"] = importlib.import_module("triton.language")
    for name, value in list(module.items()):
        if isinstance(value, Kernel):
            module[name] = value.compile(triton.jit)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def on_device_of(tensor: torch.Tensor) -> Any:
    """Context in which Triton launches on the tensor's device, also where that isn't the current one."""
    return torch.get_device_module(tensor.device.type).device(tensor.device)
