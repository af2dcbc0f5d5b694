"""The table of cosines and sines that layers with the same rotary embedding share. Knows no model's scaling rules."""

import torch
from torch import nn

from headrace.layers.slots import Rope


class RotaryTable(nn.Module):
    """``table`` float32 [max_positions, 2 * rotary_dim]: by position, the factors of ``ops.rope_and_cache``."""

    table: torch.Tensor

    def __init__(self, rope: Rope, max_positions: int, device: torch.device):
        super().__init__()
        self.interleaved = rope.interleaved
        frequencies = torch.tensor(rope.frequencies, dtype=torch.float32, device=device)
        angles = torch.arange(max_positions, dtype=torch.float32, device=device)[:, None] * frequencies
        cos, sin = angles.cos() * rope.attention_scale, angles.sin() * rope.attention_scale
        halves = [torch.stack(pair, dim=-1 if rope.interleaved else -2) for pair in ((cos, cos), (-sin, sin))]
        self.register_buffer("table", torch.cat([half.flatten(1) for half in halves], dim=-1), persistent=False)
        self._positions: torch.Tensor | None = None  # the last ones seen: all layers of a step share their angles

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """The rows of the ``positions`` int64 [T], found once a step."""
        if self._positions is not positions:
            self._positions, self._angles = positions, self.table.index_select(0, positions)
        return self._angles
