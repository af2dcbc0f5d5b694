"""Options from Python, text and files: parsed, checked, refused or noted, and the same after a trip as JSON."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from headrace.config import GROUPS, OPTIONS, Config
from headrace.config.plugin import load_class
from headrace.errors import ConfigError

MODEL_LEN = "--max-model-len must be a whole number of at least 1 such as 40000, 40k or 1K or auto, got "
HUGE = "9" * 309
NOT_YET = ", which this version does not have yet: leave it out."


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("max_model_len", "40k", 40_000),
        ("max_model_len", "1K", 1024),
        ("max_model_len", "25.6k", 25_600),
        ("max_model_len", "auto", -1),
        ("max_model_len", -1, -1),
        ("max_model_len", "-1", -1),
        ("max_model_len", None, None),
        ("model", None, ""),
        ("kv_cache_memory_bytes", "2GiB", 2 * 2**30),
        ("kv_cache_memory_bytes", "1.5g", 1_500_000_000),
        ("max_num_batched_tokens", "8192", 8192),
        ("gpu_memory_utilization", "0.5", 0.5),
        ("cpu_kv_cache_gb", 2, 2.0),
        ("enforce_eager", "true", True),
        ("enable-prefix-caching", "no", False),
        ("served_model_name", "a", ["a"]),
        ("served_model_name", ("a", "b"), ["a", "b"]),
        ("allowed_origins", '["x", "y"]', ["x", "y"]),
        ("hf_overrides", '{"rope_theta": 5.0}', {"rope_theta": 5.0}),
        ("tp", "1", 1),
        ("-O", 3, "3"),
        ("port", 0, 0),
    ],
)
def test_values(name: str, given: Any, expected: Any) -> None:
    config = Config.from_kwargs(**{name: given})
    changed = {key: value for key, value in config.flat().items() if value != Config().flat()[key]}
    assert expected in changed.values() or (not changed and expected in (None, "", 1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_modle_len": 1}, "there is no option 'max_modle_len'; did you mean max_model_len?"),
        ({"zzz": 1}, "there is no option 'zzz'."),
        ({"port": "abc"}, "--port must be a whole number between 0 and 65535, got 'abc'."),
        ({"port": 70_000}, "--port must be a whole number between 0 and 65535, got 70000."),
        (
            {"kv_cache_memory_bytes": f"{HUGE}k"},
            f"--kv-cache-memory-bytes must be a whole number of at least 1 such as 40000, 40k or 1K, got '{HUGE}k'.",
        ),
        ({"shutdown_timeout": "inf"}, "--shutdown-timeout must be a number of at least 0, got inf."),
        ({"block_size": 0}, "--block-size must be a whole number between 1 and 256, got 0."),
        ({"dtype": "int8"}, "--dtype must be one of auto, half, float16, bfloat16, float, float32, got 'int8'."),
        ({"max_model_len": 0}, MODEL_LEN + "0."),
        ({"max_model_len": "4q"}, MODEL_LEN + "'4q'."),
        ({"gpu_memory_utilization": "nan"}, "--gpu-memory-utilization must be a number between 0.01 and 1, got nan."),
        ({"hf_overrides": "[1]"}, "--hf-overrides must be a JSON object, got [1]."),
        ({"api_key": [12345]}, "--api-key must be a list of texts."),
        ({"api_key": ["good", ""]}, "--api-key must be printable ASCII, not empty and without spaces around it."),
        ({"hf_overrides": "{"}, "--hf-overrides must be a JSON object, got '{'."),
        ({"trust_remote_code": 1}, "--trust-remote-code must be true or false, got 1."),
        ({"tokenizer": 5}, "--tokenizer must be text, got 5."),
        ({"served_model_name": [1]}, "--served-model-name must be a list of texts, got [1]."),
        ({"ssl_keyfile": "k"}, "--ssl-keyfile needs --ssl-certfile: name the certificate that belongs to the key."),
        ({"uds": "s", "host": "h"}, "--uds and --host exclude each other: leave one of them out."),
        (
            {"enable_chunked_prefill": False, "long_prefill_token_threshold": 9},
            "--long-prefill-token-threshold cuts prompts, which --no-enable-chunked-prefill forbids: leave one out.",
        ),
        ({"logits_processors": "mine"}, "--logits-processors must each be module:Class, got 'mine'."),
        ({"enable_lora": True}, "--enable-lora needs LoRA" + NOT_YET),
        ({"kv_cache_dtype": "fp8"}, "--kv-cache-dtype fp8 needs a quantized KV cache" + NOT_YET),
        (
            {"speculative_config": {"method": "ngram"}},
            '--speculative-config {"method":"ngram"} needs speculative decoding' + NOT_YET,
        ),
        (
            {"lora_modules": ["a=b", "c=d"], "dp": 2, "pp": 3},
            "--pipeline-parallel-size 3, --data-parallel-size 2 and --lora-modules a=b c=d need pipeline "
            "parallelism, data parallelism and LoRA, which this version does not have yet: leave them out.",
        ),
    ],
)
def test_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        Config.from_kwargs(**options)
    assert str(error.value) == sentence


def test_older_spellings_become_todays(caplog: pytest.LogCaptureFixture) -> None:
    config = Config.from_kwargs(
        disable_log_requests=True,
        enable_log_requests=True,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        rope_theta="5e5",
        hf_overrides={"rope_theta": 7.0},
        task="generate",
        swap_space=16,
        num_scheduler_steps=8,
        guided_decoding_backend="xgrammar",
    )
    assert not config.server.enable_log_requests
    assert config.model.hf_overrides == {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 7.0}
    assert [record.message.split(" has no effect: ")[0] for record in caplog.records] == [
        "--swap-space",
        "--num-scheduler-steps",
        "--guided-decoding-backend",
    ]


def test_replace_keeps_the_rest_and_checks() -> None:
    config = Config.from_kwargs(model="m", max_model_len="2K")
    changed = config.replace(max_model_len=512, dtype="float32")
    assert (changed.model.model, changed.model.max_model_len, changed.model.dtype) == ("m", 512, "float32")
    assert config.model.max_model_len == 2048
    with pytest.raises(ConfigError):
        config.replace(tensor_parallel_size=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.model.dtype = "auto"  # type: ignore[misc]


def test_json_carries_everything_and_logs_no_secret() -> None:
    config = Config.from_kwargs(
        model="m", api_key=["sk-1"], hf_token="hf_1", hf_overrides={"a": [1, {"b": None}]}, served_model_name=["x"]
    )
    assert Config.from_json(config.to_json()) == config
    shown = f"{config!r} {config.non_default()}"
    assert "sk-1" not in shown
    assert "hf_1" not in shown
    assert config.non_default()["api_key"] == "***"


def test_torch_dtypes_are_understood() -> None:
    import torch

    assert Config.from_kwargs(dtype=torch.bfloat16).model.dtype == "bfloat16"


def test_declarations_are_sound() -> None:
    names = [field.name for group in GROUPS.values() for field in dataclasses.fields(group)]
    assert len(names) == len(set(names)), "two groups share a name"
    spellings = [spelling for option in OPTIONS.values() for spelling in (option.flag, *option.facts.aliases)]
    assert len(spellings) == len(set(spellings)), "two options share a flag"
    assert Config().flat() == {name: option.default for name, option in OPTIONS.items()}
    assert Config().notes() == []
    for option in OPTIONS.values():
        assert option.parse(option.default) == option.default, option.name
        assert option.facts.help.endswith((".", ";")), option.name
        assert not (option.facts.later and option.facts.moot), option.name
        for neutral in option.facts.neutral:
            Config.from_kwargs(**{option.name: neutral})


def test_a_users_class_may_lie_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_own_plugin.py").write_text("class Own: ...")
    (tmp_path / "json.py").write_text("raise RuntimeError('not the library')")
    (tmp_path / "our_broken_plugin.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path])
    assert load_class("--flag", "our_own_plugin:Own").__name__ == "Own"
    assert load_class("--flag", "json:JSONDecoder") is json.JSONDecoder
    with pytest.raises(ConfigError, match=r"--flag our_broken_plugin:Own can't be loaded.*no_such_library"):
        load_class("--flag", "our_broken_plugin:Own")
