"""The head that scores pooled hidden states. Knows nothing of how they were pooled, nor what the scores mean."""

import torch

from headrace.layers.layer import Layer
from headrace.layers.linear import Linear
from headrace.layers.slots import ClassifierSlot


class Classifier(Layer):
    """[S, dim] → scores float32 [S, num_labels], before any softmax or sigmoid. Computes in float32 on every device."""

    def __init__(self, dim: int, slot: ClassifierSlot, *, device: torch.device):
        super().__init__()
        self.dense = Linear(dim, {"dense": dim}, bias=True, dtype=torch.float32, device=device) if slot.dense else None
        self.out = Linear(dim, {"out": slot.num_labels}, bias=slot.bias, dtype=torch.float32, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return self.out(x if self.dense is None else self.dense(x).tanh())
