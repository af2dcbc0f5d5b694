"""Token and position embeddings. Knows nothing of the layers above."""

from collections.abc import Iterator

import torch
from torch import nn

from headrace.layers.weights import Target, single
from headrace.quant.method import Method, Unquantized


class Embedding(nn.Module):
    """Rows of a table: int64 indices [T] → [T, dim] in ``dtype``, multiplied by ``scale``.

    May be split over ranks by rows of the table; a quantization ``Method`` owns how they are stored.
    """

    split = "vocab"

    def __init__(
        self,
        num_rows: int,
        dim: int,
        *,
        scale: float = 1.0,
        dtype: torch.dtype,
        device: torch.device,
        method: Method | None = None,
    ):
        super().__init__()
        self.method: Method = method or Unquantized()
        for name, parameter in self.method.allocate(dim, num_rows, False, dtype, device).items():
            self.register_parameter(name, parameter)
        # Models that scale their embeddings were trained with a factor rounded to their dtype.
        self.dtype, self.scale = dtype, torch.tensor(scale, dtype=dtype).item()

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        rows = self.method.lookup(self, indices, self.dtype)
        return rows if self.scale == 1.0 else rows * self.scale

    def targets(self, path: str) -> Iterator[Target]:
        for name, parameter in self.named_parameters(recurse=False):
            yield single(f"{path}.{name}", parameter)
