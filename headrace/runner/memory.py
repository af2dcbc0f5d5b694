"""How the KV cache is cut and how large it may be. Owns its layout and sizing; knows no requests."""

import logging
import math
import mmap
from collections import defaultdict

import torch

from headrace.attention.backend import AttentionSpec
from headrace.config import Config
from headrace.device import GIB, available_host_memory, total_memory, used_memory
from headrace.errors import ConfigError
from headrace.layers.attention import Attention
from headrace.types import KVCacheLayout, KVGroup

logger = logging.getLogger(__name__)

CPU_CACHE_LIMIT = 4 * GIB  # taken at most unless --cpu-kv-cache-gb says otherwise


def group_layers(specs: list[AttentionSpec]) -> list[KVGroup]:
    """Layers that share a block table: of the same window, and in groups of equal size if there are several windows.

    Equal sizes let all groups draw blocks from one pool: the i-th layers of all groups share one cache tensor.
    """
    by_window: dict[int | None, list[int]] = defaultdict(list)
    for layer, spec in enumerate(specs):
        by_window[spec.window].append(layer)
    size = min(map(len, by_window.values()))
    return [
        KVGroup(layers[first : first + size], window)
        for window, layers in by_window.items()
        for first in range(0, len(layers), size)
    ]


def block_bytes(specs: list[AttentionSpec], groups: list[KVGroup], block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block: keys and values of ``block_size`` tokens in the layers of one group."""
    if len({(spec.num_kv_heads, spec.head_dim) for spec in specs}) > 1:
        raise ConfigError("Layers whose KV heads differ in number or size aren't supported.")
    per_token = 2 * specs[0].num_kv_heads * specs[0].head_dim * dtype.itemsize
    return per_token * block_size * max(len(group.layers) for group in groups)


def cache_budget(config: Config, device: torch.device, peak_activations: int) -> int:
    """Bytes the KV cache may take, once weights are loaded and ``peak_activations`` bytes a step are known."""
    cache = config.cache
    if cache.kv_cache_memory_bytes is not None:
        return cache.kv_cache_memory_bytes
    if device.type == "cpu":
        if cache.cpu_kv_cache_gb is not None:
            return int(cache.cpu_kv_cache_gb * GIB)
        return min(CPU_CACHE_LIMIT, available_host_memory() // 4)
    total, used = total_memory(device), used_memory(device)
    budget = int(total * cache.gpu_memory_utilization) - used - peak_activations
    logger.info(
        "GPU memory: %.2f GiB of %.2f may be used; %.2f are taken (weights and other processes), a step peaks at %.2f",
        total * cache.gpu_memory_utilization / GIB,
        total / GIB,
        used / GIB,
        peak_activations / GIB,
    )
    if budget <= 0:
        raise ConfigError(
            f"No GPU memory is left for the KV cache: {used / GIB:.2f} GiB are in use and a step needs "
            f"{peak_activations / GIB:.2f} GiB of the {total * cache.gpu_memory_utilization / GIB:.2f} GiB allowed; "
            "raise --gpu-memory-utilization, free the GPU, or lower --max-num-batched-tokens."
        )
    return budget


def size_flag(config: Config, device: torch.device) -> str:
    """The flag that decides how large the KV cache is."""
    if config.cache.num_gpu_blocks_override is not None:
        return "--num-gpu-blocks-override"
    if config.cache.kv_cache_memory_bytes is not None:
        return "--kv-cache-memory-bytes"
    return "--cpu-kv-cache-gb" if device.type == "cpu" else "--gpu-memory-utilization"


def plan_cache(
    config: Config, device: torch.device, groups: list[KVGroup], block_size: int, num_bytes_per_block: int, budget: int
) -> KVCacheLayout:
    """The layout that fills ``budget`` bytes (or has the blocks that --num-gpu-blocks-override asks for)."""
    num_blocks = config.cache.num_gpu_blocks_override or budget // num_bytes_per_block
    size, total = num_blocks * num_bytes_per_block, total_memory(device)
    if size > total:
        raise ConfigError(
            f"A KV cache of {size / GIB:.2f} GiB is more than the {total / GIB:.2f} GiB of memory there are; lower "
            f"{size_flag(config, device)}."
        )
    # Block 0 is nobody's: tables point there where a request holds nothing.
    return KVCacheLayout(block_size, int(num_blocks) + 1, groups, num_bytes_per_block)


def uncached(groups: list[KVGroup], block_size: int, max_num_batched_tokens: int, max_num_seqs: int) -> KVCacheLayout:
    """A layout for layers that cache nothing: blocks are counted but hold no bytes, and never run out."""
    per_step = max_num_batched_tokens // block_size + max_num_seqs
    return KVCacheLayout(block_size, 2 * per_step + 1, groups, 0)  # two steps may be in flight


def bind_caches(layers: list[Attention], layout: KVCacheLayout, dtype: torch.dtype, device: torch.device) -> None:
    """Allocate the cache tensors of ``layout`` and give each layer its share."""
    spec = layers[0].spec
    shape = (2, layout.num_blocks, layout.block_size, spec.num_kv_heads, spec.head_dim)
    size = max(len(group.layers) for group in layout.groups)
    caches = [_zeros(shape, dtype, device) for _ in range(size)]
    for index, group in enumerate(layout.groups):
        for layer, (keys, values) in zip(group.layers, caches, strict=False):
            layers[layer].bind(keys, values, index)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeroed, since a padded read of a NaN would spoil a sum even where its weight is zero.

    On a CPU these are pages that the kernel gives when they are first used, where torch would write them all, and
    NumPy have them 2 MB large: 60 MB for the first token in 30 layers.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)
