"""The mixture-of-experts layer: router, stacked experts, an optional shared expert. Knows nothing of its neighbours."""

from collections.abc import Iterator

import torch
from torch import nn

from headrace.layers.linear import Linear
from headrace.layers.mlp import Mlp
from headrace.layers.slots import MlpSlot, MoeSlot
from headrace.layers.weights import Target, single
from headrace.ops.activation import act_and_mul
from headrace.ops.linear import linear


class Moe(nn.Module):
    """[T, dim] → [T, dim]: the weighted sum of each token's ``top_k`` experts, plus any shared expert."""

    def __init__(self, dim: int, slot: MoeSlot, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.slot = slot
        self.router = Linear(dim, {"router": slot.num_experts}, dtype=dtype, device=device)
        self.experts = Experts(dim, slot, dtype=dtype, device=device)
        if slot.shared_inner:
            shared = MlpSlot(slot.shared_inner, slot.activation)
            self.shared = Mlp(dim, shared, dtype=dtype, device=device)
            self.shared_gate = Linear(dim, {"shared_gate": 1}, dtype=dtype, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.router(x).float().softmax(dim=-1)
        weights, chosen = scores.topk(self.slot.top_k, dim=-1)
        if self.slot.renormalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        y = self.experts(x, weights, chosen)
        return y + self.shared_gate(x).sigmoid() * self.shared(x) if self.slot.shared_inner else y


class Experts(nn.Module):
    """Gated experts with their weights stacked: ``gate_up`` [E, 2 * inner, dim] (gate first), ``down`` [E, dim, inner].

    May be split over ranks by expert.
    """

    split = "expert"

    def __init__(self, dim: int, slot: MoeSlot, *, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.activation, self.inner, self.num_experts = slot.activation, slot.inner, slot.num_experts
        gate_up = torch.empty(slot.num_experts, 2 * slot.inner, dim, dtype=dtype, device=device)
        down = torch.empty(slot.num_experts, dim, slot.inner, dtype=dtype, device=device)
        self.gate_up, self.down = (nn.Parameter(stack, requires_grad=False) for stack in (gate_up, down))

    def forward(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """``x`` [T, dim] through the ``chosen`` experts int64 [T, k], summed by ``weights`` float32 [T, k].

        Each expert multiplies its tokens in one piece; the host waits for their counts.
        """
        order = chosen.flatten().argsort(stable=True)
        counts = chosen.flatten().bincount(minlength=self.num_experts).tolist()
        gathered = x[order // chosen.shape[1]]
        outputs = torch.empty_like(gathered)
        start = 0
        for expert, count in enumerate(counts):
            if count:
                rows = slice(start, start + count)
                inner = act_and_mul(linear.reference(gathered[rows], self.gate_up[expert]), self.activation)
                outputs[rows] = linear.reference(inner, self.down[expert])
                start += count
        # Back to token order before summing: unlike adding in place, this gives the same bits on every run.
        by_token = torch.empty_like(outputs)
        by_token[order] = outputs
        summed = (by_token.unflatten(0, chosen.shape).float() * weights[..., None]).sum(dim=1)
        return summed.to(x.dtype)

    def targets(self, path: str) -> Iterator[Target]:
        views = {"gate": self.gate_up[:, : self.inner], "up": self.gate_up[:, self.inner :], "down": self.down}
        pieces = {name: [f"{path}.{e}.{name}.weight" for e in range(self.num_experts)] for name in views}
        for name, view in views.items():
            for expert, piece in enumerate(pieces[name]):
                yield single(piece, view[expert])
        yield Target(f"{path}.gate_up.weight", self.gate_up, (*pieces["gate"], *pieces["up"]))
        yield Target(f"{path}.down.weight", self.down, tuple(pieces["down"]))
