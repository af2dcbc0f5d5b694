"""What each kind of layer is told about itself: pure data that model declarations fill in.

Loads no torch and knows no model: a slot says what a layer computes, never whose layer it is.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding of the first ``2 * len(frequencies)`` dimensions of each head."""

    frequencies: tuple[float, ...]  # radians per position, one a rotated pair
    interleaved: bool = False  # pairs are neighbours (0, 1), (2, 3), … instead of (0, n/2), (1, n/2 + 1), …
    attention_scale: float = 1.0  # multiplies cosines and sines, so scores get its square


@dataclass(frozen=True)
class NormSlot:
    """Normalisation over the last dimension: ``rms`` divides by the root mean square, ``layer`` also centres."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0  # the stored weight is applied as offset + weight
    weight: bool = True
    bias: bool = False


@dataclass(frozen=True)
class QueryKeyNorm:
    """Normalisation of queries and keys before attention."""

    norm: NormSlot
    over: Literal["head", "own_head", "all_heads"]  # each head by shared or own weights, or all heads as one vector
    after_rope: bool = False


@dataclass(frozen=True)
class AttentionSlot:
    """One self-attention layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float  # multiplies q·k
    rope: Rope | None = None
    bias: bool = False  # of the query, key and value projections
    out_bias: bool = False
    window: int | None = None  # a query sees its own and the window-1 tokens before it; None = all
    softcap: float = 0.0  # scores become softcap * tanh(scores / softcap); 0 = off
    qk_norm: QueryKeyNorm | None = None
    clip: float | None = None  # queries, keys and values are clamped to ± clip
    alibi: bool = False  # scores get a bias linear in the distance
    causal: bool = True  # a query sees no later tokens; else it sees all of its prompt, which must come in one step


@dataclass(frozen=True)
class MlpSlot:
    """A dense feed-forward layer: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` if not gated."""

    inner: int
    activation: str
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class MoeSlot:
    """A mixture of gated experts: each token goes to its ``top_k`` experts by the softmax of the router's scores."""

    inner: int
    activation: str
    num_experts: int
    top_k: int
    renormalize: bool  # the chosen experts' weights are scaled to sum to one
    shared_inner: int = 0  # an expert all tokens use beside their own, weighted by a sigmoid gate; 0 = none


@dataclass(frozen=True)
class Wiring:
    """How a block's sub-layers, their norms and the residual stream are joined."""

    norm_in: bool = True  # sub-layers read the normalised residual stream
    norm_out: bool = False  # a sub-layer's output is normalised before it joins the residual stream
    parallel: bool = False  # attention and feed-forward read the same residual stream and are added together
    one_norm: bool = False  # if parallel: both read through one norm
    norm_stream: bool = False  # what a norm gives replaces the residual stream, too (BERT's "post-norm")


@dataclass(frozen=True)
class ClassifierSlot:
    """A head that scores pooled states: ``out(x)``, or ``out(tanh(dense(x)))``."""

    num_labels: int
    dense: bool = False
    bias: bool = True
