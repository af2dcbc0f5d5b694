"""From a step's hidden states to what pooling requests get. Knows rows and plans; knows no requests' text.

A prompt may come in several steps: what it needs of the earlier ones is kept by row. Heads run on the device, for all
rows that end in a step at once; what a request chooses for itself (dimensions, activation) is done on the host.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from headrace.device import mark
from headrace.models.decoder import Decoder
from headrace.models.heads import MULTI_VECTOR, SPARSE, dense, extra_head
from headrace.models.pooling import Pooling
from headrace.runner.rows import Rows
from headrace.types import Plan, Pooled, PoolingParams, Sampled

Floats = npt.NDArray[np.float32]


class Head(NamedTuple):
    """One task's last layers, [N, dim] → [N, size], and the activation that requests may turn off."""

    layers: Callable[[torch.Tensor], torch.Tensor]
    activation: Callable[[Floats], Floats]
    ends: tuple[int | None, int | None] = (None, None)  # ids of a first and a last token that are left out


class Pooler:
    """``heads`` by task, as PoolingParams calls it; the main task comes first."""

    def __init__(self, pooling: Pooling, heads: dict[str, Head], embedding_size: int = 0):
        self.pooling, self.heads = pooling, heads
        self.embedding_size = embedding_size  # 0 for a classifier
        self._kept: dict[int, torch.Tensor] = {}  # by row: what later steps need of the earlier ones

    def __call__(self, plan: Plan, hidden: torch.Tensor, rows: Rows) -> Callable[[], Sampled]:
        """Pool the rows of ``plan`` that end in it; ``hidden`` [T, dim]. The returned call awaits their numbers."""
        for row in plan.freed_rows:
            self._kept.pop(row, None)
        ending, pooled = set(plan.sampled), []
        for place, part in enumerate(hidden.split(plan.counts)):
            row, start, params = plan.rows[place], plan.starts[place], params_of(rows, plan.rows[place])
            kind = "all" if by_token(params) else self.pooling.kind
            found = joined(kind, self._kept.pop(row, None), part)
            if place not in ending:
                self._kept[row] = found
                continue
            if kind == "mean":
                found = found / (start + len(part))
            elif kind == "all":
                found = inner(found, rows.fact(row).token_ids, self.heads[self._task(params)].ends)
            pooled.append((params, found))
        values, await_copies = self._headed(pooled), mark(hidden.device)

        def wait() -> Sampled:
            await_copies()
            parts = zip(pooled, values, strict=True)
            return Sampled([], pooled=[self._finish(params, part.numpy()) for (params, _), part in parts])

        return wait

    def token_types(self, plan: Plan, rows: Rows) -> torch.Tensor:
        """int64 [T] on the host: 1 in the second text of a pair, else 0."""
        types = [
            np.arange(start, start + count) >= (params_of(rows, row).second_segment or start + count)
            for row, start, count in zip(plan.rows, plan.starts, plan.counts, strict=True)
        ]
        return torch.from_numpy(np.concatenate(types).astype(np.int64))

    def _headed(self, pooled: list[tuple[PoolingParams, torch.Tensor]]) -> list[torch.Tensor]:
        """What the heads make of each, on the way to the host: one call for all of the same task."""
        values: list[torch.Tensor] = [part for _, part in pooled]
        for task, head in self.heads.items():
            places = [place for place, (params, _) in enumerate(pooled) if self._task(params) == task]
            if places:
                together = head.layers(torch.cat([values[place] for place in places])).float()
                parts = together.to("cpu", non_blocking=True).split([len(values[place]) for place in places])
                for place, part in zip(places, parts, strict=True):
                    values[place] = part
        return values

    def _task(self, params: PoolingParams) -> str:
        return params.task or self.pooling.task

    def _finish(self, params: PoolingParams, values: Floats) -> Pooled:
        """``values`` [N, size] as the request wants them."""
        activate = self.pooling.activate if params.use_activation is None else params.use_activation
        values = values[:, : params.dimensions]
        if activate:
            values = self.heads[self._task(params)].activation(values)
        shape = values.shape if by_token(params) else values.shape[1:]
        return Pooled(list(shape), np.ascontiguousarray(values, np.float32).tobytes())


def make_pooler(
    model: Decoder,
    pooling: Pooling,
    path: Path,
    token_id: Callable[[str], int],
    ends: tuple[int | None, int | None],
    device: torch.device,
) -> Pooler:
    """The pooler of ``model``, whose checkpoint lies in ``path``. ``token_id`` finds a token's number; ``ends`` are
    those of the tokens that begin and end a text.

    Raises ``ConfigError`` if a file of it can't be used.
    """
    if pooling.task == "embed":
        project = nn.Sequential(*(dense(folder, device) for folder in pooling.dense))
        heads = {"embed": Head(lambda x: project(x.float()), normalised)}
        vectors, weights = (extra_head(path / name, device) for name in (MULTI_VECTOR, SPARSE))
        heads["token_embed"] = (
            heads["embed"] if vectors is None else Head(lambda x: vectors(x.float()), normalised, (ends[0], None))
        )
        if weights is not None:
            heads["token_classify"] = Head(lambda x: weights(x.float()), rectified, ends)
        size = project(torch.zeros(1, model.spec.dim, device=device)).shape[1]
        return Pooler(pooling, heads, size)
    if pooling.answers:
        against, in_favour = map(token_id, pooling.answers)

        def judge(x: torch.Tensor) -> torch.Tensor:
            logits = model.logits(x)
            return logits[:, in_favour : in_favour + 1] - logits[:, against : against + 1]

        head = Head(judge, sigmoid)
    else:
        assert model.classifier is not None
        head = Head(model.classifier, sigmoid if pooling.multi_label else softmax)
    return Pooler(pooling, {"classify": head, "token_classify": head})


def params_of(rows: Rows, row: int) -> PoolingParams:
    params = rows.fact(row).pooling
    assert params is not None  # the frontend lets nothing else reach a model that pools
    return params


def by_token(params: PoolingParams) -> bool:
    return (params.task or "").startswith("token")


def joined(kind: str, kept: torch.Tensor | None, part: torch.Tensor) -> torch.Tensor:
    """What is needed of a prompt after another ``part`` [n, dim] of it, given what was ``kept`` of those before."""
    match kind:
        case "last":
            return part[-1:]
        case "cls":
            return part[:1] if kept is None else kept
        case "mean":  # divided at the end
            total = part.float().sum(dim=0, keepdim=True)
            return total if kept is None else kept + total
    return part if kept is None else torch.cat((kept, part))


def inner(states: torch.Tensor, token_ids: list[int], ends: tuple[int | None, int | None]) -> torch.Tensor:
    """``states`` [n, dim] without those of a first and a last token of these ids."""
    return states[int(token_ids[0] == ends[0]) : len(token_ids) - int(token_ids[-1] == ends[1])]


def normalised(values: Floats) -> Floats:
    vectors: Floats = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
    return vectors


def sigmoid(values: Floats) -> Floats:
    scores: Floats = 0.5 * (1.0 + np.tanh(0.5 * values))  # the form that overflows nowhere
    return scores


def softmax(values: Floats) -> Floats:
    weights: Floats = np.exp(values - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def rectified(values: Floats) -> Floats:
    return np.maximum(values, 0.0)
