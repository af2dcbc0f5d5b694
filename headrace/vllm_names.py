"""vLLM's modules and names, so that its users' scripts run once ``vllm`` is replaced by ``headrace``.

None of MODULES is a file: each holds all the names that ``headrace`` itself has, and NAMES are the ones only vLLM's
users know. Owns the tables; what a name stands for is loaded on first use.
"""

import base64
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = (
    *("beam_search", "distributed", "engine.arg_utils", "engine.async_llm_engine", "engine.llm_engine"),
    *("entrypoints.llm", "inputs", "inputs.data", "logger", "logprobs", "lora.request", "outputs", "pooling_params"),
    *("sampling_params", "sequence", "tokenizers", "transformers_utils.tokenizer", "utils", "utils.argparse_utils"),
    *("utils.print_utils", "utils.serial_utils", "v1.engine.async_llm", "v1.engine.llm_engine", "v1.metrics.reader"),
    *("v1.sample.logits_processor", "v1.sample.logits_processor.builtin", "version"),
)
PACKAGES = ("lora", "transformers_utils", "v1", "v1.engine", "v1.metrics", "v1.sample")  # that they are in
NAMES = {
    "AdapterLogitsProcessor": "headrace.runner.logits_processors:AdapterLogitsProcessor",
    "BatchUpdate": "headrace.runner.logits_processors:BatchUpdate",
    "ClassificationOutput": "headrace.types:ClassificationOutput",
    "ClassificationRequestOutput": "headrace.types:PoolingRequestOutput",
    "Counter": "headrace.frontend.readings:Counter",
    "EmbeddingOutput": "headrace.types:EmbeddingOutput",
    "EmbeddingRequestOutput": "headrace.types:PoolingRequestOutput",
    "FlexibleArgumentParser": "headrace.cli.engine_args:FlexibleArgumentParser",
    "Gauge": "headrace.frontend.readings:Gauge",
    "GuidedDecodingParams": "headrace.types:StructuredOutputsParams",
    "Histogram": "headrace.frontend.readings:Histogram",
    "LogitsProcessor": "headrace.runner.logits_processors:LogitsProcessor",
    "Logprob": "headrace.types:Logprob",
    "LoRARequest": "headrace.frontend.validation:LoRARequest",
    "Metric": "headrace.frontend.readings:Metric",
    "MoveDirectionality": "headrace.runner.logits_processors:MoveDirectionality",
    "PoolingOutput": "headrace.types:PoolingOutput",
    "PromptType": "headrace.frontend.door:Prompt",
    "RequestLogitsProcessor": "headrace.runner.logits_processors:RequestLogitsProcessor",
    "RequestOutputKind": "headrace.types:OutputKind",
    "ScoringOutput": "headrace.types:ScoringOutput",
    "ScoringRequestOutput": "headrace.types:PoolingRequestOutput",
    "Vector": "headrace.frontend.readings:Vector",
    "cleanup_dist_env_and_memory": "headrace.frontend.llm:free_memory",
    "get_tokenizer": "transformers:AutoTokenizer.from_pretrained",
    "init_logger": "logging:getLogger",
    "print_embeddings": "headrace.vllm_names:print_embeddings",
    "process_dict_updates": "headrace.runner.logits_processors:process_dict_updates",
    "random_uuid": "headrace.frontend.async_engine:random_uuid",
    "tensor2base64": "headrace.vllm_names:tensor2base64",
}


def print_embeddings(embeds: list[float], prefix: str = "Embeddings") -> None:
    """Print an embedding's first four numbers and its size."""
    first = ", ".join(map(str, embeds[:4]))
    print(f"{prefix}: [{first}{', ...' * (len(embeds) > 4)}] (size={len(embeds)})")


def tensor2base64(x: Any) -> str:
    """A tensor as requests carry prompt embeddings here: a safetensors file in base64."""
    from safetensors.torch import save

    return base64.b64encode(save({"prompt_embeds": x.contiguous()})).decode()


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
