"""One decoder for every model: builds itself from a ``Spec`` and loads weights by the checkpoint's names.

Never asks which model it is. Knows no batches beyond passing each step's input on, and no files.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from headrace.attention.backend import AttentionSpec, Backend, StepInput
from headrace.layers.attention import Attention, attention_spec
from headrace.layers.classifier import Classifier
from headrace.layers.embedding import Embedding
from headrace.layers.linear import Linear
from headrace.layers.mlp import Mlp
from headrace.layers.moe import Moe
from headrace.layers.norm import Norm
from headrace.layers.rope import RotaryTable
from headrace.layers.slots import MlpSlot, Rope
from headrace.layers.weights import Loadable, Target
from headrace.models.names import WeightMap
from headrace.models.spec import Layer, Spec
from headrace.quant.method import MethodFor, unquantized, within


class Block(nn.Module):
    """One layer. Takes and returns (last sub-layer's output, residual stream), which the next norm adds up."""

    def __init__(
        self,
        spec: Spec,
        layer: Layer,
        rotary: RotaryTable | None,
        backend: Backend,
        *,
        method_for: MethodFor,
        dtype: torch.dtype,
        device: torch.device,
    ):
        super().__init__()

        def norm(present: bool) -> Norm | None:
            return Norm(spec.norm, (spec.dim,), dtype=dtype, device=device) if present else None

        wiring = spec.wiring
        self.parallel, self.norm_stream, self.residual_scale = wiring.parallel, wiring.norm_stream, spec.residual_scale
        self.attention_norm = norm(wiring.norm_in)
        self.attention = Attention(
            spec.dim,
            layer.attention,
            rotary,
            backend,
            method_for=within("attention", method_for),
            dtype=dtype,
            device=device,
        )
        self.attention_out_norm = norm(wiring.norm_out)
        self.mlp_norm = norm(wiring.norm_in and not wiring.one_norm)
        self.mlp: Mlp | Moe
        if isinstance(layer.mlp, MlpSlot):
            self.mlp = Mlp(spec.dim, layer.mlp, method_for=within("mlp", method_for), dtype=dtype, device=device)
        else:
            self.mlp = Moe(spec.dim, layer.mlp, dtype=dtype, device=device)
        self.mlp_out_norm = norm(wiring.norm_out)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, step: StepInput
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x, residual = self._enter(self.attention_norm, x, residual)
        attended = self._leave(self.attention_out_norm, self.attention(x, step))
        if self.parallel:
            x = x if self.mlp_norm is None else self.mlp_norm(residual)
            return attended + self._leave(self.mlp_out_norm, self.mlp(x)), residual
        x, residual = self._enter(self.mlp_norm, attended, residual)
        return self._leave(self.mlp_out_norm, self.mlp(x)), residual

    def _enter(
        self, norm: Norm | None, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(what the next sub-layer reads, residual stream with ``x`` added)."""
        if norm is not None:
            normed, residual = norm.add(x, residual)
            return normed, normed if self.norm_stream else residual
        residual = x if residual is None else residual + x
        return residual, residual

    def _leave(self, norm: Norm | None, x: torch.Tensor) -> torch.Tensor:
        """A sub-layer's output as it joins the residual stream."""
        x = x if norm is None else norm(x)
        return x if self.residual_scale == 1.0 else x * self.residual_scale


class Decoder(nn.Module):
    """The model that ``spec`` describes. ``backend_for`` gives the attention backend of a layer, ``method_for`` how the
    matrix called ``layers.0.attention.qkv``, say, is stored and multiplied.

    Parameters are allocated on ``device`` in ``dtype`` and hold nothing until they are loaded or filled.
    """

    head: Linear  # there is none unless ``spec.head``

    def __init__(
        self,
        spec: Spec,
        dtype: torch.dtype,
        device: torch.device,
        backend_for: Callable[[AttentionSpec], Backend],
        method_for: MethodFor = unquantized,
    ):
        super().__init__()
        self.spec, self.device = spec, device
        self.embedding = Embedding(
            spec.vocab_size,
            spec.dim,
            scale=spec.embedding_scale,
            dtype=dtype,
            device=device,
            method=method_for("embedding"),
        )
        learned = spec.learned_positions
        self.positions = Embedding(learned.num_rows, spec.dim, dtype=dtype, device=device) if learned else None
        types = spec.num_token_types
        self.token_types = Embedding(types, spec.dim, dtype=dtype, device=device) if types else None
        ropes = {layer.attention.rope for layer in spec.layers}
        tables = {rope: self._table(rope, device) for rope in ropes}
        self.layers = nn.ModuleList(
            Block(
                spec,
                layer,
                tables[layer.attention.rope],
                backend_for(attention_spec(layer.attention)),
                method_for=within(f"layers.{number}", method_for),
                dtype=dtype,
                device=device,
            )
            for number, layer in enumerate(spec.layers)
        )
        self.norm = Norm(spec.norm, (spec.dim,), dtype=dtype, device=device)
        if spec.head:
            self.head = self._head(method_for, dtype)
        self.classifier = Classifier(spec.dim, spec.classifier, device=device) if spec.classifier else None
        unneeded = {"head.weight", "head.bias"} if not spec.head else {"head.weight"} if spec.tied_embeddings else set()
        self._weights = WeightMap(spec.architecture, self._targets(), spec.renames, unneeded)

    @property
    def attention_layers(self) -> list[Attention]:
        """The attention of each layer, in order."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    @property
    def waits_for_device(self) -> bool:
        """Whether the host has to read something back during a step."""
        return any(isinstance(module, Moe) for module in self.modules())

    def forward(self, token_ids: torch.Tensor, step: StepInput) -> torch.Tensor:
        """Hidden states [T, dim] after the final norm, of the tokens int64 [T]."""
        x = self.embedding(token_ids)
        if step.embeds is not None:
            places, values = step.embeds
            x = x.index_copy(0, places, (values * self.spec.given_scale).to(x.dtype))
        if self.positions is not None and self.spec.learned_positions is not None:
            x = x + self.positions(step.positions + self.spec.learned_positions.offset)
        if self.token_types is not None:
            types = torch.zeros_like(token_ids) if step.token_types is None else step.token_types
            x = x + self.token_types(types)
        residual = None
        for block in self.layers:
            x, residual = block(x, residual, step)
        return self.norm.add(x, residual)[0]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[S, vocab] of the chosen rows [S, dim] of what ``forward`` returned; in float32 if they are scaled."""
        logits: torch.Tensor = self.head(hidden)
        if self.spec.logit_scale != 1.0:
            logits = logits.float() * self.spec.logit_scale
        if softcap := self.spec.logit_softcap:
            logits = torch.tanh(logits.float() / softcap) * softcap
        return logits

    def load_weight(self, checkpoint_name: str, tensor: torch.Tensor) -> None:
        """Copy one of the checkpoint's tensors to its place, converting its dtype; may be called from several threads.

        To a GPU it goes through page-locked memory of its size, which that fetches by itself: of any other its driver
        makes such copies, one after another. Raises ``ConfigError`` if there is no place for it, or it doesn't fit.
        """
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        self._weights.load(checkpoint_name, tensor)

    def accepts(self, checkpoint_name: str) -> bool:
        """Whether there is a place for a tensor that the checkpoint calls so."""
        return self._weights.accepts(checkpoint_name)

    def finish_loading(self) -> None:
        """Check that every weight is there (``ConfigError`` names those that aren't) and repack quantized ones."""
        self._weights.check_complete()
        if self.device.type == "cuda":  # give the page-locked memory back; torch 2.11 has only the private name
            release = getattr(torch.accelerator, "empty_host_cache", None) or torch._C._host_emptyCache
            release()
        for layer in self.modules():
            if isinstance(layer, Linear):
                layer.method.finish(layer)
        # Parameters and sub-layers as plain attributes: nn.Module's own search for them, some 700 times a step, takes
        # half a millisecond on a CPU.
        for layer in self.modules():
            vars(layer).update(layer._parameters | layer._modules)

    @torch.no_grad()
    def init_dummy(self, seed: int) -> None:
        """Fill all weights at random instead of loading them: the same for the same seed and device."""
        generator = torch.Generator(device=self.device).manual_seed(seed % 2**64)  # torch takes no more bits
        for parameter in self.parameters():
            if parameter.is_floating_point():
                parameter.uniform_(-0.04, 0.04, generator=generator)
            else:
                parameter.random_(0, 48, generator=generator)  # of such bytes float16 scales are small, and never NaN
        for norm in (module for module in self.modules() if isinstance(module, Norm)):
            if norm.weight is not None:
                norm.weight.fill_(1.0 - norm.slot.offset)
        self._weights.loaded.update(self._weights.pieces)

    def _head(self, method_for: MethodFor, dtype: torch.dtype) -> Linear:
        spec = self.spec
        return Linear(
            spec.dim,
            {"head": spec.vocab_size},
            bias=spec.head_bias,
            split="column",
            dtype=dtype,
            device=self.device,
            shared=self.embedding if spec.tied_embeddings else None,
            method=method_for("head"),
        )

    def _table(self, rope: Rope | None, device: torch.device) -> RotaryTable | None:
        return None if rope is None else RotaryTable(rope, self.spec.max_positions, device)

    def _targets(self) -> Iterator[Target]:
        for path, module in self.named_modules():
            if isinstance(module, Loadable):
                yield from module.targets(path)
