"""The table of cosines and sines that layers with the same rotary embedding share. Knows no model's scaling rules."""

import torch
from torch import nn

from headrace.layers.slots import Rope


class RotaryTable(nn.Module):
    """``cos_sin`` float32 [max_positions, rotary_dim]: the cosines of all pairs, then their sines."""

    cos_sin: torch.Tensor

    def __init__(self, rope: Rope, max_positions: int, device: torch.device):
        super().__init__()
        self.interleaved = rope.interleaved
        frequencies = torch.tensor(rope.frequencies, dtype=torch.float32, device=device)
        angles = torch.arange(max_positions, dtype=torch.float32, device=device)[:, None] * frequencies
        table = torch.cat((angles.cos(), angles.sin()), dim=-1) * rope.attention_scale
        self.register_buffer("cos_sin", table, persistent=False)
