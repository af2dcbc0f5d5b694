"""A GGUF file's tensors as the weights of the checkpoint that it was made from. Knows no model but by its table."""

import re
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from headrace.errors import ConfigError
from headrace.models.gguf.architectures import LAYER_NAMES, MODEL_NAMES, Architecture, architecture_of
from headrace.models.gguf.facts import Facts
from headrace.models.gguf.reader import GgufFile, GgufTensor
from headrace.models.stored import Chunk

DEQUANTIZE_AT_ONCE = 2**18  # elements: the temporary arrays stay in the cache, and Python's share of the time small
PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
# Part of the configuration (the rotary frequencies), or computed anew.
UNNEEDED = re.compile(r"^rope_(freqs|factors_long|factors_short)\.weight$|\.attn_rot_embd\.")


def gguf_chunks(path: Path) -> list[Chunk]:
    """All tensors of the file (and its other parts) that are weights, each a chunk of its own."""
    file = GgufFile(path)
    architecture, facts = architecture_of(file), Facts(file)
    heads, kv_heads = facts("attention.head_count"), facts.get("attention.head_count_kv")
    return [
        _chunk(tensor, architecture, checkpoint_name(tensor.name, architecture), heads, kv_heads or heads)
        for tensor in file.tensors.values()
        if not UNNEEDED.search(tensor.name)
    ]


def checkpoint_name(name: str, architecture: Architecture) -> str:
    """The checkpoint's name of the tensor that the file calls ``name``; ``{slice}`` in it counts a stack's tensors."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    layer, stem, kind = found.groups() if found else (None, name, "")
    if layer is None and stem == "output":
        return f"{architecture.head}.{kind}"
    table = (MODEL_NAMES if layer is None else LAYER_NAMES) | dict(architecture.names)
    if stem not in table:
        raise ConfigError(f"The GGUF file holds {name!r}, which {architecture.architecture} has no place for.")
    inside = "" if layer is None else f"{architecture.layers}.{layer}."
    return f"{architecture.model}.{inside}{table[stem]}.{kind}"


def values(tensor: GgufTensor) -> torch.Tensor:
    """The values: F32, F16 and BF16 as they are (mapped, not copied), the rest dequantized to float32."""
    raw = np.memmap(tensor.path, np.uint8, "c", tensor.offset, (tensor.num_bytes,))
    if tensor.kind in PLAIN:
        return torch.from_numpy(raw).view(PLAIN[tensor.kind]).view(tensor.shape)
    block, size = GGML_QUANT_SIZES[tensor.kind]
    blocks, step = raw.reshape(-1, size), DEQUANTIZE_AT_ONCE // block
    result = np.empty((len(blocks), block), np.float32)
    for start in range(0, len(blocks), step):
        some = blocks[start : start + step]
        result[start : start + step] = dequantize(some.reshape(1, -1), tensor.kind).reshape(len(some), block)
    return torch.from_numpy(result).view(tensor.shape)


def pairs_to_halves(rows: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of a q or k projection, ordered within each head for rotation in neighbouring pairs, as transformers has
    them: first all first members of the pairs, then all second ones."""
    return rows.unflatten(0, (num_heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _chunk(tensor: GgufTensor, architecture: Architecture, name: str, heads: int, kv_heads: int) -> Chunk:
    stem = tensor.name.split(".")[-2]

    def restore(value: torch.Tensor) -> torch.Tensor:
        if architecture.permuted and stem in ("attn_q", "attn_k"):
            return pairs_to_halves(value, heads if stem == "attn_q" else kv_heads)
        if architecture.norm_shift and name.endswith("norm.weight"):
            return value - architecture.norm_shift
        if stem in architecture.transposed:
            return value.t() if value.ndim == 2 else value
        if stem == architecture.heads_first:
            return value.unflatten(0, (3, heads, -1)).transpose(0, 1).flatten(0, 2)
        return value

    def read() -> Iterator[tuple[str, torch.Tensor]]:
        if "{slice}" not in name:
            yield name, restore(values(tensor))
            return
        for i, part in enumerate(tensor.slices()):
            yield name.format(slice=i), restore(values(part))

    at_once = prod(tensor.shape[1:] if "{slice}" in name else tensor.shape)
    return Chunk(tensor.path, tensor.num_bytes, at_once * 4 + tensor.num_bytes, read)
