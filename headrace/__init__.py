"""Headrace, an LLM inference and serving engine. Public names load on first use, so that importing this is cheap."""

import importlib
import operator
from typing import TYPE_CHECKING, Any

from headrace import vllm_names

__version__ = "0.1.0"

_PUBLIC = {
    "LLM": "headrace.frontend.llm:LLM",
    "LLMEngine": "headrace.frontend.llm_engine:LLMEngine",
    "AsyncLLM": "headrace.frontend.async_llm:AsyncLLM",
    "AsyncLLMEngine": "headrace.frontend.async_engine:AsyncLLMEngine",
    "AsyncEngineArgs": "headrace.cli.engine_args:EngineArgs",
    "EngineArgs": "headrace.cli.engine_args:EngineArgs",
    "Config": "headrace.config:Config",
    "BeamSearchParams": "headrace.frontend.beam:BeamSearchParams",
    "PoolingParams": "headrace.types:PoolingParams",
    "PoolingRequestOutput": "headrace.types:PoolingRequestOutput",
    "SamplingParams": "headrace.types:SamplingParams",
    "StructuredOutputsParams": "headrace.types:StructuredOutputsParams",
    "RequestOutput": "headrace.types:RequestOutput",
    "CompletionOutput": "headrace.types:CompletionOutput",
    "TextPrompt": "headrace.frontend.door:TextPrompt",
    "TokensPrompt": "headrace.frontend.door:TokensPrompt",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from headrace.cli.engine_args import EngineArgs
    from headrace.cli.engine_args import EngineArgs as AsyncEngineArgs
    from headrace.config import Config
    from headrace.frontend.async_engine import AsyncLLMEngine
    from headrace.frontend.async_llm import AsyncLLM
    from headrace.frontend.beam import BeamSearchParams
    from headrace.frontend.door import TextPrompt, TokensPrompt
    from headrace.frontend.llm import LLM
    from headrace.frontend.llm_engine import LLMEngine
    from headrace.types import (
        CompletionOutput,
        PoolingParams,
        PoolingRequestOutput,
        RequestOutput,
        SamplingParams,
        StructuredOutputsParams,
    )


def __getattr__(name: str) -> Any:
    place = _PUBLIC.get(name) or vllm_names.NAMES.get(name)
    if place is None:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    module, _, attribute = place.partition(":")
    return operator.attrgetter(attribute)(importlib.import_module(module))


vllm_names.serve(__getattr__)
