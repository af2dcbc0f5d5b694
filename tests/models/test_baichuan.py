"""Baichuan, for which transformers has no class, against a plain reference written from the checkpoints' model code."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import PretrainedConfig

from headrace.models.registry import spec_for

from .util import chunked_logits, full_logits, loaded_decoder

DIM, INNER, LAYERS, VOCAB, EPS = 48, 72, 3, 96, 1e-6


def random_weights(vocab: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, mean: float = 0.0) -> torch.Tensor:
        return mean + 0.15 * torch.randn(shape, generator=generator)

    weights = {"model.embed_tokens.weight": normal(vocab, DIM), "lm_head.weight": normal(vocab, DIM)}
    weights["model.norm.weight"] = normal(DIM, mean=1.0)
    for i in range(LAYERS):
        weights |= {
            f"model.layers.{i}.input_layernorm.weight": normal(DIM, mean=1.0),
            f"model.layers.{i}.post_attention_layernorm.weight": normal(DIM, mean=1.0),
            f"model.layers.{i}.self_attn.W_pack.weight": normal(3 * DIM, DIM),
            f"model.layers.{i}.self_attn.o_proj.weight": normal(DIM, DIM),
            f"model.layers.{i}.mlp.gate_proj.weight": normal(INNER, DIM),
            f"model.layers.{i}.mlp.up_proj.weight": normal(INNER, DIM),
            f"model.layers.{i}.mlp.down_proj.weight": normal(DIM, INNER),
        }
    return weights


def reference(w: dict[str, torch.Tensor], ids: list[int], heads: int, alibi: bool, unit_head: bool) -> torch.Tensor:
    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * w[name]

    n, size = len(ids), DIM // heads
    x = w["model.embed_tokens.weight"][ids]
    mask = torch.full((n, n), -math.inf).triu(1).expand(heads, n, n)
    if alibi:  # the bias depends on the key alone: softmax can't tell it from one by distance
        mask = mask + torch.tensor(slopes(heads))[:, None, None] * torch.arange(n)
    turn = torch.polar(
        torch.ones(n, size // 2), torch.arange(n)[:, None] / 10_000 ** (torch.arange(size // 2) * 2 / size)
    )
    for i in range(LAYERS):
        h = norm(x, f"model.layers.{i}.input_layernorm.weight") @ w[f"model.layers.{i}.self_attn.W_pack.weight"].T
        q, k, v = h.view(n, 3, heads, size).permute(1, 2, 0, 3)
        if not alibi:  # as complex numbers made of a head's first and second half
            q, k = (torch.complex(*t.chunk(2, -1)) * turn for t in (q, k))
            q, k = (torch.cat((t.real, t.imag), -1) for t in (q, k))
        scores = (q @ k.transpose(1, 2) / math.sqrt(size) + mask).softmax(-1)
        out = (scores @ v).transpose(0, 1).reshape(n, DIM)
        x = x + out @ w[f"model.layers.{i}.self_attn.o_proj.weight"].T
        h = norm(x, f"model.layers.{i}.post_attention_layernorm.weight")
        gate, up = (h @ w[f"model.layers.{i}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ w[f"model.layers.{i}.mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    head = head / head.norm(dim=1, keepdim=True) if unit_head else head
    return norm(x, "model.norm.weight") @ head.T


def slopes(heads: int) -> list[float]:
    """Known by heart for 4 heads; for 6, two more from the series of 8."""
    return {4: [1 / 4, 1 / 16, 1 / 64, 1 / 256], 6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8]}[heads]


@pytest.mark.parametrize(
    ("lengths", "heads", "vocab", "alibi", "unit_head"),
    [
        ({"max_position_embeddings": 64, "model_max_length": 64}, 4, VOCAB, False, True),
        ({"model_max_length": 64}, 4, VOCAB, True, True),
        ({"model_max_length": 64}, 6, VOCAB, True, True),
        ({"max_position_embeddings": 64}, 4, 64_000, False, False),
    ],
    ids=["2-7B", "2-13B", "2-13B-odd-heads", "1-7B"],
)
def test_logits(lengths: dict[str, int], heads: int, vocab: int, alibi: bool, unit_head: bool) -> None:
    config = PretrainedConfig(
        architectures=["BaichuanForCausalLM"],
        vocab_size=vocab,
        hidden_size=DIM,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=heads,
        hidden_act="silu",
        rms_norm_eps=EPS,
        tie_word_embeddings=False,
        **lengths,
    )
    weights = random_weights(vocab)
    decoder = loaded_decoder(spec_for(config, 64), weights)
    ids, other = torch.randint(3, 96, (2, 24), generator=torch.Generator().manual_seed(1)).tolist()
    expected, expected_other = (reference(weights, row, heads, alibi, unit_head) for row in (ids, other))
    assert expected.std() > 0.1
    torch.testing.assert_close(full_logits(decoder, ids), expected, atol=1e-4, rtol=0)
    for got, want in zip(chunked_logits(decoder, ids, other), (expected, expected_other), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
