"""What a GGUF file says of its model, in the terms of a transformers configuration. Knows no architecture by name."""

from typing import Any

import numpy as np
from gguf.constants import GGMLQuantizationType

from headrace.errors import ConfigError
from headrace.models.gguf.reader import GgufFile, GgufTensor

DEFAULT_ROPE_BASE = 10_000.0
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<|endofturn|>")
DTYPES = {
    GGMLQuantizationType.F32: "float32",
    GGMLQuantizationType.F16: "float16",
}  # all others, quantized ones too, compute in bfloat16 unless told otherwise: no model overflows it


class Facts:
    """A file's metadata by the architecture's own keys (``attention.head_count``), and its tensors' shapes."""

    def __init__(self, file: GgufFile):
        self.file, self.name = file, str(file["general.architecture"])

    def __call__(self, key: str) -> Any:
        """The value of ``key``; one that is given for each layer must be the same for all."""
        return self._single(key, self.file[f"{self.name}.{key}"])

    def get(self, key: str, default: Any = None) -> Any:
        """The same, or ``default`` where the file doesn't say."""
        return self._single(key, self.file.metadata.get(f"{self.name}.{key}", default))

    def renamed(self, **keys: str) -> dict[str, Any]:
        """Configuration fields by the keys that hold them: those that the file has."""
        return {name: self.get(key) for name, key in keys.items() if self.get(key) is not None}

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    def tensor(self, name: str) -> GgufTensor:
        if not self.has(name):
            raise ConfigError(f"{self.file.path} lacks the tensor {name}.")
        return self.file.tensors[name]

    def shape(self, tensor: str) -> tuple[int, ...]:
        """A tensor's shape in row-major order."""
        return self.tensor(tensor).shape

    def floats(self, tensor: str) -> list[float] | None:
        """The values of a small F32 tensor, or None if there is none of that name."""
        if not self.has(tensor):
            return None
        at = self.file.tensors[tensor]
        return np.fromfile(at.path, np.float32, at.num_bytes // 4, offset=at.offset).tolist()

    def _single(self, key: str, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            raise ConfigError(f"The layers in {self.file.path} differ in {key}, which isn't supported.")
        return value[0]


def common_fields(facts: Facts) -> dict[str, Any]:
    """The configuration fields that mean the same in every architecture."""
    metadata, heads = facts.file.metadata, facts("attention.head_count")
    return {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_tokens(metadata) or None,
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "vocab_size": facts.shape("token_embd.weight")[0],
        "hidden_size": facts("embedding_length"),
        "num_hidden_layers": facts("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": facts.get("attention.head_count_kv", heads),
        "head_dim": head_dim(facts),
        "max_position_embeddings": facts("context_length"),
        "tie_word_embeddings": not facts.has("output.weight"),
        "rope_parameters": rope_parameters(facts),
        "dtype": DTYPES.get(facts.tensor("blk.0.attn_output.weight").kind, "bfloat16"),
    } | facts.renamed(intermediate_size="feed_forward_length", rms_norm_eps="attention.layer_norm_rms_epsilon")


def end_tokens(metadata: dict[str, Any]) -> list[int]:
    """The tokens that end a text or a turn. Files from before there was a key for the latter tell by their template."""
    keys = [f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom")]
    ids: set[int] = {metadata[key] for key in keys if key in metadata}
    tokens, template = metadata.get("tokenizer.ggml.tokens", []), metadata.get("tokenizer.chat_template", "")
    ids |= {tokens.index(text) for text in TURN_ENDS if text in template and text in tokens}
    return sorted(ids)


def head_dim(facts: Facts) -> int:
    """Size of a head; older files tell only by the shape of what multiplies all heads' outputs."""
    heads = facts("attention.head_count")
    return int(facts.get("attention.key_length") or facts.shape("blk.0.attn_output.weight")[1] // heads)


def rope_parameters(facts: Facts) -> dict[str, Any]:
    """The rotary embedding's base, share of the head and scaling.

    Llama 3's scaling is stored as its result, one factor a frequency: what LongRoPE calls factors, with nothing else
    changed.
    """
    rotary = facts.get("rope.dimension_count") or head_dim(facts)
    parameters = {"rope_type": "default", "rope_theta": facts.get("rope.freq_base", DEFAULT_ROPE_BASE)}
    if rotary != head_dim(facts):
        parameters["partial_rotary_factor"] = rotary / head_dim(facts)
    kind, original = facts.get("rope.scaling.type", "none"), facts.get("rope.scaling.original_context_length")
    long, short = facts.floats("rope_factors_long.weight"), facts.floats("rope_factors_short.weight")
    if long and short:
        scaling: dict[str, Any] = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        scaling |= facts.renamed(attention_factor="rope.scaling.attn_factor")
    elif factors := facts.floats("rope_freqs.weight"):
        scaling = {"rope_type": "longrope", "long_factor": factors, "short_factor": factors}
        scaling |= {"factor": 1.0, "attention_factor": 1.0}
    elif kind in ("linear", "yarn"):
        scaling = {"rope_type": kind, "factor": facts("rope.scaling.factor")}
        if kind == "yarn":
            scaling |= facts.renamed(
                attention_factor="rope.scaling.yarn_attn_factor",
                beta_fast="rope.scaling.yarn_beta_fast",
                beta_slow="rope.scaling.yarn_beta_slow",
            )
    elif kind in ("none", "longrope"):  # "longrope" without factors: a model whose short context needs none
        return parameters
    else:
        raise ConfigError(f"{facts.file.path} asks for the rope scaling {kind!r}, which isn't supported.")
    if scaling["rope_type"] != "linear":
        scaling["original_max_position_embeddings"] = original or facts("context_length")
    return parameters | scaling
