"""Specs from configs, weights by name, and the one-sentence errors when either doesn't fit."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, PretrainedConfig

from headrace.errors import ConfigError
from headrace.models.registry import spec_for, supported

from .util import checkpoint_weights, full_logits, loaded_decoder, new_decoder, randomise, tiny

IDS = list(range(3, 23))


def config_of(architecture: str, **options: Any) -> PretrainedConfig:
    config = tiny(getattr(transformers, architecture).config_class, **options)
    config.architectures = [architecture]
    return config


def llama(tmp_path: Path, **options: Any) -> tuple[PretrainedConfig, dict[str, torch.Tensor], torch.Tensor]:
    """A tiny Llama's config, weights and logits for ``IDS``."""
    config = config_of("LlamaForCausalLM", **options)
    model = transformers.LlamaForCausalLM(config).eval()
    randomise(model)
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    return config, checkpoint_weights(model, tmp_path), logits


BAD_CONFIGS: list[tuple[str, Callable[[], PretrainedConfig], str]] = [
    ("unknown", lambda: LlamaConfig(architectures=["LlamoForCausalLM"]), "LlamoForCausalLM .* LlamaForCausalLM,"),
    ("far off", lambda: LlamaConfig(architectures=["T5Model"]), "T5Model isn't supported; the nearest .*, .*, "),
    ("nameless", lambda: LlamaConfig(), "names no architecture"),
    (
        "quantized",
        lambda: config_of("LlamaForCausalLM", quantization_config={"quant_method": "awq"}),
        r"quantized \(awq\)",
    ),
    ("activation", lambda: config_of("LlamaForCausalLM", hidden_act="mish"), "activation 'mish'.*gelu_new"),
    (
        "rope type",
        lambda: config_of("LlamaForCausalLM", rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
        "rope type 'spiral'.*llama3, longrope, proportional, yarn",
    ),
    (
        "rope factors",
        lambda: config_of(
            "LlamaForCausalLM",
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0],
                "long_factor": [1.0] * 3,
            },
        ),
        "needs 8 factors for each length, got 1",
    ),
    ("bidirectional", lambda: config_of("GemmaForCausalLM", use_bidirectional_attention=True), "bidirectional"),
    ("layer type", lambda: _with(config_of("Qwen3ForCausalLM"), layer_types=["chunked_attention"] * 4), "'chunked_"),
    ("layer count", lambda: _with(config_of("Qwen3ForCausalLM"), layer_types=["full_attention"]), "doesn't describe"),
    ("opt-350m", lambda: config_of("OPTForCausalLM", do_layer_norm_before=False), "OPT-350M"),
    ("opt projected", lambda: config_of("OPTForCausalLM", word_embed_proj_dim=32), "word_embed_proj_dim"),
    ("cross-attention", lambda: config_of("GPT2LMHeadModel", add_cross_attention=True), "cross-attention"),
    (
        "positions",
        lambda: config_of("GPT2LMHeadModel", n_positions=32, max_position_embeddings=32),
        "--max-model-len 32",
    ),
    ("field missing", lambda: PretrainedConfig(architectures=["LlamaForCausalLM"]), "attention_bias"),
]


def _with(config: PretrainedConfig, **fields: Any) -> PretrainedConfig:
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(("config", "message"), [row[1:] for row in BAD_CONFIGS], ids=[row[0] for row in BAD_CONFIGS])
def test_bad_configs_get_one_sentence(config: Callable[[], PretrainedConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        spec_for(config(), 64)
    assert "\n" not in str(caught.value)


def test_known_name_is_taken_from_several() -> None:
    config = config_of("LlamaForCausalLM")
    config.architectures = ["MyLlama", "LlamaForCausalLM"]
    assert spec_for(config, 64).dim == 64


def test_supported_loads_no_torch() -> None:
    code = "import sys; from headrace.models.registry import supported; supported(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_lists_every_architecture() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {family} | {note} |" for name, family, note in supported()]


def test_spec_leaves_the_config_alone() -> None:
    config = config_of("LlamaForCausalLM", rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})
    before = copy.deepcopy(config.to_dict())
    spec_for(config, 64)
    assert config.to_dict() == before


def test_windows_that_never_fill_are_dropped() -> None:
    config = config_of("MistralForCausalLM", sliding_window=16)
    windows = {length: {layer.attention.window for layer in spec_for(config, length).layers} for length in (16, 17)}
    assert windows == {16: {None}, 17: {16}}


