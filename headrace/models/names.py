"""From a checkpoint's weight names to the decoder's: rules, and the map of what is loaded. Knows no files.

The decoder's names: ``embedding``, ``positions``, ``token_types``, ``layers.N.{attention_norm,
attention.{q,k,v,o,q_norm,k_norm}, attention_out_norm, mlp_norm, mlp.{gate,up,down}, mlp_out_norm}``, ``norm``,
``head``, ``classifier.{dense,out}``; an MoE's ``mlp`` holds ``router``, ``experts.N.{gate,up,down}``,
``shared.{gate,up,down}`` and ``shared_gate``. Fused projections go by ``attention.qkv`` and ``mlp.gate_up`` as well.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from headrace.errors import ConfigError
from headrace.layers.weights import Target

Transform = Callable[[torch.Tensor], torch.Tensor]


class Rename(NamedTuple):
    """Replace what ``pattern`` finds by ``to`` (None: the tensor isn't needed), and the tensor by its ``transform``."""

    pattern: str
    to: str | None
    transform: Transform | None = None


COMMON = (
    Rename(r"\.rotary_emb\.inv_freq$", None),
    Rename(r"^model\.", ""),
    Rename(r"^embed_tokens\.", "embedding."),
    Rename(r"^lm_head\.", "head."),
    Rename(r"\.self_attn\.(q|k|v|o|qkv)_proj\.", r".attention.\1."),
    Rename(r"\.self_attn\.([qk])_(?:layer)?norm\.", r".attention.\1_norm."),
    Rename(r"\.input_layernorm\.", ".attention_norm."),
    Rename(r"\.post_attention_layernorm\.", ".mlp_norm."),
    Rename(r"\.mlp\.gate\.", ".mlp.router."),
    Rename(r"\.mlp\.shared_expert(_gate)?\.", r".mlp.shared\1."),
    Rename(r"\.experts\.(gate_up|down)_proj$", r".experts.\1.weight"),
    Rename(r"\.(gate|up|down|gate_up)_proj\.", r".\1."),
)


def renamed(name: str, rules: Iterable[Rename]) -> tuple[str | None, list[Transform]]:
    """The decoder's name of what the checkpoint calls ``name``, None if it isn't needed, and what to do to its values.

    ``rules`` are a model's own, which come before the common ones.
    """
    transforms = []
    for rule in (*rules, *COMMON):
        if not (found := re.search(rule.pattern, name)):
            continue
        if rule.to is None:
            return None, []
        name = name[: found.start()] + found.expand(rule.to) + name[found.end() :]
        transforms += [rule.transform] if rule.transform else []
    return name, transforms


class WeightMap:
    """Copies tensors to where their names say; safe to use from several threads, each with tensors of its own."""

    def __init__(self, architecture: str, targets: Iterable[Target], renames: Iterable[Rename], unneeded: set[str]):
        self.architecture, self.unneeded = architecture, unneeded
        self.targets = {target.name: target for target in targets}
        self.renames = tuple(renames)
        self.pieces = {piece for target in self.targets.values() for piece in target.pieces}
        self.loaded: set[str] = set()

    def load(self, name: str, tensor: torch.Tensor) -> None:
        """Copy ``tensor``, called ``name`` in the checkpoint, into the model, converting its dtype.

        Raises ``ConfigError`` if the model has no such weight or it has another shape.
        """
        own, transforms = renamed(name, self.renames)
        if own is None or own in self.unneeded:
            return
        if own not in self.targets:
            raise ConfigError(f"The checkpoint holds {name!r}, which {self.architecture} has no place for.")
        target = self.targets[own]
        for transform in transforms:
            tensor = transform(tensor)
        if tensor.shape != target.view.shape:
            raise ConfigError(
                f"The checkpoint's {name!r} has shape {list(tensor.shape)}, but {self.architecture} with this "
                f"configuration needs {list(target.view.shape)}."
            )
        target.view.copy_(tensor)
        self.loaded.update(target.pieces)

    def accepts(self, name: str) -> bool:
        """Whether the model has such a weight."""
        return renamed(name, self.renames)[0] in self.targets

    def check_complete(self) -> None:
        """Raise ``ConfigError`` naming weights that were never loaded."""
        if missing := sorted(self.pieces - self.loaded):
            shown = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
            raise ConfigError(f"The checkpoint lacks {len(missing)} of {self.architecture}'s weights: {shown}.")
