"""Helpers: tiny random checkpoints, and a stand-in for the runner that drives a decoder over a paged cache."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedModel

from headrace.attention.backend import AttentionSpec, Backend, PagedBatch, StepInput
from headrace.attention.select import select_backend
from headrace.models.decoder import Decoder
from headrace.models.quantized import method_for
from headrace.models.spec import Spec

CPU = torch.device("cpu")
BLOCK_SIZE = 4


def new_decoder(spec: Spec, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> Decoder:
    def backend_for(attention: AttentionSpec) -> Backend:
        return select_backend(None, attention, device, dtype, BLOCK_SIZE)

    return Decoder(spec, dtype, device, backend_for, method_for(spec, dtype, device))


def loaded_decoder(
    spec: Spec, weights: dict[str, torch.Tensor], device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> Decoder:
    decoder = new_decoder(spec, device, dtype)
    for name, tensor in weights.items():
        decoder.load_weight(name, tensor)
    decoder.finish_loading()
    return decoder


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Move every parameter away from its initial value, so that none of them can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def random_model(architecture: str, **options: Any) -> PreTrainedModel:
    """A tiny transformers model of random weights, the same each time; torch's generator goes on from the seed."""
    model_class = getattr(transformers, architecture)
    config = tiny(model_class.config_class, **options)
    config._attn_implementation = "eager"  # the one that applies soft caps
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config).eval()
    randomise(model)
    return model


def checkpoint_weights(model: PreTrainedModel, directory: Path) -> dict[str, torch.Tensor]:
    """The model's weights by the names its saved checkpoint gives them."""
    model.save_pretrained(directory)
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def tiny(config_class: type[PretrainedConfig], **options: Any) -> PretrainedConfig:
    """A config of a few thousand weights; ``options`` set None drop a default that the class has no field for."""
    sizes = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config_class(**sizes | options)


class PagedRunner:
    """Feeds rows of tokens to a decoder, each with a block table of blocks in random order."""

    def __init__(self, decoder: Decoder, num_rows: int = 1, max_len: int = 64):
        self.decoder = decoder
        blocks_a_row = -(-max_len // BLOCK_SIZE)
        num_blocks = 1 + num_rows * blocks_a_row
        order = random.Random(0).sample(range(1, num_blocks), num_blocks - 1)
        self.tables = [order[row * blocks_a_row : (row + 1) * blocks_a_row] for row in range(num_rows)]
        self.lengths = [0] * num_rows
        self.device, dtype = decoder.device, decoder.embedding.dtype
        self.backends = list(dict.fromkeys(attention.backend for attention in decoder.attention_layers))
        for attention in decoder.attention_layers:
            spec = attention.spec
            shape = (2, num_blocks, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
            stale = torch.full(shape, 1e4, dtype=dtype, device=self.device)  # must not matter
            attention.bind(stale[0], stale[1], self.backends.index(attention.backend))

    @torch.inference_mode()
    def step(self, tokens: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Compute the next ``tokens`` of some rows in one batch: logits by row, float32 [tokens, vocab] on the CPU."""
        rows = sorted(tokens, key=lambda row: len(tokens[row]) > 1)  # decodes first
        counts = [len(tokens[row]) for row in rows]
        starts = [self.lengths[row] for row in rows]
        for row, count in zip(rows, counts, strict=True):
            self.lengths[row] += count
        positions = [p for start, count in zip(starts, counts, strict=True) for p in range(start, start + count)]
        contexts = [self.lengths[row] for row in rows]
        slots, table = self._tensor(list(self._slots(rows, starts, counts))), self._tensor(self.tables).int()
        plans = [b.plan(np.array(rows), np.array(counts), np.array(contexts), counts.count(1)) for b in self.backends]
        groups = (
            PagedBatch(
                table, slots, self._tensor(plan.tolist()).int(), rows, counts, contexts, num_decodes=counts.count(1)
            )
            for plan in plans
        )
        step = StepInput(self._tensor(positions), tuple(groups))
        hidden = self.decoder(self._tensor([token for row in rows for token in tokens[row]]), step)
        return dict(zip(rows, self.decoder.logits(hidden).cpu().split(counts), strict=True))

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)

    def _slots(self, rows: list[int], starts: list[int], counts: list[int]) -> Iterator[int]:
        for row, start, count in zip(rows, starts, counts, strict=True):
            for position in range(start, start + count):
                yield self.tables[row][position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def full_logits(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    """Logits [tokens, vocab] of one prefill."""
    return PagedRunner(decoder).step({0: ids})[0]


def chunked_logits(decoder: Decoder, ids: list[int], other: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of two rows sharing batches: one prefills in two chunks, then decodes; the other starts and ends apart."""
    runner = PagedRunner(decoder, num_rows=2)
    plan = [
        {0: 6},
        {0: len(ids) - 9, 1: len(other) - 3},
        {0: 1, 1: 1},
        {0: 2, 1: 1},
        {1: 1},
    ]
    done: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for counts in plan:
        tokens = {row: (ids, other)[row][runner.lengths[row] :][:count] for row, count in counts.items()}
        for row, logits in runner.step(tokens).items():
            done[row].append(logits)
    return torch.cat(done[0]), torch.cat(done[1])
