"""What a model is for: to generate, or to be pooled, and then how. Settled from the options and the checkpoint.

Reads sentence-transformers' files beside the weights (modules.json and the folders it names; see
https://sbert.net/docs/sentence_transformer/usage/custom_models.html). Knows no layers and no requests.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.models.registry import Architecture, architecture_of
from headrace.models.source import ModelFiles, read_json
from headrace.types import POOLING_TASKS

if TYPE_CHECKING:
    from transformers import PretrainedConfig

T = TypeVar("T")
Kind = Literal["cls", "mean", "last"]
KINDS: dict[str, Kind] = {"cls": "cls", "mean": "mean", "last": "last", "lasttoken": "last"}
TASKS = {"embedding": "embed", "score": "classify"}  # other names of what --task may ask for
POOLING_FLAG = re.compile("pooling_mode_(.+?)(?:_tokens?)?")
UNSERVED = ("reward", "transcription", "draft")
# Qwen3-Reranker's prompt, from its model card; the judgement is whether "yes" or "no" comes next.
JUDGE_ANSWERS = ("no", "yes")
JUDGE_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


@dataclass(frozen=True)
class Pooling:
    """How hidden states become what is asked for."""

    task: Literal["embed", "classify"]
    kind: Kind
    activate: bool  # normalise embeddings, make scores probabilities, unless a request says otherwise
    main: str | None = None  # of the tasks it is good for, the one that requests mean which name none
    dense: tuple[Path, ...] = ()  # folders of sentence-transformers' Dense modules, in order
    max_length: int | None = None  # tokens of a prompt, if less than the model's positions
    labels: tuple[str, ...] = ()
    multi_label: bool = False  # each score has a sigmoid of its own; else all share a softmax
    answers: tuple[str, ...] = ()  # score by which of two tokens comes next: against, for
    sizes: tuple[int, ...] = ()  # of embeddings, that the checkpoint names as allowed
    prompts: dict[str, str] = field(default_factory=dict)  # what goes before a text, by what it is for


def pooling_of(config: Config, files: ModelFiles, hf_config: "PretrainedConfig") -> Pooling | None:
    """None for a model that generates. Raises ``ConfigError`` if the checkpoint isn't made for what is asked."""
    architecture = architecture_of(hf_config)
    path = Path(files.path)
    modules = _told(path / "modules.json", list[Module]) if files.kind == "hf" else []
    task = _task(config, architecture, hf_config, sentences=bool(modules))
    if task == "generate":
        if config.model.pooler_config:
            raise ConfigError("--pooler-config is for a model that pools: add --task embed, or leave it out.")
        return None
    usual: Kind = "cls" if architecture.kind == "encoder" else "last"
    if task == "classify":
        pooling = _classifier(hf_config, usual, architecture.holds == "head")
    else:
        sizes = tuple(getattr(hf_config, "matryoshka_dimensions", None) or ())
        pooling = _sentences(path, modules, sizes) if modules else Pooling("embed", usual, True, sizes=sizes)
    return replace(pooling, **_settings(config.model.pooler_config or {}))


def _task(config: Config, architecture: Architecture, hf_config: "PretrainedConfig", sentences: bool) -> str:
    """generate, embed or classify: as asked for, else as the checkpoint looks."""
    asked, options = _asked(config), config.model
    name, kind, holds = architecture
    if holds == "classifier":
        usual = "classify"
    elif kind == "encoder" or holds == "backbone" or sentences:
        usual = "embed"
    elif getattr(hf_config, "classifier_from_token", None):
        usual = "classify"
    else:
        usual = "embed" if options.runner == "pooling" else "generate"
    task = asked or usual
    if options.task == "score" and usual == "embed":
        return "embed"  # scores are the cosines of embeddings
    if task == "generate" and holds != "head":
        raise ConfigError(f"{name} is not made to generate; leave --task and --runner out to serve what it is for.")
    if task == "classify" and holds == "backbone":
        raise ConfigError(f"This {name} has no classifier; serve it with --task embed.")
    if task == "embed" and holds == "classifier":
        raise ConfigError(f"This {name} is a classifier; serve it with --task classify.")
    return task


