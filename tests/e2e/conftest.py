"""What the end-to-end tests share: one server of the default model, and a checkpoint that computes in no time."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.config import Config
from headrace.models import source
from tests.models.util import random_model

from .server import Server

FEATURES = ("--tool-call-parser", "hermes", "--enable-tokenizer-info-endpoint", "--enable-prompt-embeds")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A start takes as long as many a test: whoever needs no options of its own, and no quiet, asks this one."""
    with Server(
        "--kv-cache-memory-bytes", "512M", "--max-model-len", "1024", "--server-dev-mode", *FEATURES
    ) as started:
        yield started


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights behind the default model's tokenizer, for tests to which it is all one what the model says."""
    path: Path = tmp_path_factory.mktemp("models") / "tiny"
    config = Config()
    source.load_tokenizer(source.resolve(config.model, config.load), config.model, config.load).save_pretrained(path)
    sizes = {"vocab_size": 49152, "max_position_embeddings": 2048, "tie_word_embeddings": True}
    random_model("LlamaForCausalLM", **sizes).save_pretrained(path)
    return path


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For processes that a test kills: what they leave goes with it. A short path, for sockets take no long ones."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield
