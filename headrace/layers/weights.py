"""Where checkpoint tensors go: views into a layer's parameters, by name. Knows no files and no checkpoint's naming."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch


class Target(NamedTuple):
    """A tensor called ``name`` fills ``view``; a parameter is complete once all of its smallest ``pieces`` are."""

    name: str
    view: torch.Tensor
    pieces: tuple[str, ...]


@runtime_checkable
class Loadable(Protocol):
    """A layer with weights of its own (those of its sub-layers are theirs)."""

    def targets(self, path: str) -> Iterator[Target]:
        """All names this layer's tensors go by, ``path`` being the layer's own in the model."""
        ...


def single(name: str, view: torch.Tensor) -> Target:
    """The usual target: one name, one piece."""
    return Target(name, view, (name,))