def _asked(config: Config) -> str | None:
    """What the options ask for; None if they leave it to the checkpoint."""
    task, runner, convert = config.model.task, config.model.runner, config.model.convert
    for flag, value in (("--task", task), ("--runner", runner), ("--convert", convert)):
        if value in UNSERVED:
            raise ConfigError(f"{flag} {value} is not supported yet; there are generate, embed, classify and score.")
    wanted = {TASKS.get(task, task)} - {"auto"} | {convert} - {"auto", "none"} | {runner} & {"generate"}
    if len(wanted) > 1 or (runner == "pooling" and "generate" in wanted):
        raise ConfigError(f"--task {task}, --runner {runner} and --convert {convert} contradict each other.")
    return next(iter(wanted), None)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``Pooling`` that --pooler-config sets, by vLLM's names for them."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in ("pooling_type", "seq_pooling_type") and str(value).lower() in KINDS:
            found["kind"] = KINDS[str(value).lower()]
        elif name in ("normalize", "use_activation", "softmax", "activation") and isinstance(value, bool):
            found["activate"] = value
        elif name == "task" and value in POOLING_TASKS:
            found["main"] = value
        elif value is not None:
            raise ConfigError(
                f"--pooler-config can hold pooling_type (CLS, LAST or MEAN), use_activation (true or false) and task "
                f"({', '.join(POOLING_TASKS)}), not {name} {value!r}."
            )
    return found


def _classifier(hf_config: "PretrainedConfig", kind: Kind, judges: bool) -> Pooling:
    """``judges``: it scores by which of two tokens comes next."""
    if judges:
        return Pooling("classify", kind, True, labels=("yes",), answers=_answers(hf_config))
    labels = labels_of(hf_config)
    multi_label = len(labels) == 1 or getattr(hf_config, "problem_type", None) == "multi_label_classification"
    activate = "Identity" not in _activation_name(hf_config)
    return Pooling("classify", kind, activate, labels=labels, multi_label=multi_label)


def labels_of(hf_config: "PretrainedConfig") -> tuple[str, ...]:
    """The names of a classifier's scores, in their order."""
    names = {int(key): str(name) for key, name in (hf_config.id2label or {}).items()}
    return tuple(names[key] for key in sorted(names))


def _answers(hf_config: "PretrainedConfig") -> tuple[str, ...]:
    answers = tuple(getattr(hf_config, "classifier_from_token", None) or JUDGE_ANSWERS)
    if len(answers) != 2:
        raise ConfigError(f"classifier_from_token must name two tokens, against and for, got {len(answers)}.")
    return answers


def _activation_name(hf_config: "PretrainedConfig") -> str:
    """What sentence-transformers' cross-encoders write into config.json of their last activation."""
    own = getattr(hf_config, "sentence_transformers", None) or {}
    return str(own.get("activation_fn") or getattr(hf_config, "sbert_ce_default_activation_function", None) or "")


# -- sentence-transformers' files -----------------------------------------------------------------------------------


class Module(msgspec.Struct):
    """An entry of modules.json: a class, and the folder that holds what it needs."""

    type: str
    path: str


class Limits(msgspec.Struct):
    """Of sentence_bert_config.json."""

    max_seq_length: int | None = None


class Advice(msgspec.Struct):
    """Of config_sentence_transformers.json."""

    prompts: dict[str, str] | None = None


def _told(file: Path, kind: type[T]) -> T:
    """What ``file`` says; an empty ``kind`` if it isn't there."""
    return read_json(file, kind) if file.is_file() else kind()


def _sentences(path: Path, modules: list[Module], sizes: tuple[int, ...]) -> Pooling:
    """How the checkpoint in ``path`` embeds."""
    kind: Kind = "mean"
    normalized, dense = False, []
    for module in modules[1:]:
        name, place = module.type.rpartition(".")[2], path / module.path
        if name == "Pooling":
            kind = _pooling_kind(place)
        elif name == "Dense":
            dense.append(place)
        elif name == "Normalize":
            normalized = True
        else:
            raise ConfigError(f"modules.json names a {name} module; only Pooling, Dense and Normalize are supported.")
    longest = _told(path / "sentence_bert_config.json", Limits).max_seq_length or None
    prompts = _told(path / "config_sentence_transformers.json", Advice).prompts or {}
    return Pooling("embed", kind, normalized, None, tuple(dense), longest, sizes=sizes, prompts=prompts)


def _pooling_kind(place: Path) -> Kind:
    """Of 1_Pooling/config.json: ``pooling_mode`` names it, or one of several flags is set."""
    fields: dict[str, Any] = read_json(place / "config.json")
    flags = [found[1] for key, on in fields.items() if on is True and (found := POOLING_FLAG.fullmatch(key))]
    named = fields.get("pooling_mode") or flags
    kinds = [str(kind) for kind in (named if isinstance(named, list) else [named])]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        names = " and ".join(kinds) or "nothing"
        raise ConfigError(f"{place} asks for pooling by {names}; supported are cls, mean and lasttoken.")
    return KINDS[kinds[0]]
