"""Where a model comes from: directory, hub id, GGUF file or the packaged default; and what beside weights is in it.

Owns finding the files, and reading configuration, generation defaults and tokenizer. Knows no weights and no layers.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from headrace.config.options import LoadOptions, ModelOptions
from headrace.errors import ConfigError
from headrace.files import write_whole
from headrace.models import hub, packaged
from headrace.models.gguf.reader import GgufFile, choose_file, parts
from headrace.models.stored import choose_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
T = TypeVar("T")

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
SHAPES = Path(__file__).parent / "shapes"  # configurations of well-known models, by which to plan and to measure
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken")  # configurations, tokenizers, chat templates
MODULES = re.compile(  # of sentence-transformers, and BGE-M3's heads: small files beside the weights
    r"\d+_\w+/(config\.json|model\.safetensors|pytorch_model\.bin)|(colbert|sparse)_linear\.pt"
)
SAMPLING_KEYS = {  # of GGUF metadata, and what generation_config.json calls them
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


class ModelFiles(msgspec.Struct, frozen=True):
    """A model on this machine: a directory in Hugging Face's layout (``hf``), or a GGUF file. All of one revision."""

    name: str  # as the user called it
    path: str
    kind: Literal["hf", "gguf"]


def resolve(model: ModelOptions, load: LoadOptions) -> ModelFiles:
    """Find the model's files, downloading what is missing.

    ``model.model`` is a directory, a GGUF file, a hub id, either with ``:file.gguf`` (or a part of that name) behind
    it, or empty for the packaged default. With ``load_format`` dummy no weights are needed or downloaded, but those
    in a GGUF file, and it may also be one of the ``shapes``. Raises ``ConfigError`` in one sentence if there is nothing
    that can be loaded.
    """
    return _find(model.model, model.revision, model, load, weights=load.load_format != "dummy")


def load_config(
    files: ModelFiles, hf_overrides: dict[str, Any] | None = None, trust_remote_code: bool = False
) -> "PretrainedConfig":
    """The model's configuration, with ``hf_overrides`` merged into it (nested dictionaries too).

    Code from the checkpoint runs only with ``trust_remote_code``, and only for a model type that transformers doesn't
    know; without it such a configuration is a plain ``PretrainedConfig`` of all that config.json says.
    """
    path = Path(files.path)
    if files.kind == "gguf":
        from headrace.models.gguf.architectures import config_fields

        fields = config_fields(GgufFile(path))
    else:
        fields = read_json(path / CONFIG)
    fields = _merged(fields, hf_overrides or {})
    if isinstance(name := fields.get("architectures"), str):  # as --hf-overrides.architectures NAME has it
        fields["architectures"] = [name]

    from transformers import PretrainedConfig, __version__

    key = hashlib.sha256(json.dumps([__version__, fields], sort_keys=True).encode()).hexdigest()
    cached = packaged.cache_root() / "configs" / f"{key}.json"
    if cached.is_file():
        return PretrainedConfig.from_dict(read_json(cached))

    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = str(fields.get("model_type"))
    try:
        if model_type in CONFIG_MAPPING:
            return _completed(CONFIG_MAPPING[model_type].from_dict(fields), cached)
        if trust_remote_code and "AutoConfig" in fields.get("auto_map", {}):
            own = type(AutoConfig.from_pretrained(path, trust_remote_code=True))
            return own.from_dict(fields)
        return PretrainedConfig.from_dict(fields)
    except ConfigError:
        raise
    except Exception as error:  # the configuration classes' own checks raise all sorts
        reason = " ".join(str(error).split())
        raise ConfigError(f"The configuration of {files.name} isn't valid for a {model_type}: {reason}.") from error


def generation_config(files: ModelFiles, where: str = "auto") -> dict[str, Any]:
    """What the model's makers advise for sampling, by generation_config.json's names; ``eos_token_id`` may be there.

    ``where``: auto (the model's own), vllm (none), or a directory that holds another generation_config.json.
    """
    if where == "vllm":
        return {}
    if where != "auto":
        path = Path(where).expanduser()
        return read_json(path if path.is_file() else path / GENERATION_CONFIG)
    if files.kind == "gguf":
        metadata = GgufFile(Path(files.path)).metadata
        return {name: metadata[key] for key, name in SAMPLING_KEYS.items() if key in metadata}
    path = Path(files.path) / GENERATION_CONFIG
    return read_json(path) if path.is_file() else {}


