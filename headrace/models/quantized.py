"""Which quantization ``Method`` each matrix of a model gets: decided here, once, and logged.

Knows how checkpoints say that they are quantized and what devices can multiply; knows no layer and no kernel.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping

import torch

from headrace.models.names import renamed
from headrace.models.spec import Spec
from headrace.quant.method import MethodFor, Unquantized, unquantized
from headrace.quant.packed import Int4Blocks, Int8Rows, products

logger = logging.getLogger(__name__)

INT4 = {"Q4_0", "Q4_1"}  # 4-bit codes in blocks of 32, each with a scale and a minimum: nothing is lost
# GGUF's others get 8-bit codes with one scale a row, which loses little of 8 bits and less of fewer.
FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
PACKED_DTYPE = torch.bfloat16  # of the activations that the packed kernels are fast with


def stays_packed(kinds: Mapping[str, str], dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a model whose matrices are quantized like ``kinds`` is expanded nevertheless; None if it isn't."""
    if not kinds:
        return "not all of its matrices are quantized"
    if device.type != "cpu":
        return f"there are no kernels for it on {device.type} yet"
    if dtype != PACKED_DTYPE:
        return f"--dtype {str(dtype).removeprefix('torch.')} asks for exact products; bfloat16 multiplies it as it is"
    return None


def method_for(spec: Spec, dtype: torch.dtype, device: torch.device) -> MethodFor:
    """The method of each matrix, by the decoder's name for it."""
    if reason := stays_packed(spec.quantized, dtype, device):
        if spec.quantized:
            logger.info("The quantized weights are expanded to %s: %s", str(dtype).removeprefix("torch."), reason)
        return unquantized
    kinds: dict[str, set[str]] = defaultdict(set)
    for name, kind in spec.quantized.items():
        own, _ = renamed(name, spec.renames)
        if own is not None:
            path, _, last = own.removesuffix(".weight").rpartition(".")
            kinds[f"{path}.{FUSED.get(last, last)}".lstrip(".")].add(kind)
    best, counts = products(), Counter(spec.quantized.values())
    logger.info(
        "Weights stay quantized (%s): fastest on %s is to multiply up to %d rows by them as they are, more by their %s",
        ", ".join(f"{count} {kind}" for kind, count in counts.most_common()),
        best.cpu,
        best.few_rows,
        f"values in {str(best.dtype).removeprefix('torch.')}",
    )
    methods = {path: Int4Blocks() if found <= INT4 else Int8Rows() for path, found in kinds.items()}
    return lambda path: methods.get(path) or Unquantized()
