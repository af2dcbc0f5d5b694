"""GGUF's 4-bit blocks as a CPU multiplies them. Knows no model."""

import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from headrace.models.gguf.reader import GgufTensor

Kind = GGMLQuantizationType


def int4_blocks(tensor: GgufTensor) -> torch.Tensor:
    """A matrix [N, K] of kind Q4_0 or Q4_1 as the ``blocks`` uint8 [N, K / 32, 20] of ``ops.int4``."""
    raw = tensor.read().reshape(-1, GGML_QUANT_SIZES[tensor.kind][1])
    codes = raw[:, -16:]  # code i beside code i + 16
    blocks = np.empty((len(raw), 20), np.uint8)
    np.bitwise_or(codes[:, 0::2] & 15, codes[:, 1::2] << 4, out=blocks[:, :8])
    np.bitwise_or(codes[:, 0::2] >> 4, codes[:, 1::2] & 0xF0, out=blocks[:, 8:16])
    blocks[:, 16:18] = raw[:, :2]
    blocks[:, 18:] = raw[:, 2:4] if tensor.kind is Kind.Q4_1 else _minus_8(raw[:, :2])
    return torch.from_numpy(blocks).view(tensor.shape[0], -1, 20)


def _minus_8(scales: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """What a code's scale makes of -8, which codes of Q4_0 are counted from."""
    halves = np.ascontiguousarray(scales).view(np.float16)
    return (halves * np.float16(-8)).view(np.uint8)
