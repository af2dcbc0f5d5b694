"""vLLM's modules and names, so that its users' scripts run once ``vllm`` is replaced by ``headrace``.

None of MODULES is a file: each holds all the names that ``headrace`` itself has, and NAMES are the ones only vLLM's
users know. Owns the tables; what a name stands for is loaded on first use.
"""

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = (
    *("beam_search", "engine.arg_utils", "engine.async_llm_engine", "engine.llm_engine", "entrypoints.llm", "inputs"),
    *("inputs.data", "logprobs", "lora.request", "outputs", "pooling_params", "sampling_params", "sequence"),
    *("tokenizers", "transformers_utils.tokenizer", "utils", "utils.argparse_utils", "v1.engine.async_llm"),
    *("v1.engine.llm_engine", "v1.sample.logits_processor"),
)
PACKAGES = ("lora", "transformers_utils", "v1", "v1.engine", "v1.sample")  # that they are in
NAMES = {
    "BatchUpdate": "headrace.runner.logits_processors:BatchUpdate",
    "ClassificationOutput": "headrace.types:ClassificationOutput",
    "ClassificationRequestOutput": "headrace.types:PoolingRequestOutput",
    "EmbeddingOutput": "headrace.types:EmbeddingOutput",
    "EmbeddingRequestOutput": "headrace.types:PoolingRequestOutput",
    "FlexibleArgumentParser": "headrace.cli.engine_args:FlexibleArgumentParser",
    "GuidedDecodingParams": "headrace.types:StructuredOutputsParams",
    "LogitsProcessor": "headrace.runner.logits_processors:LogitsProcessor",
    "Logprob": "headrace.types:Logprob",
    "LoRARequest": "headrace.frontend.validation:LoRARequest",
    "MoveDirectionality": "headrace.runner.logits_processors:MoveDirectionality",
    "PoolingOutput": "headrace.types:PoolingOutput",
    "PromptType": "headrace.frontend.door:Prompt",
    "RequestOutputKind": "headrace.types:OutputKind",
    "ScoringOutput": "headrace.types:ScoringOutput",
    "ScoringRequestOutput": "headrace.types:PoolingRequestOutput",
    "get_tokenizer": "transformers:AutoTokenizer.from_pretrained",
    "random_uuid": "headrace.frontend.async_engine:random_uuid",
}


class Finder:
    """Finds MODULES for ``import``, which asks it last: after all that are files."""

    def __init__(self, get: Callable[[str], Any]):
        self._get = get
        self._names = {f"headrace.{name}" for name in (*MODULES, *PACKAGES)}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name in self._names else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = self._get  # type: ignore[method-assign]


def serve(get: Callable[[str], Any]) -> None:
    """Let MODULES be imported; ``get`` gives their names' values, or raises AttributeError."""
    sys.meta_path.append(Finder(get))  # type: ignore[arg-type]
