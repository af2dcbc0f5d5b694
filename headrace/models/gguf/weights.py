"""A GGUF file's tensors as the weights of the checkpoint that it was made from. Knows no model but by its table."""

import re
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from headrace.models.gguf.architectures import Architecture, architecture_of, checkpoint_name
from headrace.models.gguf.blocks import int4_blocks
from headrace.models.gguf.facts import Facts
from headrace.models.gguf.reader import GgufFile, GgufTensor
from headrace.models.stored import Chunk
from headrace.ops import int8

DEQUANTIZE_AT_ONCE = 2**18  # elements: the temporary arrays stay in the cache, and Python's share of the time small
PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
# Part of the configuration (the rotary frequencies), or computed anew.
UNNEEDED = re.compile(r"^rope_(freqs|factors_long|factors_short)\.weight$|\.attn_rot_embd\.")


def gguf_chunks(path: Path, accepts: Callable[[str], bool]) -> list[Chunk]:
    """All tensors of the file (and its other parts) that are weights, each a chunk of its own.

    A matrix comes expanded, by its name ``….weight``; or, if the model ``accepts`` such names, as the ``….blocks`` of
    ``ops.int4`` or the ``….codes`` and ``….scales`` of ``ops.int8``.
    """
    file = GgufFile(path)
    architecture, facts = architecture_of(file), Facts(file)
    heads = facts("attention.head_count")
    by_projection = {"attn_q": heads, "attn_k": facts.get("attention.head_count_kv") or heads}
    return [
        _chunk(tensor, architecture, by_projection, accepts)
        for tensor in file.tensors.values()
        if not UNNEEDED.search(tensor.name)
    ]


def values(tensor: GgufTensor) -> torch.Tensor:
    """The values: F32, F16 and BF16 as they are (mapped, not copied), the rest dequantized to float32."""
    if tensor.kind in PLAIN:
        return torch.from_numpy(tensor.read()).view(PLAIN[tensor.kind]).view(tensor.shape)
    block, size = GGML_QUANT_SIZES[tensor.kind]
    blocks, step = tensor.read().reshape(-1, size), DEQUANTIZE_AT_ONCE // block
    result = np.empty((len(blocks), block), np.float32)
    for start in range(0, len(blocks), step):
        some = blocks[start : start + step]
        result[start : start + step] = dequantize(some.reshape(1, -1), tensor.kind).reshape(len(some), block)
    return torch.from_numpy(result).view(tensor.shape)


def int8_rows(tensor: GgufTensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix quantized anew, with one scale a row; expanded a few rows at a time."""
    codes, scales = torch.empty(tensor.shape, dtype=torch.int8), torch.empty(tensor.shape[0], dtype=torch.bfloat16)
    start = 0
    for part in tensor.split(max(DEQUANTIZE_AT_ONCE // tensor.shape[1], 1)):
        rows = slice(start, start + part.shape[0])
        codes[rows], scales[rows] = int8.quantize(values(part))
        start = rows.stop
    return codes, scales


def pairs_to_halves(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a q or k projection, ordered within each head for rotation in neighbouring pairs, as transformers has
    them: first all first members of the pairs, then all second ones."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _chunk(
    tensor: GgufTensor, architecture: Architecture, heads: dict[str, int], accepts: Callable[[str], bool]
) -> Chunk:
    """``heads``: how many the queries' and the keys' projections have."""
    name, stem = checkpoint_name(tensor.name, architecture), tensor.stem
    base, stacked = name.removesuffix(".weight"), "{slice}" in name

    def restore(value: torch.Tensor) -> torch.Tensor:
        if architecture.permuted and stem in heads:
            return pairs_to_halves(value, heads[stem])
        if architecture.norm_shift and name.endswith("norm.weight"):
            return value - architecture.norm_shift
        if stem in architecture.transposed:
            return value.t() if value.ndim == 2 else value
        if stem == architecture.heads_first:
            return value.unflatten(0, (3, heads["attn_q"], -1)).transpose(0, 1).flatten(0, 2)
        return value

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        if accepts(f"{base}.blocks"):
            yield f"{base}.blocks", restore(int4_blocks(tensor))
        elif accepts(f"{base}.codes"):
            codes, scales = int8_rows(tensor)
            yield f"{base}.codes", restore(codes)
            yield f"{base}.scales", restore(scales)
        else:
            for i, part in enumerate(tensor.slices() if stacked else [tensor]):
                yield name.format(slice=i), restore(values(part))

    at_once = prod(tensor.shape[1:] if stacked else tensor.shape)
    return Chunk(tensor.path, tensor.num_bytes, at_once * 4 + tensor.num_bytes, read)
