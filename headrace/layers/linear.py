"""The linear layer: several named projections of one input, stored and multiplied as one matrix.

Declares its parts and how it may be split over ranks; a quantization ``Method`` owns storage and product. Knows no
ranks and no checkpoint's naming.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from headrace.layers.embedding import Embedding
from headrace.layers.layer import Layer
from headrace.layers.weights import Target, single
from headrace.quant.method import Method, Unquantized

Split = Literal["column", "row"]  # over the outputs of each part, or over the inputs (then results are summed)


class Linear(Layer):
    """``x`` [..., in_features] → [..., sum of the parts' sizes], the parts side by side in the order given.

    ``shared``: an embedding whose rows to multiply with instead of own weights (tied embeddings).
    """

    bias: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        parts: dict[str, int],
        *,
        bias: bool = False,
        split: Split | None = None,
        dtype: torch.dtype,
        device: torch.device,
        shared: Embedding | None = None,
        method: Method | None = None,
    ):
        super().__init__()
        self.in_features, self.parts, self.split = in_features, dict(parts), split
        self.out_features = sum(parts.values())
        self.method: Method = method or Unquantized()
        self.register_parameter("bias", None)
        if shared is None:
            parameters = self.method.allocate(in_features, self.out_features, bias, dtype, device)
            self.shared: tuple[str, ...] = ()
        else:
            self.method, parameters = shared.method, dict(shared.named_parameters(recurse=False))
            self.shared = tuple(parameters)
            if bias:
                empty = torch.empty(self.out_features, dtype=dtype, device=device)
                parameters["bias"] = nn.Parameter(empty, requires_grad=False)
        for name, parameter in parameters.items():
            self.register_parameter(name, parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.method.apply(self, x)

    def targets(self, path: str) -> Iterator[Target]:
        """Each part goes by its own name beside the layer (``q.weight`` in ``qkv``), all together by the layer's."""
        parent = path.rpartition(".")[0]
        for name, parameter in self.named_parameters(recurse=False):
            if name in self.shared:
                continue
            pieces, start = [], 0
            for part, size in self.parts.items():
                pieces.append(f"{parent}.{part}.{name}".lstrip("."))
                yield single(pieces[-1], parameter.narrow(0, start, size))
                start += size
            if len(pieces) > 1:
                yield Target(f"{path}.{name}", parameter, tuple(pieces))
