"""What the model and the options together settle: data type, context length, limits of a step, sampling defaults.

Each answer is found once, at start-up. Knows configs and devices; does not know layers or requests.
"""

import logging
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from transformers import PretrainedConfig

from headrace.config import MODEL_LEN_THAT_FITS, Config
from headrace.config.options import SAMPLING_KEYS
from headrace.device import GIB, total_memory
from headrace.errors import ConfigError
from headrace.models.pooling import Pooling
from headrace.models.quantized import PACKED_DTYPE, stays_packed
from headrace.models.registry import architecture_of
from headrace.types import SamplingParams

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
OFFSET_POSITIONS = ("roberta", "xlm-roberta")
LARGE_GPU = 70 * GIB


@dataclass(frozen=True)
class Facts:
    """The settled values."""

    dtype: torch.dtype
    max_model_len: int
    fit_model_len: bool  # shorten max_model_len to what the KV cache holds
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    eos_token_ids: list[int]
    default_sampling: dict[str, Any]
    chunked_prefill: bool
    prefix_caching: bool


def settle(
    config: Config,
    hf_config: PretrainedConfig,
    generation: dict[str, Any],
    device: torch.device,
    memory: int | None = None,
    pooling: Pooling | None = None,
) -> Facts:
    """Raises ``ConfigError`` if an option can't go with the model or the device.

    ``memory``: bytes of a device that is not there, for planning; those of ``device`` unless given.
    """
    text = hf_config.get_text_config()
    max_model_len = _max_model_len(config, text, pooling)
    # Where every token sees all others, a prompt is computed in one step, and depends on its end from its beginning.
    bidirectional = pooling is not None and architecture_of(hf_config).kind == "encoder"
    chunked = config.scheduler.enable_chunked_prefill and not bidirectional
    large = device.type == "cuda" and (memory or total_memory(device)) >= LARGE_GPU
    max_num_seqs = config.scheduler.max_num_seqs or (1024 if large else 256)
    least, batched = 1 if chunked else max_model_len, config.scheduler.max_num_batched_tokens
    if batched is None:
        batched = max(8192 if large else 2048, max_num_seqs, least)
    elif batched < least:
        why, remedy = "Without chunked prefill a step must hold a whole prompt", ", or enable chunked prefill"
        if bidirectional:
            why, remedy = "An encoder computes a prompt in one step", ""
        raise ConfigError(
            f"{why}: --max-num-batched-tokens {batched} is less than --max-model-len {max_model_len}; raise the one or "
            f"lower the other{remedy}."
        )
    return Facts(
        dtype=_dtype(config.model.dtype, text, device, torch.bfloat16 if pooling is None else torch.float16),
        max_model_len=max_model_len,
        fit_model_len=config.model.max_model_len == MODEL_LEN_THAT_FITS,
        max_num_batched_tokens=batched,
        max_num_seqs=max_num_seqs,
        block_size=config.cache.block_size or 16,
        eos_token_ids=_eos_token_ids(text, generation),
        default_sampling=_default_sampling(generation | config.model.override_generation_config),
        chunked_prefill=chunked,
        prefix_caching=config.cache.enable_prefix_caching
        and not bidirectional
        and (pooling is None or pooling.kind == "last"),
    )


def _dtype(name: str, config: PretrainedConfig, device: torch.device, shorter: torch.dtype) -> torch.dtype:
    """``shorter``: what takes float32's place on a GPU. float16 keeps an embedding's directions better."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        scheme = getattr(config, "quantization_config", None) or {}
        if isinstance(scheme, dict) and stays_packed(scheme.get("kinds", {}), PACKED_DTYPE, device) is None:
            return PACKED_DTYPE
        return torch.float32  # the fastest without bf16 instructions, and exact for every checkpoint
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else DTYPES.get(str(config.dtype))
    return stored if stored in (torch.float16, torch.bfloat16) else shorter


def _max_model_len(config: Config, text: PretrainedConfig, pooling: Pooling | None) -> int:
    window = getattr(text, "sliding_window", None) if config.model.disable_sliding_window else None
    limit = min(filter(None, (model_limit(text), pooling and pooling.max_length, window)), default=None)
    wanted = config.model.max_model_len
    if wanted is None or wanted == MODEL_LEN_THAT_FITS:
        if limit is None:
            raise ConfigError("The model's config.json names no context length; give one with --max-model-len.")
        return limit
    if limit is not None and wanted > limit and not config.model.allow_long_max_model_len:
        raise ConfigError(
            f"--max-model-len {wanted} is more than the {limit} tokens the model can take; use {limit} or less, or "
            "--allow-long-max-model-len if you know that its positions go further."
        )
    return wanted


def model_limit(text: PretrainedConfig) -> int | None:
    """The longest context, in tokens, that the model's positions are made for; None if its config doesn't say."""
    limit = next((value for key in LENGTH_KEYS if (value := getattr(text, key, None))), None)
    if limit is not None and text.model_type in OFFSET_POSITIONS:
        limit -= text.pad_token_id + 1  # whose rows no token takes
    rope = getattr(text, "rope_parameters", None) or {}
    kind, factor = rope.get("rope_type"), rope.get("factor")
    if limit is None or not factor:
        return limit
    if kind == "yarn":
        return max(limit, int((rope.get("original_max_position_embeddings") or limit) * factor))
    return int(limit * factor) if kind in ("linear", "dynamic") else limit


def _eos_token_ids(text: PretrainedConfig, generation: dict[str, Any]) -> list[int]:
    ids = generation.get("eos_token_id", getattr(text, "eos_token_id", None))
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _default_sampling(generation: dict[str, Any]) -> dict[str, Any]:
    """Those of the model's advised settings that requests can be given, by SamplingParams' names."""
    found = {name: generation[name] for name in SAMPLING_KEYS if generation.get(name) is not None}
    if (most := generation.get("max_new_tokens")) is not None:
        found["max_tokens"] = most
    if generation.get("do_sample") is False:
        found["temperature"] = 0.0
    try:
        msgspec.convert(found, SamplingParams)
    except msgspec.ValidationError as error:
        where = "generation_config.json or --override-generation-config"
        raise ConfigError(f"{where} has a default that can't be used: {str(error).rstrip('.')}.") from None
    if found:
        logger.info("Sampling defaults of the model: %s (--generation-config vllm turns them off)", found)
    return found
