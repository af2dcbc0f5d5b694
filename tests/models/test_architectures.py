"""Every architecture, option and rope scaling against transformers, on tiny random checkpoints in float32."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from headrace.models.registry import spec_for

from .test_encoders import ENCODERS
from .util import checkpoint_weights, chunked_logits, full_logits, loaded_decoder, random_model

TOLERANCE = 1e-4


@dataclass
class Case:
    """``architecture`` with a tiny config of ``options``; ``served`` overrides the config that Headrace is given."""

    name: str
    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    max_model_len: int = 64
    length: int = 24
    served: dict[str, Any] = field(default_factory=dict)


def rope(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **parameters}}


WINDOW = {"sliding_window": 5}
HEAD_DIM = {"head_dim": 32}
ALL_HEADS = {"num_key_value_heads": 4}  # families whose configs have no such field ignore it
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 20,
}
PARTIAL_LONGROPE = LONGROPE | {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.5, 3.0, 3.5]}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
FULL, SLIDING = "full_attention", "sliding_attention"

ARCHITECTURES = [
    Case("llama", "LlamaForCausalLM"),
    Case("mistral", "MistralForCausalLM", WINDOW),
    Case("ministral", "MinistralForCausalLM", HEAD_DIM | WINDOW | {"layer_types": [FULL, SLIDING, SLIDING, FULL]}),
    Case("mixtral", "MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Case("starcoder2", "Starcoder2ForCausalLM", WINDOW),
    Case("qwen2", "Qwen2ForCausalLM"),
    Case("qwen3", "Qwen3ForCausalLM", HEAD_DIM),
    Case("qwen2_moe", "Qwen2MoeForCausalLM", EXPERTS | {"shared_expert_intermediate_size": 80}),
    Case("qwen3_moe", "Qwen3MoeForCausalLM", EXPERTS | HEAD_DIM),
    Case("gemma", "GemmaForCausalLM", HEAD_DIM),
    Case("gemma2", "Gemma2ForCausalLM", HEAD_DIM | WINDOW | {"query_pre_attn_scalar": 40}),
    Case("gemma3", "Gemma3ForCausalLM", HEAD_DIM | WINDOW | {"layer_types": [SLIDING, FULL, SLIDING, FULL]}),
    Case("phi", "PhiForCausalLM"),
    Case("phi3", "Phi3ForCausalLM"),
    Case("stablelm", "StableLmForCausalLM", {"partial_rotary_factor": 0.25}),
    Case("olmo", "OlmoForCausalLM"),
    Case("olmo2", "Olmo2ForCausalLM"),
    Case("olmoe", "OlmoeForCausalLM", {"num_experts": 8, "num_experts_per_tok": 3}),
    Case("cohere", "CohereForCausalLM", {"logit_scale": 0.25}),
    Case("glm", "GlmForCausalLM", HEAD_DIM | {"partial_rotary_factor": 0.5}),
    Case("glm4", "Glm4ForCausalLM", HEAD_DIM | {"partial_rotary_factor": 0.5}),
    Case("nemotron", "NemotronForCausalLM"),
    Case("arcee", "ArceeForCausalLM"),
    Case(
        "granite",
        "GraniteForCausalLM",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.2,
        },
    ),
    Case("smollm3", "SmolLM3ForCausalLM"),
    Case("exaone4", "Exaone4ForCausalLM", WINDOW | {"sliding_window_pattern": 2}),
    Case("seed_oss", "SeedOssForCausalLM", HEAD_DIM),
    Case("hunyuan", "HunYuanDenseV1ForCausalLM", HEAD_DIM),
    Case("gpt2", "GPT2LMHeadModel", ALL_HEADS),
    Case("gpt_neox", "GPTNeoXForCausalLM", ALL_HEADS),
    Case("opt", "OPTForCausalLM", ALL_HEADS | {"ffn_dim": 96}),
]

OPTIONS = [
    Case("llama-biases", "LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    Case("llama-tied-wide-heads", "LlamaForCausalLM", {"tie_word_embeddings": True, "head_dim": 24}),
    Case("llama-all-heads", "LlamaForCausalLM", ALL_HEADS),
    Case("mistral-no-window", "MistralForCausalLM", {"sliding_window": None}),
    Case("mistral-window-past-context", "MistralForCausalLM", {"sliding_window": 64}),
    Case("mixtral-window", "MixtralForCausalLM", WINDOW | {"num_local_experts": 4}),
    Case(
        "mistral-by-layer-types",
        "MinistralForCausalLM",
        HEAD_DIM | WINDOW | {"layer_types": [FULL, SLIDING, SLIDING, SLIDING]},
        served={"architectures": ["MistralForCausalLM"]},
    ),
    Case(
        "ministral-interleaved",
        "MinistralForCausalLM",
        HEAD_DIM | WINDOW | {"layer_types": [FULL, SLIDING, FULL, SLIDING]},
        served={"architectures": ["MistralForCausalLM"], "interleaved_sliding_window": [None, 5]},
    ),
    Case("starcoder2-no-bias", "Starcoder2ForCausalLM", {"use_bias": False, "tie_word_embeddings": False}),
    Case("qwen2-window", "Qwen2ForCausalLM", WINDOW | {"use_sliding_window": True, "max_window_layers": 2}),
    Case("qwen3-bias", "Qwen3ForCausalLM", HEAD_DIM | {"attention_bias": True, "tie_word_embeddings": True}),
    Case(
        "qwen2_moe-sparse-step",
        "Qwen2MoeForCausalLM",
        EXPERTS | {"decoder_sparse_step": 2, "norm_topk_prob": True, "qkv_bias": False},
    ),
    Case(
        "qwen2_moe-window",
        "Qwen2MoeForCausalLM",
        EXPERTS | WINDOW | {"use_sliding_window": True, "shared_expert_intermediate_size": 80},
    ),
    Case(
        "qwen3_moe-dense-layers",
        "Qwen3MoeForCausalLM",
        EXPERTS | {"mlp_only_layers": [0, 2], "norm_topk_prob": True, "attention_bias": True},
    ),
    Case("qwen3_moe-window", "Qwen3MoeForCausalLM", EXPERTS | WINDOW | {"use_sliding_window": True}),
    Case("gemma-untied-bias", "GemmaForCausalLM", {"tie_word_embeddings": False, "attention_bias": True}),
    Case("gemma2-no-caps", "Gemma2ForCausalLM", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    Case("gemma3-cap", "Gemma3ForCausalLM", {"final_logit_softcapping": 1.5}),
    Case("phi-qk-layernorm", "PhiForCausalLM", {"qk_layernorm": True, "hidden_act": "relu"}),
    Case("phi3-window", "Phi3ForCausalLM", WINDOW),
    Case("stablelm-parallel", "StableLmForCausalLM", {"use_parallel_residual": True, "use_qkv_bias": True}),
    Case("stablelm-qk-layernorm", "StableLmForCausalLM", {"qk_layernorm": True}),
    Case("olmo-clip", "OlmoForCausalLM", {"clip_qkv": 0.3, "attention_bias": True}),
    Case("olmoe-clip", "OlmoeForCausalLM", {"clip_qkv": 0.3, "num_experts": 8, "norm_topk_prob": True}),
    Case("olmo2-bias", "Olmo2ForCausalLM", {"attention_bias": True}),
    Case(
        "cohere-qk-norm", "CohereForCausalLM", {"use_qk_norm": True, "logit_scale": 0.5, "tie_word_embeddings": False}
    ),
    Case("glm-no-bias", "GlmForCausalLM", HEAD_DIM | {"attention_bias": False}),
    Case("nemotron-biases", "NemotronForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    Case("arcee-biases", "ArceeForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    Case("granite-biases", "GraniteForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    Case(
        "smollm3-window",
        "SmolLM3ForCausalLM",
        WINDOW | {"use_sliding_window": True, "no_rope_layers": [1, 0, 1, 0]},
    ),
    Case("exaone4-no-window", "Exaone4ForCausalLM", {"sliding_window": None, "layer_types": [FULL] * 4}),
    Case("seed_oss-biases", "SeedOssForCausalLM", {"attention_out_bias": True, "mlp_bias": True}),
    Case("hunyuan-bias", "HunYuanDenseV1ForCausalLM", HEAD_DIM | {"attention_bias": True, "tie_word_embeddings": True}),
    Case(
        "gpt2-scales",
        "GPT2LMHeadModel",
        ALL_HEADS | {"scale_attn_by_inverse_layer_idx": True, "n_inner": 80, "reorder_and_upcast_attn": True},
    ),
    Case(
        "gpt2-unscaled-untied",
        "GPT2LMHeadModel",
        ALL_HEADS | {"scale_attn_weights": False, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    Case(
        "gpt_neox-sequential",
        "GPTNeoXForCausalLM",
        ALL_HEADS | {"use_parallel_residual": False, "attention_bias": False},
    ),
    Case(
        "opt-plain",
        "OPTForCausalLM",
        ALL_HEADS | {"ffn_dim": 96, "enable_bias": False, "layer_norm_elementwise_affine": False},
    ),
]

SCALINGS = [
    Case("linear", "LlamaForCausalLM", rope("linear", factor=4.0)),
    Case("theta", "LlamaForCausalLM", {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}),
    Case("dynamic", "LlamaForCausalLM", rope("dynamic", factor=3.0) | {"max_position_embeddings": 16}, 24),
    Case("dynamic-short", "LlamaForCausalLM", rope("dynamic", factor=3.0), 32),
    Case("llama3", "LlamaForCausalLM", rope("llama3", **LLAMA3)),
    Case("yarn", "LlamaForCausalLM", rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    Case(
        "yarn-options",
        "Qwen2ForCausalLM",
        rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=1.3, beta_fast=8.0),
    ),
    Case(
        "yarn-mscale",
        "Qwen3ForCausalLM",
        HEAD_DIM
        | rope("yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.8, mscale_all_dim=0.5, truncate=False),
    ),
    Case(
        "yarn-partial",
        "GlmForCausalLM",
        HEAD_DIM | rope("yarn", factor=4.0, original_max_position_embeddings=16, partial_rotary_factor=0.5),
    ),
    Case("yarn-no-head-dim", "Qwen2ForCausalLM", rope("yarn", factor=2.0), served={"head_dim": None}),
    Case("longrope-long", "LlamaForCausalLM", rope("longrope", factor=4.0, **LONGROPE), 64),
    Case("longrope-short", "LlamaForCausalLM", rope("longrope", factor=4.0, **LONGROPE), 20, 20),
    Case(
        "phi3-longrope-long",
        "Phi3ForCausalLM",
        rope("longrope", **LONGROPE) | {"original_max_position_embeddings": 20},
    ),
    Case(
        "phi3-longrope-short",
        "Phi3ForCausalLM",
        rope("longrope", **LONGROPE) | {"original_max_position_embeddings": 20},
        20,
        20,
    ),
    Case(
        "phi3-longrope-partial",
        "Phi3ForCausalLM",
        rope("longrope", **PARTIAL_LONGROPE, partial_rotary_factor=0.5) | {"original_max_position_embeddings": 20},
    ),
    Case("proportional", "LlamaForCausalLM", rope("proportional", partial_rotary_factor=0.25)),
    Case("gemma3-by-layer", "Gemma3ForCausalLM", HEAD_DIM | {"rope_parameters": GEMMA_ROPE}),
    Case("hunyuan-alpha", "HunYuanDenseV1ForCausalLM", HEAD_DIM | rope("dynamic", alpha=50.0, factor=1.0)),
    Case("gpt_neox-partial", "GPTNeoXForCausalLM", ALL_HEADS | {"rotary_pct": 0.5, "rotary_emb_base": 500}),
    Case("nemotron-partial-linear", "NemotronForCausalLM", rope("linear", factor=2.0, partial_rotary_factor=0.5)),
    Case("stablelm-rotates-all", "StableLmForCausalLM", {"partial_rotary_factor": 1.0}),
]

CASES = ARCHITECTURES + OPTIONS + SCALINGS


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_logits_equal_transformers(case: Case, tmp_path: Path) -> None:
    model = random_model(case.architecture, **case.options)
    weights = checkpoint_weights(model, tmp_path)
    ids, other = torch.randint(3, 128, (2, case.length)).tolist()
    with torch.no_grad():
        expected, expected_other = (model(torch.tensor([row])).logits[0] for row in (ids, other))
    assert expected.std() > 0.1  # else a small difference says little

    served = transformers.AutoConfig.from_pretrained(tmp_path)
    for name, value in case.served.items():
        setattr(served, name, value)
    decoder = loaded_decoder(spec_for(served, case.max_model_len), weights)
    torch.testing.assert_close(full_logits(decoder, ids), expected, atol=TOLERANCE, rtol=0)
    got, got_other = chunked_logits(decoder, ids, other)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(got_other, expected_other, atol=TOLERANCE, rtol=0)


def test_every_architecture_is_compared() -> None:
    from headrace.models.registry import supported

    elsewhere = {"BaiChuanForCausalLM", "BaichuanForCausalLM", "Gemma3ForConditionalGeneration", *ENCODERS}
    elsewhere |= {name.replace("Model", "ForSequenceClassification") for name in ENCODERS}
    assert {case.architecture for case in CASES} | elsewhere == {name for name, _, _ in supported()}
