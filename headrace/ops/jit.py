"""Triton, where it is installed: ``@jit`` marks a kernel, ``tl`` is the language it is written in.

Without Triton the modules that hold kernels still import; ``registry.triton_unusable`` keeps them from being launched.
"""

try:
    import triton.language as tl
    from triton import jit
except ImportError:
    tl = None

    def jit(function=None, **options):  # type: ignore[no-untyped-def,no-redef]
        return function or jit


__all__ = ["jit", "tl"]