def test_missing_extra_and_misshapen_weights(tmp_path: Path) -> None:
    config, weights, _ = llama(tmp_path)
    decoder = new_decoder(spec_for(config, 64))
    with pytest.raises(ConfigError, match=r"'model.layers.9.mlp.up_proj.weight', which LlamaForCausalLM has no place"):
        decoder.load_weight("model.layers.9.mlp.up_proj.weight", torch.zeros(96, 64))
    with pytest.raises(ConfigError, match=r"q_proj.weight' has shape \[64, 32\].* needs \[64, 64\]"):
        decoder.load_weight("model.layers.0.self_attn.q_proj.weight", torch.zeros(64, 32))
    del weights["model.layers.1.self_attn.k_proj.weight"], weights["model.norm.weight"]
    for name, tensor in weights.items():
        decoder.load_weight(name, tensor)
    with pytest.raises(ConfigError, match=r"lacks 2 of .* weights: layers.1.attention.k.weight, norm.weight\."):
        decoder.finish_loading()


def test_tied_embeddings_are_one_tensor_and_ignore_a_saved_head(tmp_path: Path) -> None:
    config, weights, logits = llama(tmp_path, tie_word_embeddings=True)
    weights |= {"lm_head.weight": torch.full((128, 64), torch.nan), "model.rotary_emb.inv_freq": torch.zeros(8)}
    decoder = loaded_decoder(spec_for(config, 64), weights)
    assert decoder.head.weight.data_ptr() == decoder.embedding.weight.data_ptr()
    torch.testing.assert_close(full_logits(decoder, IDS), logits, atol=1e-4, rtol=0)


def test_fused_names_fill_all_their_parts(tmp_path: Path) -> None:
    config, weights, logits = llama(tmp_path)
    for i in range(config.num_hidden_layers):
        prefix = f"model.layers.{i}"
        for fused, parts in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
            room = f"{prefix}.{fused.split('.')[0]}"
            whole = torch.cat([weights.pop(f"{room}.{part}_proj.weight") for part in parts])
            weights[f"{prefix}.{fused}_proj.weight"] = whole
    decoder = loaded_decoder(spec_for(config, 64), weights)
    torch.testing.assert_close(full_logits(decoder, IDS), logits, atol=1e-4, rtol=0)


def test_stacked_experts_load_whole() -> None:
    config = config_of("Qwen3MoeForCausalLM", num_experts=4, moe_intermediate_size=48, num_experts_per_tok=2)
    decoder = new_decoder(spec_for(config, 64))
    experts = decoder.layers[0].mlp.experts
    gate_up, down = torch.randn(4, 96, 64), torch.randn(4, 64, 48)
    decoder.load_weight("model.layers.0.mlp.experts.gate_up_proj", gate_up)
    decoder.load_weight("model.layers.0.mlp.experts.down_proj", down)
    assert torch.equal(experts.gate_up, gate_up) and torch.equal(experts.down, down)


@pytest.mark.parametrize("style", ["saved", "older"])
def test_gemma3_with_vision_serves_its_text_model(style: str, tmp_path: Path) -> None:
    text = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 5, "head_dim": 16}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=tiny(transformers.Gemma3TextConfig, **text).to_dict(),
        vision_config=vision | {"image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        pad_token_id=0,
    )
    config._attn_implementation = "eager"
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    randomise(model)
    weights = checkpoint_weights(model, tmp_path)
    with torch.no_grad():
        logits = model(torch.tensor([IDS]), token_type_ids=torch.zeros(1, len(IDS), dtype=torch.long)).logits[0]
    if style == "older":
        weights = {
            name.replace("model.language_model.", "language_model.model.").replace("model.v", "v"): tensor
            for name, tensor in weights.items()
        }
    served = transformers.AutoConfig.from_pretrained(tmp_path)
    decoder = loaded_decoder(spec_for(served, 64), weights)
    torch.testing.assert_close(full_logits(decoder, IDS), logits, atol=1e-4, rtol=0)


def test_dummy_weights_depend_on_the_seed_alone() -> None:
    spec = spec_for(config_of("Gemma3ForCausalLM"), 64)
    logits = []
    for seed in (1, 1 + 2**64, 2):
        decoder = new_decoder(spec)
        decoder.init_dummy(seed)
        decoder.finish_loading()
        logits.append(full_logits(decoder, IDS))
    assert torch.isfinite(logits[0]).all() and logits[0].std() > 0
    assert torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[2])
