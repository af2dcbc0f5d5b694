"""How weights and cached keys and values may be stored: bits, scales and the numbers they are multiplied as.

For planning: also knows formats that Headrace can't multiply yet. Layouts: docs of AutoAWQ, GPTQ and compressed-tensors
for the packed formats, the gguf package for llama.cpp's blocks.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from headrace.config import nearest
from headrace.errors import ConfigError


@dataclass(frozen=True)
class WeightFormat:
    """A stored matrix: ``bits`` a weight, and ``scale_bits`` for each ``group`` of inputs of each output."""

    name: str
    bits: float
    group: int | None = None  # None: one scale for all inputs of an output
    scale_bits: float = 0  # of a group's scale and zero point
    number: str = ""  # multiplied as fp8 or int8; "": expanded to the model's dtype first
    embeddings: bool = False  # embeddings and head are stored so, too

    def num_bytes(self, outputs: int, inputs: int) -> int:
        groups = -(-inputs // self.group) if self.group else 1
        return int(outputs * (inputs * self.bits + groups * self.scale_bits) / 8)


AWQ = WeightFormat("awq", 4, 128, 16 + 4)  # a float16 scale and a 4-bit zero point
GPTQ = WeightFormat("gptq", 4, 128, 16 + 4)
FP8 = WeightFormat("fp8", 8, number="fp8")
INT8 = WeightFormat("int8", 8, scale_bits=32, number="int8")  # W8A8: a float32 scale for each output
NAMED = {"awq": AWQ, "awq_marlin": AWQ, "gptq": GPTQ, "gptq_marlin": GPTQ, "fp8": FP8, "int8": INT8, "w8a8": INT8}
CACHE_DTYPES = {
    "auto": None,  # the model's own
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def blocks_of_gguf() -> dict[str, WeightFormat]:
    """llama.cpp's block formats by their lower-case names, such as q4_k."""
    from gguf.constants import GGML_QUANT_SIZES

    return {
        kind.name.lower(): WeightFormat(kind.name, 8 * num_bytes / size, embeddings=True)
        for kind, (size, num_bytes) in GGML_QUANT_SIZES.items()
        if size > 1
    }


def weight_format(name: str | None, scheme: dict[str, Any]) -> WeightFormat | None:
    """What ``--quantization name`` means, or without it the ``quantization_config`` of a checkpoint; None: as it is.

    Bits and group size are the checkpoint's where it says so. A GGUF file's own matrices are what the engine makes of
    them, so they are None, too.
    """
    own = scheme.get("quant_method")
    if name == "gguf" and own != "gguf":
        raise ConfigError("--quantization gguf needs a GGUF file as the model; for others name a type, such as q4_k.")
    asked = name or own
    if asked in (None, "none", "gguf"):
        return None
    if asked == "compressed-tensors":
        return compressed_tensors(scheme)
    known = NAMED | blocks_of_gguf()
    found = known.get(asked.lower().replace("-", "_"))
    if found is None:
        raise ConfigError(
            f"The quantization {asked} is not known{nearest(asked.lower(), known)} "
            f"Known are none, gguf (a file's own types), {', '.join(NAMED)} and GGUF's types such as q4_0 and q4_k."
        )
    if own == found.name and "bits" in scheme:
        bits, group = int(scheme["bits"]), int(scheme.get("group_size") or 0)
        return replace(found, bits=bits, group=max(group, 0) or None, scale_bits=16 + bits)
    return found


def compressed_tensors(scheme: dict[str, Any]) -> WeightFormat:
    """Of a checkpoint in that format: the weights of its first group of layers, nearly always the only one."""
    group: dict[str, Any] = next(iter(scheme.get("config_groups", {}).values()), {})
    weights = group.get("weights") or {}
    bits, size = weights.get("num_bits"), weights.get("group_size")
    if bits not in (4, 8):
        raise ConfigError(
            "The checkpoint's quantization_config (compressed-tensors) doesn't tell the bits of a weight."
        )
    both = bits == 8 and group.get("input_activations")  # else the weights alone are stored so
    number = {"float": "fp8", "int": "int8"}.get(weights.get("type", "int"), "") if both else ""
    return WeightFormat("compressed-tensors", bits, size if size and size > 0 else None, 16, number)


def cache_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type of cached keys and values that ``--kv-cache-dtype name`` means in a model of ``dtype``."""
    if name not in CACHE_DTYPES:
        raise ConfigError(f"--kv-cache-dtype {name} is not known; a plan knows {', '.join(CACHE_DTYPES)}.")
    return CACHE_DTYPES[name] or dtype
