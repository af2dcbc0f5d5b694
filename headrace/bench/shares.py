"""What each device of a plan holds: a model cut up by tensor and pipeline parallelism, and its shares weighed.

A rank's share is a smaller model, with fewer heads and narrower layers; so it is declared, built without memory, and
counted by the engine's own code. Knows no device's speed.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from headrace.attention.backend import AttentionSpec
from headrace.attention.torch_backend import TorchBackend
from headrace.bench.formats import WeightFormat
from headrace.bench.latent import Latent
from headrace.errors import ConfigError
from headrace.layers.attention import attention_spec
from headrace.layers.linear import Linear
from headrace.layers.moe import Experts
from headrace.layers.slots import MlpSlot, MoeSlot
from headrace.models.cost import step_cost
from headrace.models.decoder import Decoder
from headrace.models.quantized import method_for, stays_packed
from headrace.models.spec import Layer, Spec
from headrace.types import StepCost

META = torch.device("meta")
UNQUANTIZED = ("router", "shared_gate")  # what every scheme leaves alone within a layer


@dataclass(frozen=True)
class Model:
    """A model to plan for; ``latent``: its attention, where that has no declaration yet."""

    spec: Spec
    latent: Latent | None
    dtype: torch.dtype
    cache_dtype: torch.dtype
    format: WeightFormat | None  # None: as the engine stores the checkpoint's weights

    def packed(self, device: torch.device) -> bool:
        """Whether the engine would multiply a GGUF file's matrices on ``device`` without expanding them."""
        return self.format is None and stays_packed(self.spec.quantized, self.dtype, device) is None

    def storage(self, device: torch.device) -> str:
        """What its matrices are stored as, in a word or two."""
        if self.format:
            return self.format.name
        return "none" if not self.spec.quantized else "gguf" if self.packed(device) else "gguf, expanded"


@dataclass(frozen=True)
class Share:
    """What one device holds and does: its rank's part of its stage's layers."""

    spec: Spec
    weight_bytes: int
    table_bytes: int  # of rotations
    cost: StepCost
    attentions: list[AttentionSpec]


def num_parameters(model: Model) -> int:
    """How many the whole model has, however they are stored."""
    return sum(weight.numel() for weight in built(replace(model, format=None), model.spec, META).parameters())