def load_tokenizer(files: ModelFiles, model: ModelOptions, load: LoadOptions) -> "PreTrainedTokenizerBase":
    """The model's tokenizer, or the one that ``model.tokenizer`` names, with its chat template if it has one.

    Raises ``ConfigError`` if there is none.
    """
    if model.tokenizer:
        revision = model.tokenizer_revision or (model.revision if model.tokenizer == model.model else None)
        files = _find(model.tokenizer, revision, model, replace(load, load_format="auto"), weights=False)
    if files.kind == "gguf":
        from headrace.models.gguf.tokenizer import gguf_tokenizer

        return gguf_tokenizer(GgufFile(Path(files.path)))
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # "slow" asks for the Python class of a tokenizer that has one; transformers 5 has but one for most.
    options = {"trust_remote_code": model.trust_remote_code, "use_fast": model.tokenizer_mode != "slow"}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.path, **options)
        if len(tokenizer) > len(tokenizer.all_special_tokens):
            return tokenizer
        raise ValueError("there is no vocabulary")  # transformers makes up an empty one
    except Exception as error:  # depends on the tokenizer's class: OSError, ValueError, ImportError, KeyError, …
        reason = error
    if (Path(files.path) / "tokenizer.json").is_file():  # complete in itself, whatever class it asks for
        logger.warning("Reading tokenizer.json alone, as the tokenizer's own class can't be used: %s", reason)
        return PreTrainedTokenizerFast.from_pretrained(files.path)
    first = (str(reason).strip().splitlines() or [type(reason).__name__])[0].rstrip(".: ")
    raise ConfigError(
        f"{files.path} holds no tokenizer that can be loaded ({first}); name one with --tokenizer, or use "
        "--skip-tokenizer-init."
    ) from reason


def read_json(path: Path, kind: type[T] = dict[str, Any]) -> T:  # type: ignore[assignment]
    """The JSON in ``path``, which must be of a ``kind``. Raises ``ConfigError``."""
    try:
        return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), kind)
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} holds no {path.name}.") from None
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path} can't be read: {error}.") from error


def shapes() -> list[str]:
    """The names of the shapes that Headrace ships: models without weights, for dummy ones and for planning."""
    return sorted(path.name for path in SHAPES.iterdir())


def _find(name: str | None, revision: str | None, model: ModelOptions, load: LoadOptions, weights: bool) -> ModelFiles:
    path = _local(name or "")
    if not name or (name == packaged.NAME and not path.exists()):
        return _gguf(packaged.NAME, packaged.default_model(), load)
    if os.path.isdir(path):
        return _in_directory(name, path, "", load, weights)
    if os.path.isfile(path):
        if path.suffix == ".safetensors":
            raise ConfigError(f"{name} is one file of a checkpoint; give the directory that it lies in.")
        return _gguf(name, path, load)
    if name in shapes():
        if load.load_format == "dummy":
            return ModelFiles(name, str(SHAPES / name), "hf")
        raise ConfigError(
            f"{name} is a shape only, without weights or a tokenizer: add --load-format dummy --skip-tokenizer-init to "
            "measure with random weights, or name the model's directory or hub id."
        )
    repository, _, wanted = name.partition(":")
    if wanted and os.path.isdir(directory := _local(repository)):
        return _in_directory(name, directory, wanted, load, weights)
    if name.startswith(("/", ".", "~")) or repository.count("/") > 1 or repository.endswith(".gguf"):
        raise ConfigError(f"There is no file or directory {name}.")

    def choose(names: list[str]) -> list[str]:
        top = [one for one in names if "/" not in one]
        if wanted or _only_gguf(top, load):
            return [str(part) for part in parts(Path(choose_file(names, wanted, repository)))]
        code = (".py",) if model.trust_remote_code else ()
        texts = [one for one in top if one.endswith(TEXTS + code)] + [one for one in names if MODULES.fullmatch(one)]
        return texts + choose_weights(top, repository) if weights else texts

    directory = hub.download(repository, choose, revision, model.hf_token, load.download_dir)
    return _in_directory(name, directory, wanted, load, weights)


def _local(name: str) -> Path:
    """The path that ``name`` is if it is one; os.path's functions, other than pathlib's, take names that can't be."""
    return Path(os.path.expanduser(name))


def _in_directory(name: str, path: Path, wanted: str, load: LoadOptions, weights: bool) -> ModelFiles:
    names = sorted(str(one.relative_to(path)) for one in path.rglob("*.gguf")) if wanted else []
    names = names or sorted(one.name for one in path.iterdir())
    if wanted or _only_gguf(names, load):
        return _gguf(name, path / choose_file(names, wanted, name.removesuffix(f":{wanted}")), load)
    if weights:
        choose_weights(names, name)
    return ModelFiles(name, str(path), "hf")


def _only_gguf(names: list[str], load: LoadOptions) -> bool:
    """Whether a directory of ``names`` is to be read as a GGUF file's."""
    if load.load_format == "gguf":
        return True
    has_gguf = any(name.endswith(".gguf") for name in names)
    has_weights = any(name.endswith(".safetensors") for name in names) and CONFIG in names
    return load.load_format != "safetensors" and has_gguf and not has_weights


def _gguf(name: str, path: Path, load: LoadOptions) -> ModelFiles:
    if load.load_format == "safetensors":
        raise ConfigError(f"{path.name} is a GGUF file, so it can't be loaded with --load-format safetensors.")
    return ModelFiles(name, str(path), "gguf")


def _completed(config: "PretrainedConfig", cached: Path) -> "PretrainedConfig":
    """A plain configuration of all fields that ``config``'s class filled in, also kept as the file ``cached``.

    Importing such a class takes seconds. A configuration made of others stays as it is.
    """
    from transformers import PretrainedConfig

    if any(isinstance(value, PretrainedConfig) for value in vars(config).values()):
        return config
    aliases = {alias: getattr(config, alias) for alias in config.attribute_map}
    text = json.dumps(config.to_dict() | aliases)
    with contextlib.suppress(OSError):  # then the next start is slow, too
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_whole(cached, text)
    return PretrainedConfig.from_dict(json.loads(text))


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
