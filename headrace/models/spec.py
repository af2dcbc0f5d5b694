"""``Spec``: all that the decoder must know of a model, as plain data. Knows no checkpoint, config class or tensor.

A family turns a checkpoint's config into a ``Spec``; slots are few and independent of each other, so a new model is
mostly a new combination.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.layers.slots import AttentionSlot, ClassifierSlot, MlpSlot, MoeSlot, NormSlot, Wiring
from headrace.models.names import Rename

PRE_NORM = Wiring()
POST_NORM = Wiring(norm_in=False, norm_out=True)
SANDWICH_NORM = Wiring(norm_out=True)
POST_NORM_STREAM = Wiring(norm_stream=True)
PARALLEL = Wiring(parallel=True)
PARALLEL_ONE_NORM = Wiring(parallel=True, one_norm=True)


@dataclass(frozen=True)
class Layer:
    """The two sub-layers of one block."""

    attention: AttentionSlot
    mlp: MlpSlot | MoeSlot


@dataclass(frozen=True)
class LearnedPositions:
    """A table of position embeddings: position p takes row p + offset."""

    num_rows: int
    offset: int = 0


@dataclass(frozen=True)
class Spec:
    """A language model made of equal-shaped blocks: one that generates, or one whose hidden states are pooled."""

    architecture: str  # the checkpoint's name for itself, for messages only
    vocab_size: int
    dim: int
    layers: tuple[Layer, ...]
    norm: NormSlot  # of the blocks, and after the last of them
    max_positions: int  # the longest context served; fixes the rotary tables
    wiring: Wiring = PRE_NORM
    tied_embeddings: bool = False  # the output head multiplies by the token embeddings
    head_bias: bool = False
    head: bool = True  # there is an output head
    classifier: ClassifierSlot | None = None
    learned_positions: LearnedPositions | None = None
    num_token_types: int = 0  # embeddings that tell texts of a pair apart
    embedding_scale: float = 1.0
    given_scale: float = 1.0  # of embeddings that come instead of tokens, as transformers takes them
    residual_scale: float = 1.0  # multiplies each sub-layer's output
    logit_scale: float = 1.0
    logit_softcap: float = 0.0  # logits become softcap * tanh(logits / softcap), after the scale; 0 = off
    renames: tuple[Rename, ...] = ()  # applied before the common ones
    quantized: Mapping[str, str] = field(default_factory=dict)  # the checkpoint's tensors, if all matrices are: kinds
