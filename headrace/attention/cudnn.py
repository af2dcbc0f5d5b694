"""Attention of one long prefilling row by cuDNN, which multiplies large tiles faster than the paged kernel does.

The row's keys and values are gathered from their blocks. cuDNN prepares itself anew for every shape, for tens of
milliseconds, so lengths are rounded up to few different ones.
"""

import torch
import torch.nn.functional as F

from headrace.attention.backend import AttentionSpec
from headrace.ops.join import join

LONG = 1024  # queries from which on gathering and padding pay
ROUND = 512
KEYS_AT_ONCE = 32_768  # of those before the row's own; bounds what is gathered


class CudnnPrefill:
    """Called with one row's queries, the caches, the row's block table and its number of tokens in the cache."""

    def __init__(self, scale: float):
        self.scale = scale

    @staticmethod
    def supports(spec: AttentionSpec, device: torch.device, dtype: torch.dtype) -> bool:
        plain = not (spec.window or spec.softcap or spec.sinks or spec.alibi)
        fits = spec.head_dim <= 128 and spec.head_dim % 8 == 0 and dtype in (torch.float16, torch.bfloat16)
        return plain and fits and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)

    def __call__(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        table: torch.Tensor,
        context: int,
    ) -> torch.Tensor:
        """[count, H, D] for ``q`` [count, H, D], the last ``count`` of ``context`` tokens; ``table`` int32 [blocks]."""
        count, block_size = len(q), k_cache.shape[1]
        earlier = context - count
        older = earlier // ROUND * ROUND // block_size * block_size  # seen by every query; the rest is a triangle
        front = earlier - older
        back = -(front + count) % ROUND
        # Padding in front lines queries up with keys; padding at the back is out of every query's sight.
        queries = padded(q, front, back)

        def keys_and_values(first: int, last: int, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
            blocks = table[first // block_size : -(-last // block_size)].long()
            k, v = (cache[blocks].flatten(0, 1)[: last - first] for cache in (k_cache, v_cache))
            return padded(k, 0, padding), padded(v, 0, padding)

        result, sums = self._attend(True, queries, *keys_and_values(older, context, back))
        for first in range(0, older, KEYS_AT_ONCE):
            keys, values = keys_and_values(first, min(first + KEYS_AT_ONCE, older))
            result, sums = join(result, sums, *self._attend(False, queries, keys, values))
        return result[front : front + count]

    def _attend(
        self, causal: bool, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[L, H, D], and the logarithm of each softmax's sum, float32 [L, H]."""
        batch = (part[None].transpose(1, 2) for part in (q, k, v))
        result, sums = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *batch, None, True, 0.0, causal, False, scale=self.scale
        )[:2]
        return result[0].transpose(0, 1), sums[0, :, :, 0].transpose(0, 1)


def padded(x: torch.Tensor, front: int, back: int) -> torch.Tensor:
    """``x`` [L, H, D] with zeros around it; itself if there are none to add."""
    return F.pad(x, (0, 0, 0, 0, front, back)) if front or back else x
