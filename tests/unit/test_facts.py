"""What an engine settles before it loads anything."""

import pytest
import torch
from transformers import LlamaConfig

from headrace.config import Config
from headrace.errors import ConfigError
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
