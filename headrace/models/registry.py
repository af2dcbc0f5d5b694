"""Which architectures there are and where each is declared. Loads a family only when a model of it is asked for."""

import difflib
import importlib
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from headrace.models.spec import Spec

# architecture, as in config.json: (family module, function in it, note)
_DECLARED = {
    "ArceeForCausalLM": ("nemotron", "arcee", "AFM"),
    "BaiChuanForCausalLM": ("baichuan", "baichuan", "Baichuan 7B"),
    "BaichuanForCausalLM": ("baichuan", "baichuan", "Baichuan 13B; Baichuan 2 7B and 13B"),
    "BertForSequenceClassification": ("bert", "bert_classifier", "rerankers and classifiers: MS MARCO MiniLM, …"),
    "BertModel": ("bert", "bert", "embeddings: BGE, MiniLM, E5, GTE, …"),
    "CohereForCausalLM": ("cohere", "cohere", "Command R, R+; Aya 23"),
    "Exaone4ForCausalLM": ("exaone", "exaone4", "EXAONE 4.0"),
    "GPT2LMHeadModel": ("gpt", "gpt2", "GPT-2, DistilGPT-2"),
    "GPTNeoXForCausalLM": ("gpt", "gpt_neox", "GPT-NeoX, Pythia, Dolly"),
    "Gemma2ForCausalLM": ("gemma", "gemma2", "Gemma 2"),
    "Gemma3ForCausalLM": ("gemma", "gemma3", "Gemma 3 270M and 1B"),
    "Gemma3ForConditionalGeneration": ("gemma", "gemma3_multimodal", "Gemma 3 4B to 27B; text only"),
    "GemmaForCausalLM": ("gemma", "gemma", "Gemma, CodeGemma"),
    "Glm4ForCausalLM": ("glm", "glm4", "GLM-4-0414, GLM-Z1"),
    "GlmForCausalLM": ("glm", "glm", "GLM-4-9B, GLM-Edge"),
    "GraniteForCausalLM": ("granite", "granite", "Granite 3, PowerLM"),
    "HunYuanDenseV1ForCausalLM": ("hunyuan", "hunyuan_dense", "Hunyuan 0.5B to 7B"),
    "LlamaForCausalLM": ("llama", "llama", "Llama 1 to 3.3, SmolLM2, Yi, DeepSeek-Coder, R1-Distill-Llama, …"),
    "MinistralForCausalLM": ("mistral", "mistral", "Ministral 8B"),
    "MistralForCausalLM": ("mistral", "mistral", "Mistral 7B, NeMo, Small; Ministral 8B"),
    "MixtralForCausalLM": ("mistral", "mixtral", "Mixtral 8x7B, 8x22B"),
    "NemotronForCausalLM": ("nemotron", "nemotron", "Nemotron-4, Minitron"),
    "OPTForCausalLM": ("gpt", "opt", "OPT, but 350M"),
    "Olmo2ForCausalLM": ("olmo", "olmo2", "OLMo 2"),
    "OlmoForCausalLM": ("olmo", "olmo", "OLMo"),
    "OlmoeForCausalLM": ("olmo", "olmoe", "OLMoE"),
    "Phi3ForCausalLM": ("phi", "phi3", "Phi-3, Phi-3.5, Phi-4"),
    "PhiForCausalLM": ("phi", "phi", "Phi-1, 1.5, 2"),
    "Qwen2ForCausalLM": ("qwen", "qwen2", "Qwen 1.5, 2, 2.5; QwQ; R1-Distill-Qwen"),
    "Qwen2MoeForCausalLM": ("qwen", "qwen2_moe", "Qwen1.5-MoE, Qwen2-57B-A14B"),
    "Qwen3ForCausalLM": ("qwen", "qwen3", "Qwen 3, R1-0528-Qwen3"),
    "Qwen3MoeForCausalLM": ("qwen", "qwen3_moe", "Qwen3-30B-A3B, 235B-A22B, Coder"),
    "RobertaForSequenceClassification": ("bert", "roberta_classifier", "classifiers"),
    "RobertaModel": ("bert", "roberta", "embeddings: all-distilroberta, …"),
    "SeedOssForCausalLM": ("llama", "seed_oss", "Seed-OSS"),
    "SmolLM3ForCausalLM": ("llama", "smollm3", "SmolLM3"),
    "StableLmForCausalLM": ("stablelm", "stablelm", "StableLM 3B, 2 1.6B, 2 12B"),
    "Starcoder2ForCausalLM": ("mistral", "starcoder2", "StarCoder2"),
    "XLMRobertaForSequenceClassification": ("bert", "roberta_classifier", "rerankers: BGE base, large, v2-m3; BCE"),
    "XLMRobertaModel": ("bert", "roberta", "embeddings: BGE-M3, BCE, multilingual E5"),
}
CAUSAL, CLASSIFIER, BACKBONE = "ForCausalLM", "ForSequenceClassification", "Model"


