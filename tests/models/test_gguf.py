"""GGUF files: container, dequantization, the way back to each architecture's configuration and weights, tokenizers."""

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH_NAMES, GGMLQuantizationType
from transformers import PreTrainedConfig, PreTrainedModel

from headrace.errors import ConfigError
from headrace.models import loader
from headrace.models.gguf.architectures import ARCHITECTURES as ARCHITECTURES_OF_FILES
from headrace.models.gguf.reader import GgufFile, GgufTensor
from headrace.models.gguf.weights import values
from headrace.models.registry import spec_for
from headrace.models.source import ModelFiles, load_config
from headrace.models.spec import Spec

from .gguf_files import write
from .util import (
    PagedRunner,
    checkpoint_weights,
    full_logits,
    loaded_decoder,
    new_decoder,
    random_model,
    randomise,
    tiny,
)

Kind = GGMLQuantizationType
KINDS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


# -- the container --------------------------------------------------------------------------------------------------


def test_reads_what_the_gguf_package_reads(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_string("a.text", "grüße 🚀\0")
        writer.add_array("a.words", ["", "one", "zwei\n"])
        writer.add_array("a.numbers", [1.5, -2.0])
        writer.add_array("a.flags", [True, False])
        writer.add_custom_alignment(64)
        for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
            getattr(writer, f"add_{name}")(f"a.{name}", 7)
        writer.add_float64("a.double", 1 / 3)
        writer.add_float32("a.single", 0.1)
        writer.add_bool("a.bool", True)
        writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
        writer.add_tensor("two", np.arange(40, dtype=np.float16).reshape(5, 8))

    path = write(tmp_path / "a.gguf", fill)
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields | {"a.single": 0.1}
    assert {name: tensor.shape for name, tensor in ours.tensors.items()} == {"one": (2, 3), "two": (5, 8)}
    for tensor in theirs.tensors:
        torch.testing.assert_close(values(ours.tensors[tensor.name]), torch.from_numpy(tensor.data.copy()))


def test_a_split_file_is_one_model(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for i, part in enumerate(parts):
        write(part, lambda writer, i=i: writer.add_tensor(f"t{i}", np.ones((1, 32), np.float32)))
    assert sorted(GgufFile(parts[0]).tensors) == ["t0", "t1"]
    with pytest.raises(ConfigError, match=r"isn't the first part.*m-00001-of-00002.gguf"):
        GgufFile(parts[1])
    parts[1].unlink()
    with pytest.raises(ConfigError, match=r"m-00002-of-00002.gguf isn't beside it"):
        GgufFile(parts[0])


DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("other format", lambda data: b"PK\3\4" + data[4:], "isn't a GGUF file"),
    ("version", lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 1"),
    ("header cut", lambda data: data[:40], "damaged or cut short"),
    ("data cut", lambda data: data[:-40], r"cut short: t ends at byte"),
    ("absurd count", lambda data: data[:16] + struct.pack("<Q", 2**60) + data[24:], "damaged or cut short"),
    ("empty", lambda data: b"", "isn't a GGUF file"),
]


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in DAMAGE], ids=[row[0] for row in DAMAGE])
def test_damage_gets_one_sentence(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = write(tmp_path / "a.gguf", lambda writer: writer.add_tensor("t", np.ones((4, 32), np.float32)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=message) as caught:
        GgufFile(path)
    assert "\n" not in str(caught.value)


# -- dequantization -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "message"),
    [("blk.0.attn_q.weight", "lacks the tensor blk.0.attn_output.weight"), ("oddity", "holds 'oddity', which Llama")],
)
def test_tensors_of_no_llama(tmp_path: Path, tensor: str, message: str) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        for key in ("embedding_length", "block_count", "attention.head_count", "attention.key_length"):
            writer.add_uint32(f"llama.{key}", 32)
        writer.add_uint32("llama.context_length", 64)
        for name in {"token_embd.weight", tensor, *(["blk.0.attn_output.weight"] if tensor == "oddity" else [])}:
            writer.add_tensor(name, np.zeros((32, 34), np.uint8), raw_dtype=Kind.Q8_0)

    path = write(tmp_path / "a.gguf", fill)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(ModelFiles("a", str(path), "gguf"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tensor(tmp_path: Path, kind: str) -> None:
    """More elements than are dequantized at a time, against the library doing all at once."""
    block, size = GGML_QUANT_SIZES[Kind[kind]]
    shape = (1100, 256)
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (shape[0], shape[1] // block * size), dtype=np.uint8)
    raw[:, 1::2] &= 0x3B  # keeps half-precision scales finite wherever they lie
    path = write(tmp_path / "a.gguf", lambda writer: writer.add_tensor("t", raw, raw_dtype=Kind[kind]))
    tensor = GgufFile(path).tensors["t"]
    assert tensor.shape == shape
    expected = torch.from_numpy(gguf.quants.dequantize(raw, Kind[kind]))
    torch.testing.assert_close(values(tensor).float(), expected, equal_nan=True, atol=0, rtol=0)
    stacked = GgufTensor(path, "t", (11, 100, 256), tensor.kind, tensor.offset)
    torch.testing.assert_close(
        torch.cat([values(part) for part in stacked.slices()]).float(), expected, equal_nan=True, atol=0, rtol=0
    )


def test_q4_1_by_its_definition(tmp_path: Path) -> None:
    """A block: scale and minimum as halves, 16 bytes whose low nibbles are elements 0-15 and high ones 16-31."""
    quants = np.random.default_rng(0).integers(0, 256, 16, dtype=np.uint8)
    raw = np.frombuffer(struct.pack("<ee", 0.25, -1.5) + quants.tobytes(), np.uint8).reshape(1, 20)
    path = write(tmp_path / "a.gguf", lambda writer: writer.add_tensor("t", raw, raw_dtype=Kind.Q4_1))
    expected = [0.25 * int(q) - 1.5 for q in [*(quants & 15), *(quants >> 4)]]
    assert values(GgufFile(path).tensors["t"]).tolist() == [expected]


# -- architectures --------------------------------------------------------------------------------------------------


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's conversion does to q and k: the halves of each head interleaved."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def projections_first(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 3, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


ARCHITECTURES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    # GGUF's name, transformers' name, config, further metadata
    ("llama", "LlamaForCausalLM", {"rope_parameters": LLAMA3, "attention_bias": True}, {}),
    ("llama", "MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}, {}),
    ("granite", "GraniteForCausalLM", {"logits_scaling": 2.0}, {"logit_scale": 2.0}),
    ("qwen2", "Qwen2ForCausalLM", {"tie_word_embeddings": True}, {}),
    (
        "qwen2moe",
        "Qwen2MoeForCausalLM",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
        },
        {},
    ),
    ("qwen3", "Qwen3ForCausalLM", {"head_dim": 32}, {}),
    (
        "gemma3",
        "Gemma3ForCausalLM",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "num_hidden_layers": 7},
        {"attention.sliding_window": 8, "rope.freq_base": 1e6},
    ),
    (
        "phi3",
        "Phi3ForCausalLM",
        {"partial_rotary_factor": 0.5, "sliding_window": 16},
        {"rope.dimension_count": 8, "attention.sliding_window": 16},
    ),
    ("starcoder2", "Starcoder2ForCausalLM", {}, {}),
    ("stablelm", "StableLmForCausalLM", {"qk_layernorm": True}, {"rope.dimension_count": 4}),
    ("olmo2", "Olmo2ForCausalLM", {}, {}),
    ("command-r", "CohereForCausalLM", {"logit_scale": 0.25}, {"logit_scale": 0.25}),
    ("nemotron", "NemotronForCausalLM", {}, {"rope.dimension_count": 8}),
    ("smollm3", "SmolLM3ForCausalLM", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}, {}),
    ("gpt2", "GPT2LMHeadModel", {"n_positions": 64, "num_key_value_heads": 4}, {}),
    ("gptneox", "GPTNeoXForCausalLM", {"num_key_value_heads": 4}, {"rope.dimension_count": 4}),
]


def converted(model: PreTrainedModel, weights: dict[str, torch.Tensor], name: str, extra: dict[str, Any]) -> Any:
    """Fills a writer with what llama.cpp's conversion makes of ``model``; tensor names are the gguf package's."""
    config = model.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", heads)
    architecture = next(key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)

    def changed(stem: str, value: np.ndarray) -> np.ndarray:
        if name in ("llama", "granite", "smollm3") and stem.endswith(("attn_q", "attn_k")):
            return permute(value, heads if stem.endswith("q") else kv_heads)
        if name == "gpt2" and stem.endswith(("attn_qkv", "attn_output", "ffn_up", "ffn_down")):
            return value.T
        return projections_first(value, heads) if name == "gptneox" and stem.endswith("attn_qkv") else value

    def fill(writer: gguf.GGUFWriter) -> None:
        stacks: dict[str, list[np.ndarray]] = {}
        for weight in sorted(weights, key=natural):
            base, _, suffix = weight.rpartition(".")
            whole = re.sub(r"\.(experts|norms)\.\d+", lambda found: "" if found[1] == "norms" else ".experts", base)
            stem = names.get_name(whole.replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward"))
            stem = f"{stem or names.get_name(whole)}"
            value = changed(stem, weights[weight].float().numpy())
            if name in ("gemma3", "nemotron") and weight.endswith("norm.weight"):
                value = value + 1
            if whole != base:
                stacks.setdefault(f"{stem}.{suffix}", []).append(value)
            else:
                writer.add_tensor(f"{stem}.{suffix}", np.ascontiguousarray(value))
        for stem, stack in stacks.items():
            writer.add_tensor(stem, np.stack(stack))
        add_metadata(writer, name, config, extra)

    return fill


def natural(name: str) -> list[int | str]:
    """Sorts expert 10 after expert 9."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]


def add_metadata(writer: gguf.GGUFWriter, name: str, config: PreTrainedConfig, extra: dict[str, Any]) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", config.num_attention_heads))
    writer.add_eos_token_id(2)
    rope = getattr(config, "rope_parameters", None) or {}
    for field, add in (
        ("rms_norm_eps", writer.add_layer_norm_rms_eps),
        ("layer_norm_eps", writer.add_layer_norm_eps),
        ("layer_norm_epsilon", writer.add_layer_norm_eps),
        ("norm_epsilon", writer.add_layer_norm_eps),
        ("norm_eps", writer.add_layer_norm_eps),
        ("head_dim", writer.add_key_length),
        ("num_experts", writer.add_expert_count),
        ("num_local_experts", writer.add_expert_count),
        ("num_experts_per_tok", writer.add_expert_used_count),
    ):
        if getattr(config, field, None) is not None:
            add(getattr(config, field))
    if "rope_theta" in rope and "rope.freq_base" not in extra:
        writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "llama3":
        frequencies, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
        plain = rope["rope_theta"] ** (-torch.arange(0, len(frequencies)) / len(frequencies))
        writer.add_tensor("rope_freqs.weight", (plain / frequencies).numpy())
    if name == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
    for key, value in extra.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{name}.{key}", value)


def without_frequencies(spec: Spec) -> Spec:
    """``spec`` without rotary frequencies, which a file may give rounded, and renames, which may hold functions."""
    layers = []
    for layer in spec.layers:
        rope = layer.attention.rope and replace(layer.attention.rope, frequencies=())
        layers.append(replace(layer, attention=replace(layer.attention, rope=rope)))
    return replace(spec, layers=tuple(layers), renames=())


@pytest.mark.parametrize(("name", "architecture", "options", "extra"), ARCHITECTURES, ids=[a[1] for a in ARCHITECTURES])
def test_same_model_as_the_checkpoint(
    tmp_path: Path, name: str, architecture: str, options: dict[str, Any], extra: dict[str, Any]
) -> None:
    model_class = getattr(transformers, architecture)
    config = tiny(model_class.config_class, **{"num_hidden_layers": 2, "architectures": [architecture]} | options)
    model = model_class(config)
    randomise(model)
    weights = checkpoint_weights(model, tmp_path / "hf")
    path = write(tmp_path / "model.gguf", converted(model, weights, name, extra), name)
    files = ModelFiles("tiny", str(path), "gguf")
    found = load_config(files)
    spec, expected = spec_for(found, 64), spec_for(config, 64)
    for layer, other in zip(spec.layers, expected.layers, strict=True):
        if layer.attention.rope and other.attention.rope:
            assert layer.attention.rope.frequencies == pytest.approx(other.attention.rope.frequencies, rel=1e-6)
    assert without_frequencies(spec) == without_frequencies(expected)
    assert (found.eos_token_id, str(found.dtype)) == ([2], "torch.float32")
    decoder = new_decoder(spec)
    loader.load(decoder, files)
    for (weight, ours), theirs in zip(
        decoder.named_parameters(), loaded_decoder(expected, weights).parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0, msg=weight)


QUANTIZED: list[tuple[str, dict[str, str], list[str]]] = [
    # kinds by a pattern of the file's names, the methods that the first layer's and the head's matrices get
    ("all Q4_1", {"": "Q4_1"}, ["Int4Blocks"] * 5),
    ("4 bits of both kinds", {"attn_v": "Q4_0", "": "Q4_1"}, ["Int4Blocks"] * 5),
    ("8-bit head", {"token_embd": "Q8_0", "": "Q4_0"}, ["Int4Blocks"] * 4 + ["Int8Rows"]),
    ("mixed in one matrix", {"attn_v": "Q8_0", "": "Q4_1"}, ["Int8Rows"] + ["Int4Blocks"] * 4),
    ("other blocks", {"ffn_down": "Q5_0", "": "Q8_0"}, ["Int8Rows"] * 5),
    ("one matrix plain", {"ffn_down": "F16", "": "Q4_1"}, ["Unquantized"] * 5),
]


@pytest.mark.parametrize(("kinds", "expected"), [row[1:] for row in QUANTIZED], ids=[row[0] for row in QUANTIZED])
def test_quantized_weights_stay_packed(tmp_path: Path, kinds: dict[str, str], expected: list[str]) -> None:
    """Logits near those of the expanded weights; and nothing changes for who asks for float32."""
    model = random_model("LlamaForCausalLM", hidden_size=128, intermediate_size=160, tie_word_embeddings=True)
    plain = converted(model, checkpoint_weights(model, tmp_path / "hf"), "llama", {})

    def fill(writer: gguf.GGUFWriter) -> None:
        add = writer.add_tensor

        def add_quantized(name: str, values: np.ndarray, **options: Any) -> None:
            kind = Kind[next(kind for pattern, kind in kinds.items() if pattern in name)]
            if values.ndim == 2:
                add(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                add(name, values, **options)

        writer.add_tensor = add_quantized
        plain(writer)

    files = ModelFiles("tiny", str(write(tmp_path / "model.gguf", fill, "llama")), "gguf")
    spec = spec_for(load_config(files), 64)
    exact, packed = (new_decoder(spec, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    for decoder in (exact, packed):
        loader.load(decoder, files)
    layer = packed.layers[0]
    matrices = [layer.attention.qkv, layer.attention.o, layer.mlp.gate_up, layer.mlp.down, packed.head]
    assert [type(matrix.method).__name__ for matrix in matrices] == expected
    assert {type(module.method).__name__ for module in exact.modules() if hasattr(module, "method")} == {"Unquantized"}
    ids = list(range(3, 51))
    ours, reference = full_logits(packed, ids).float(), full_logits(exact, ids)
    assert (ours - reference).norm() < 0.06 * reference.norm()
    dummy = new_decoder(spec, dtype=torch.bfloat16)
    loader.load(dummy, files, "dummy")
    assert full_logits(dummy, ids).isfinite().all()
    few = PagedRunner(packed)
    steps = torch.cat([few.step({0: ids[:4]})[0], few.step({0: ids[4:5]})[0]])
    assert (steps - reference[:5]).norm() < 0.06 * reference[:5].norm()


def test_the_page_lists_every_architecture() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    section = page.split("## GGUF files")[1].split("##")[0]
    assert [name for name in ARCHITECTURES_OF_FILES if f"`{name}`" not in section] == []
