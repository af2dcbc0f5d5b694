"""Token and position embeddings. Knows nothing of the layers above."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from headrace.layers.weights import Target, single


class Embedding(nn.Module):
    """Rows of a table: int64 indices [T] → [T, dim] in ``dtype``, multiplied by ``scale``.

    May be split over ranks by rows of the table.
    """

    split = "vocab"

    def __init__(self, num_rows: int, dim: int, *, scale: float = 1.0, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, dim, dtype=dtype, device=device), requires_grad=False)
        # Models that scale their embeddings were trained with a factor rounded to their dtype.
        self.scale = torch.tensor(scale, dtype=dtype).item()

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(indices, self.weight)
        return rows if self.scale == 1.0 else rows * self.scale

    def targets(self, path: str) -> Iterator[Target]:
        yield single(f"{path}.weight", self.weight)