class Architecture(NamedTuple):
    """``name`` as declared here, and what of it a checkpoint holds."""

    name: str
    kind: Literal["decoder", "encoder"]
    holds: Literal["head", "classifier", "backbone"]


def architecture_of(hf_config: "PretrainedConfig") -> Architecture:
    """Raises ``ConfigError`` for an architecture that isn't declared.

    Every declared decoder also comes as its backbone alone, or with a classifier in its head's place; one whose config
    names tokens to classify by is called a classifier but has its head.
    """
    names = hf_config.architectures or []
    for name in names:
        if name in _DECLARED:
            kind: Literal["decoder", "encoder"] = "encoder" if _DECLARED[name][0] == "bert" else "decoder"
            holds = "classifier" if name.endswith(CLASSIFIER) else "backbone" if kind == "encoder" else "head"
            return Architecture(name, kind, holds)  # type: ignore[arg-type]
        for suffix, what in ((CLASSIFIER, "classifier"), (BACKBONE, "backbone")):
            if name.endswith(suffix) and (causal := name.removesuffix(suffix) + CAUSAL) in _DECLARED:
                judges = what == "classifier" and getattr(hf_config, "classifier_from_token", None)
                return Architecture(causal, "decoder", "head" if judges else what)  # type: ignore[arg-type]
    raise ConfigError(_unknown(names))


def supported() -> list[tuple[str, str, str]]:
    """(architecture as config.json spells it, family, well-known models of it), sorted by family."""
    return sorted(
        ((name, family, note) for name, (family, _, note) in _DECLARED.items()), key=lambda row: (row[1], row[0])
    )


def spec_for(hf_config: "PretrainedConfig", max_model_len: int, needs_head: bool = True) -> "Spec":
    """The ``Spec`` of the model that ``hf_config`` describes, for contexts of up to ``max_model_len`` tokens.

    ``needs_head``: whether a decoder's output head is wanted. Raises ``ConfigError`` for an architecture that isn't
    declared, or an option in the config that can't be honoured.
    """
    name, kind, holds = architecture_of(hf_config)
    scheme = getattr(hf_config, "quantization_config", None) or {}
    scheme = scheme if isinstance(scheme, dict) else vars(scheme)
    if scheme and (method := scheme.get("quant_method", "unknown")) != "gguf":
        raise ConfigError(
            f"The checkpoint is quantized ({method}), which isn't supported yet; use an unquantized or a GGUF one."
        )
    family, function, _ = _DECLARED[name]
    declare = getattr(importlib.import_module(f"headrace.models.{family}"), function)
    try:
        spec: Spec = declare(hf_config, max_model_len)
    except ConfigError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"The configuration doesn't describe a {name}: {error}.") from error
    learned = spec.learned_positions
    if learned and max_model_len > learned.num_rows - learned.offset:
        raise ConfigError(
            f"The model has embeddings for {learned.num_rows - learned.offset} positions, fewer than the context of "
            f"{max_model_len} tokens; use --max-model-len {learned.num_rows - learned.offset} or less."
        )
    if kind == "decoder" and holds == "classifier":
        from headrace.models.declare import scored

        spec = scored(spec, len(hf_config.id2label or ()))
    elif kind == "decoder" and not needs_head:
        spec = replace(spec, head=False)
    return replace(spec, quantized=scheme.get("kinds", {}))


def _unknown(names: list[str]) -> str:
    if not names:
        return "The model's config.json names no architecture; set one, as in --hf-overrides.architectures."
    known = {name.lower(): name for name in _DECLARED}
    nearest = [known[match] for match in difflib.get_close_matches(names[0].lower(), known, n=3, cutoff=0.0)]
    return (
        f"The architecture {names[0]} isn't supported; the nearest supported ones are {', '.join(nearest)} "
        f"(headrace models lists all)."
    )
