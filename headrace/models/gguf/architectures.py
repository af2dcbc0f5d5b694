"""The architectures that GGUF files come in: each one's transformers configuration and weight names.

A file's tensors are named and laid out for llama.cpp's kernels; an ``Architecture`` says how to get back to the
checkpoint that it was converted from, so that a family's one declaration serves both. Knows no tensor values.
Sources: llama.cpp's conversion scripts (what they rename, permute and add) and its model loaders (what they assume).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf.constants import GGMLQuantizationType

from headrace.errors import ConfigError
from headrace.models.gguf.facts import Facts, common_fields, rope_parameters
from headrace.models.gguf.reader import GgufFile

PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
MODEL_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{slice}.gate_proj",  # stacked: slice i is expert i's
    "ffn_up_exps": "mlp.experts.{slice}.up_proj",
    "ffn_down_exps": "mlp.experts.{slice}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
OUT_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """How one GGUF architecture maps to a transformers model."""

    model_type: str
    architecture: str
    fields: Callable[[Facts], Mapping[str, Any]] = lambda facts: {}  # of the config, beside the common ones
    names: Mapping[str, str] = field(default_factory=dict)  # of weights, where they differ from the common ones
    model: str = "model"  # the prefix of all weights but the head's
    layers: str = "layers"
    head: str = "lm_head"
    permuted: bool = False  # the rows of q and k are ordered for rotation in neighbouring pairs
    norm_shift: float = 0.0  # was added to the norms' weights
    transposed: tuple[str, ...] = ()  # the checkpoint stores these [in, out]
    heads_first: str = ""  # the checkpoint orders this one's rows by (head, q/k/v) rather than (q/k/v, head)


def _llama(facts: Facts) -> dict[str, Any]:
    return {"attention_bias": facts.has("blk.0.attn_q.bias"), "mlp_bias": facts.has("blk.0.ffn_up.bias")}


def _mixtral(facts: Facts) -> dict[str, Any]:
    return facts.renamed(num_local_experts="expert_count", num_experts_per_tok="expert_used_count") | {
        "sliding_window": None
    }


def _granite(facts: Facts) -> dict[str, Any]:
    return _llama(facts) | facts.renamed(
        attention_multiplier="attention.scale",
        embedding_multiplier="embedding_scale",
        residual_multiplier="residual_scale",
        logits_scaling="logit_scale",
    )


def _qwen_moe(facts: Facts) -> dict[str, Any]:
    fields = {"moe_intermediate_size": facts.shape("blk.0.ffn_gate_exps.weight")[1]}
    if facts.has("blk.0.ffn_gate_shexp.weight"):
        fields["shared_expert_intermediate_size"] = facts.shape("blk.0.ffn_gate_shexp.weight")[0]
    return fields | facts.renamed(num_experts="expert_count", num_experts_per_tok="expert_used_count")


def _qwen3_moe(facts: Facts) -> dict[str, Any]:
    return _qwen_moe(facts) | {"norm_topk_prob": True, "attention_bias": facts.has("blk.0.attn_q.bias")}


def _olmoe(facts: Facts) -> dict[str, Any]:
    return {
        "intermediate_size": facts.shape("blk.0.ffn_gate_exps.weight")[1],
        "clip_qkv": facts.get("attention.clamp_kqv"),
    } | facts.renamed(num_experts="expert_count", num_experts_per_tok="expert_used_count")


def _gemma(facts: Facts) -> dict[str, Any]:
    fields = facts.renamed(sliding_window="attention.sliding_window", final_logit_softcapping="final_logit_softcapping")
    # The 27B models of both generations scale by the width per head, all others by the head's size.
    heads, layers = facts("attention.head_count"), facts("block_count")
    wide = (facts.name, layers) in (("gemma2", 46), ("gemma3", 62))
    scalar = facts("embedding_length") // heads if wide else facts("attention.key_length")
    return fields | {"query_pre_attn_scalar": scalar}


def _gemma2(facts: Facts) -> dict[str, Any]:
    return _gemma(facts) | facts.renamed(attn_logit_softcapping="attn_logit_softcapping")


def _gemma3(facts: Facts) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": facts.get("rope.freq_base_swa", 10_000.0)}
    ropes = {"full_attention": rope_parameters(facts) | {"rope_theta": facts.get("rope.freq_base", 1e6)}}
    return _gemma(facts) | {"rope_parameters": ropes | {"sliding_attention": local}}


def _phi2(facts: Facts) -> dict[str, Any]:
    return {
        "layer_norm_eps": facts("attention.layer_norm_epsilon"),
        "intermediate_size": facts.shape("blk.0.ffn_up.weight")[0],
    }


def _phi3(facts: Facts) -> dict[str, Any]:
    original = facts.get("rope.scaling.original_context_length", facts("context_length"))
    return {
        "original_max_position_embeddings": original,
        "sliding_window": facts.get("attention.sliding_window") or None,
    }


def _stablelm(facts: Facts) -> dict[str, Any]:
    return {
        "layer_norm_eps": facts("attention.layer_norm_epsilon"),
        "use_qkv_bias": facts.has("blk.0.attn_q.bias"),
        "qk_layernorm": facts.has("blk.0.attn_q_norm.weight"),
        "use_parallel_residual": not facts.has("blk.0.ffn_norm.weight"),
    }


def _cohere(facts: Facts) -> dict[str, Any]:
    return {
        "layer_norm_eps": facts("attention.layer_norm_epsilon"),
        "logit_scale": facts("logit_scale"),
        "use_qk_norm": facts.has("blk.0.attn_q_norm.weight"),
    }


def _glm(facts: Facts) -> dict[str, Any]:
    return {"attention_bias": facts.has("blk.0.attn_q.bias") or facts.has("blk.0.attn_qkv.bias")}


def _exaone4(facts: Facts) -> dict[str, Any]:
    pattern = facts.file.metadata.get("exaone4.attention.sliding_window_pattern")
    fields: dict[str, Any] = {"sliding_window": facts.get("attention.sliding_window")}
    if isinstance(pattern, list):
        fields["layer_types"] = ["sliding_attention" if sliding else "full_attention" for sliding in pattern]
    return fields


def _seed_oss(facts: Facts) -> dict[str, Any]:
    return _llama(facts) | {"attention_out_bias": facts.has("blk.0.attn_output.bias")}


def _baichuan(facts: Facts) -> dict[str, Any]:
    length = facts("context_length")
    alibi = facts("block_count") == 40  # the 13B models, whose configuration tells by the name of this field
    return {"hidden_act": "silu", "model_max_length" if alibi else "max_position_embeddings": length}


def _gpt_neox(facts: Facts) -> dict[str, Any]:
    return {
        "layer_norm_eps": facts("attention.layer_norm_epsilon"),
        "use_parallel_residual": facts.get("use_parallel_residual", True),
    }


GEMMA_NORMS = {**OUT_NORMS, "ffn_norm": "pre_feedforward_layernorm"}
# general.architecture, as llama.cpp calls it
ARCHITECTURES = {
    "llama": Architecture("llama", "LlamaForCausalLM", _llama, permuted=True),
    "arcee": Architecture("arcee", "ArceeForCausalLM", _llama, permuted=True),
    "granite": Architecture("granite", "GraniteForCausalLM", _granite, permuted=True),
    "smollm3": Architecture("smollm3", "SmolLM3ForCausalLM", _llama, permuted=True),
    "seed_oss": Architecture("seed_oss", "SeedOssForCausalLM", _seed_oss, OUT_NORMS),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM"),
    "qwen2moe": Architecture("qwen2_moe", "Qwen2MoeForCausalLM", _qwen_moe),
    "qwen3": Architecture(
        "qwen3", "Qwen3ForCausalLM", lambda facts: {"attention_bias": facts.has("blk.0.attn_q.bias")}
    ),
    "qwen3moe": Architecture("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_moe),
    "gemma": Architecture("gemma", "GemmaForCausalLM", norm_shift=1.0),
    "gemma2": Architecture("gemma2", "Gemma2ForCausalLM", _gemma2, GEMMA_NORMS, norm_shift=1.0),
    "gemma3": Architecture("gemma3_text", "Gemma3ForCausalLM", _gemma3, GEMMA_NORMS, norm_shift=1.0),
    "phi2": Architecture(
        "phi",
        "PhiForCausalLM",
        _phi2,
        {
            "output_norm": "final_layernorm",
            "attn_output": "self_attn.dense",
            "ffn_up": "mlp.fc1",
            "ffn_down": "mlp.fc2",
        },
    ),
    "phi3": Architecture("phi3", "Phi3ForCausalLM", _phi3, {"ffn_up": "mlp.gate_up_proj"}),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        lambda facts: {"norm_epsilon": facts("attention.layer_norm_epsilon")},
        {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "stablelm": Architecture(
        "stablelm",
        "StableLmForCausalLM",
        _stablelm,
        {
            "attn_q_norm": "self_attn.q_layernorm.norms.{slice}",
            "attn_k_norm": "self_attn.k_layernorm.norms.{slice}",
        },
    ),
    "olmo": Architecture(
        "olmo",
        "OlmoForCausalLM",
        lambda facts: {"clip_qkv": facts.get("attention.clamp_kqv")},
        permuted=True,
    ),
    "olmo2": Architecture("olmo2", "Olmo2ForCausalLM", names=OUT_NORMS),
    "olmoe": Architecture("olmoe", "OlmoeForCausalLM", _olmoe),
    "command-r": Architecture("cohere", "CohereForCausalLM", _cohere),
    "chatglm": Architecture("glm", "GlmForCausalLM", _glm, {"ffn_up": "mlp.gate_up_proj"}),
    "glm4": Architecture(
        "glm4",
        "Glm4ForCausalLM",
        _glm,
        {
            "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_up": "mlp.gate_up_proj",
        },
    ),
    "nemotron": Architecture(
        "nemotron",
        "NemotronForCausalLM",
        lambda facts: {"norm_eps": facts("attention.layer_norm_epsilon")},
        norm_shift=1.0,
    ),
    "exaone4": Architecture("exaone4", "Exaone4ForCausalLM", _exaone4, OUT_NORMS),
    "hunyuan-dense": Architecture(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        names={"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
    ),
    "baichuan": Architecture("baichuan", "BaichuanForCausalLM", _baichuan, permuted=True),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        lambda facts: {"layer_norm_epsilon": facts("attention.layer_norm_epsilon")},
        {
            "token_embd": "wte",
            "position_embd": "wpe",
            "output_norm": "ln_f",
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        model="transformer",
        layers="h",
        transposed=("attn_qkv", "attn_output", "ffn_up", "ffn_down"),
    ),
    "gptneox": Architecture(
        "gpt_neox",
        "GPTNeoXForCausalLM",
        _gpt_neox,
        {
            "token_embd": "embed_in",
            "output_norm": "final_layer_norm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        model="gpt_neox",
        head="embed_out",
        heads_first="attn_qkv",
    ),
}
MIXTRAL = Architecture(  # calls itself llama, with experts
    "mixtral",
    "MixtralForCausalLM",
    _mixtral,
    {
        "ffn_gate_inp": "block_sparse_moe.gate",
        "ffn_gate_exps": "block_sparse_moe.experts.{slice}.w1",
        "ffn_down_exps": "block_sparse_moe.experts.{slice}.w2",
        "ffn_up_exps": "block_sparse_moe.experts.{slice}.w3",
    },
    permuted=True,
)


def architecture_of(file: GgufFile) -> Architecture:
    """The architecture of the model in ``file``; ``ConfigError`` for one that isn't known."""
    facts = Facts(file)
    if facts.name == "llama" and facts.get("expert_count"):
        return MIXTRAL
    if facts.name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ConfigError(f"GGUF files of architecture {facts.name!r} aren't supported; supported are {known}.")
    return ARCHITECTURES[facts.name]


