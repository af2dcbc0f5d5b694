"""What an engine settles before it loads anything."""

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, LlamaConfig

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.models import heads
from headrace.models.pooling import pooling_of
from headrace.models.source import ModelFiles
from headrace.runner import facts


@pytest.mark.parametrize("value", ["warm", -1])
def test_defaults_of_sampling_are_checked_before_a_request_meets_them(value: object) -> None:
    config = Config.from_kwargs(override_generation_config={"temperature": value})
    with pytest.raises(ConfigError, match=r"--override-generation-config has a default .*temperature.*[^.]\.$"):
        facts.settle(config, LlamaConfig(), {}, torch.device("cpu"))


def test_a_model_that_generates_has_no_pooler() -> None:
    config = Config.from_kwargs(pooler_config={"pooling_type": "LAST"})
    with pytest.raises(ConfigError, match="--pooler-config is for a model that pools"):
        pooling_of(config, ModelFiles("m", "m", "hf"), LlamaConfig(architectures=["LlamaForCausalLM"]))


POOLED = '[{"type": "st.Transformer", "path": ""}, {"type": "st.Pooling", "path": "1_Pooling"}]'


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": "["}, "modules.json can't be read"),
        ({"modules.json": '[{"type": "st.Pooling"}]'}, "modules.json can't be read: .*`path`"),
        ({"modules.json": POOLED}, "1_Pooling holds no config.json"),
        ({"modules.json": POOLED, "1_Pooling/config.json": "[]"}, "config.json can't be read"),
        ({"modules.json": POOLED, "1_Pooling/config.json": "{}"}, "asks for pooling by nothing; supported are cls"),
        ({"modules.json": POOLED, "1_Pooling/config.json": '{"pooling_mode": 7}'}, "asks for pooling by 7"),
        (
            {
                "modules.json": '[{"type": "st.Transformer", "path": ""}]',
                "sentence_bert_config.json": '{"max_seq_length": "long"}',
            },
            r"sentence_bert_config\.json can't be read: .*max_seq_length",
        ),
    ],
)
def test_damaged_files_of_sentence_transformers(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    model = ModelFiles("m", str(tmp_path), "hf")
    with pytest.raises(ConfigError, match=message) as caught:
        pooling_of(Config(), model, BertConfig(architectures=["BertModel"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, {"scale": torch.ones(1)}, {"weight": torch.ones(1), "code": print}])
def test_what_is_no_linear_layer(tmp_path: Path, content: object) -> None:
    file = tmp_path / heads.SPARSE
    torch.save(content, file)
    with pytest.raises(ConfigError, match="can't be read as a linear layer") as caught:
        heads.extra_head(file, torch.device("cpu"))
    assert "\n" not in str(caught.value)
