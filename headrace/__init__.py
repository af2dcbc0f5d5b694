"""Headrace, an LLM inference and serving engine. Public names load on first use, so that importing this is cheap."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "LLM": "headrace.frontend.llm",
    "AsyncLLM": "headrace.frontend.async_llm",
    "AsyncEngineArgs": "headrace.config",
    "EngineArgs": "headrace.config",
    "Config": "headrace.config",
    "BeamSearchParams": "headrace.frontend.beam",
    "PoolingParams": "headrace.types",
    "PoolingRequestOutput": "headrace.types",
    "SamplingParams": "headrace.types",
    "StructuredOutputsParams": "headrace.types",
    "RequestOutput": "headrace.types",
    "CompletionOutput": "headrace.types",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from headrace.config import AsyncEngineArgs, Config, EngineArgs
    from headrace.frontend.async_llm import AsyncLLM
    from headrace.frontend.beam import BeamSearchParams
    from headrace.frontend.llm import LLM
    from headrace.types import (
        CompletionOutput,
        PoolingParams,
        PoolingRequestOutput,
        RequestOutput,
        SamplingParams,
    )


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