def checkpoint_name(name: str, architecture: Architecture) -> str:
    """The checkpoint's name of the tensor that the file calls ``name``; ``{slice}`` in it counts a stack's tensors."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    layer, stem, kind = found.groups() if found else (None, name, "")
    if layer is None and stem == "output":
        return f"{architecture.head}.{kind}"
    table = (MODEL_NAMES if layer is None else LAYER_NAMES) | dict(architecture.names)
    if stem not in table:
        raise ConfigError(f"The GGUF file holds {name!r}, which {architecture.architecture} has no place for.")
    inside = "" if layer is None else f"{architecture.layers}.{layer}."
    return f"{architecture.model}.{inside}{table[stem]}.{kind}"


def config_fields(file: GgufFile) -> dict[str, Any]:
    """The configuration of the model in ``file``, as config.json would have it."""
    architecture, facts = architecture_of(file), Facts(file)
    own = {"model_type": architecture.model_type, "architectures": [architecture.architecture]}
    fields = own | common_fields(facts) | dict(architecture.fields(facts))
    kinds = quantized_kinds(file, architecture)
    return fields | ({"quantization_config": {"quant_method": "gguf", "kinds": kinds}} if kinds else {})


def quantized_kinds(file: GgufFile, architecture: Architecture) -> dict[str, str]:
    """How each matrix is quantized, by the checkpoint's names. Empty unless all are, and by their outputs."""
    matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
    plain, stacked = any(tensor.kind in PLAIN for tensor in matrices), any(len(t.shape) > 2 for t in matrices)
    if plain or stacked or any(tensor.stem in architecture.transposed for tensor in matrices):
        return {}
    return {checkpoint_name(tensor.name, architecture): tensor.kind.name for tensor in matrices}