def shares(model: Model, device: torch.device, tensor: int, pipeline: int) -> list[Share]:
    """Of each of ``pipeline`` stages, one of ``tensor`` equal ranks. Raises ``ConfigError`` if it can't be cut so."""
    rank, latent = cut(model.spec, tensor), model.latent and model.latent.rank(tensor)
    layers = rank.layers
    if pipeline > len(layers):
        raise ConfigError(f"{len(layers)} layers can't be cut into --pipeline-parallel-size {pipeline} stages.")
    bounds = [len(layers) * stage // pipeline for stage in range(pipeline + 1)]
    stages = [replace(rank, layers=layers[begin:end]) for begin, end in pairwise(bounds)]
    part = replace(model, latent=latent)
    return [share(part, spec, device, stage == 0, stage == pipeline - 1) for stage, spec in enumerate(stages)]


def cut(spec: Spec, ranks: int) -> Spec:
    """What one of ``ranks`` ranks of tensor parallelism computes."""

    def part(size: int, what: str) -> int:
        if size % ranks:
            raise ConfigError(
                f"The model's {size} {what} can't be cut into --tensor-parallel-size {ranks} equal parts."
            )
        return size // ranks

    def cut_layer(layer: Layer) -> Layer:
        heads, mlp = layer.attention, layer.mlp
        kv_heads = part(heads.num_kv_heads, "KV heads") if heads.num_kv_heads > ranks else 1  # else some hold the same
        attention = replace(heads, num_heads=part(heads.num_heads, "attention heads"), num_kv_heads=kv_heads)
        inner = part(mlp.inner, "feed-forward features")
        if isinstance(mlp, MoeSlot):
            return Layer(attention, replace(mlp, inner=inner, shared_inner=part(mlp.shared_inner, "shared features")))
        return Layer(attention, replace(mlp, inner=inner))

    layers = {layer: cut_layer(layer) for layer in set(spec.layers)}
    return replace(spec, layers=tuple(layers[one] for one in spec.layers), vocab_size=-(-spec.vocab_size // ranks))


def share(model: Model, spec: Spec, device: torch.device, first: bool, last: bool) -> Share:
    """The share with ``spec``'s layers; the ``first`` stage also has the embeddings, the ``last`` the head."""
    decoder = built(model, spec, device)
    cost = step_cost(decoder, model.cache_dtype)
    kept = [decoder.layers, decoder.norm]
    kept += [table for table in (decoder.embedding, decoder.positions) if first and table is not None]
    held = {
        id(weight): weight for module in (*kept, *([decoder.head] if last else [])) for weight in module.parameters()
    }
    saved = savings(decoder, model.format) if model.format else {}
    looked_up = set() if spec.tied_embeddings and last else set(map(id, decoder.embedding.parameters()))
    experts = {id(w) for module in decoder.modules() if isinstance(module, Experts) for w in module.parameters()}
    cost = msgspec.structs.replace(
        cost,
        weight_bytes=cost.weight_bytes
        - sum(size for key, size in saved.items() if key in held and key not in looked_up)
        - (0 if last else decoder.head.method.num_bytes(decoder.head)),
        head_flops=cost.head_flops if last else 0,
        expert_bytes=cost.expert_bytes - sum(saved.get(key, 0) for key in experts),
        attention_flops=model.latent.attention_flops * len(spec.layers) if model.latent else cost.attention_flops,
    )
    return Share(
        spec,
        sum(weight.nbytes - saved.get(key, 0) for key, weight in held.items()),
        sum(table.nbytes for table in decoder.buffers()),
        cost,
        [attention_spec(layer.attention) for layer in spec.layers],
    )


def built(model: Model, spec: Spec, device: torch.device) -> Decoder:
    """The decoder of ``spec`` without any memory, its matrices stored as the engine would on ``device``.

    Quantized matrices are repacked when they are loaded; fake tensors take part in that, without data.
    """
    packed = model.packed(device)
    where = device if packed else META
    with FakeTensorMode() if packed else nullcontext():
        decoder = Decoder(
            spec,
            model.dtype,
            where,
            lambda attention: TorchBackend(attention, where, model.dtype),
            method_for(spec, model.dtype, where),
        )
        for module in decoder.modules():
            if isinstance(module, Linear):
                module.method.finish(module)
    if model.latent:
        model.latent.replace_attention(decoder, model.dtype, where)
    return decoder


def savings(decoder: Decoder, form: WeightFormat) -> dict[int, int]:
    """Bytes that storing matrices in ``form`` saves, by the id of each."""
    weights = [
        weight
        for name, module in decoder.layers.named_modules()
        if isinstance(module, Linear | Experts) and not name.endswith(UNQUANTIZED)
        for weight in module.parameters(recurse=False)
        if weight.dim() > 1
    ]
    if form.embeddings:
        weights += [*decoder.embedding.parameters(), *(w for w in decoder.head.parameters() if w.dim() > 1)]
    return {
        id(w): w.nbytes - (w.numel() // (w.shape[-2] * w.shape[-1])) * form.num_bytes(w.shape[-2], w.shape[-1])
        for w in weights
    }


def widest(spec: Spec) -> int:
    """Numbers of one token that a layer has at hand at once, at most: residual stream, inputs and inner features."""

    def inner(mlp: MlpSlot | MoeSlot) -> int:
        if isinstance(mlp, MoeSlot):
            return 7 * mlp.top_k * spec.dim  # gathered, computed and reordered, then in float32 and weighed
        return (3 if mlp.gated else 2) * mlp.inner

    return 4 * spec.dim + max(inner(layer.mlp) for layer in spec.layers)
