"""Triton, where kernels can run: ``@jit`` marks a kernel, ``tl`` is the language it is written in.

Without Triton the modules that hold kernels still import; ``registry.triton_unusable`` keeps them from being launched.
A machine without a GPU does without, too, as it takes 70 MB, unless it has been imported before: tests do that.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import torch

try:
    if not torch.accelerator.is_available() and "triton" not in sys.modules:
        raise ImportError("no kernel will run here")
    import triton.language as tl
    from triton import AsyncCompileMode, JITFunction, jit
except ImportError:
    tl = None

    def jit(function=None, **options):  # type: ignore[no-untyped-def,no-redef]
        return function or jit


@functools.cache
def early(device: torch.device) -> dict[str, bool]:
    """Launch options of kernels that call ``await_predecessor``: start before the kernel ahead ends, where that works.

    Source: "Programmatic Dependent Launch" in NVIDIA's CUDA programming guide; from compute capability 9.0 on.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"EARLY": True, "launch_pdl": True}
    return {"EARLY": False}


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Within it kernels are compiled, many at a time, where else they would run; so what they'd write isn't written."""
    from triton.runtime.errors import OutOfResources

    run, parse, parsing = JITFunction.run, ast.parse, threading.Lock()
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 16))
    submit = pool.submit
    device = torch.accelerator.current_device_index() if torch.accelerator.is_available() else None

    def parse_alone(*args: Any, **options: Any) -> ast.AST:
        with parsing:  # CPython 3.11 raises SystemError if two threads build syntax trees at a time
            return parse(*args, **options)

    def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> Any:
        return run(kernel, *args, warmup=True, **options)

    def compile_and_load(compile_kernel: Callable[[], Any]) -> Any:
        kernel = compile_kernel()
        if device is not None:
            torch.accelerator.set_device_index(device)  # this thread's
            with contextlib.suppress(OutOfResources):  # whoever launches it is told
                _ = kernel.run  # a C library for each signature, built here or else at the first launch
        return kernel

    with (
        mock.patch.object(ast, "parse", parse_alone),  # the first, as leaving the next two awaits the compilers
        pool,
        mock.patch.object(pool, "submit", lambda compile_kernel: submit(compile_and_load, compile_kernel)),
        AsyncCompileMode(pool),
        mock.patch.object(JITFunction, "run", compile_only),
    ):
        yield


@jit
def await_predecessor(EARLY: tl.constexpr):
    """Wait for what the kernel ahead writes, and let the next one start. Nothing else needs to be waited for.

    A kernel starts after all programs of the one ahead have waited, and so after all kernels before that have ended:
    every program has to come here, even one that has nothing to do.
    """
    if EARLY:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


__all__ = ["await_predecessor", "compiling", "early", "jit", "tl"]
