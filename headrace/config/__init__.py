"""The configuration: one frozen tree of dataclasses in which every option is declared once.

Command-line flags, Python keyword arguments, ``--config`` files and docs/options.md all come from these declarations.
Owns their reading and checking; does not know what the engine makes of them (that is reported in EngineInfo).
"""

import dataclasses
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self, get_type_hints

import msgspec

from headrace.config.option import Option, check_keys, nearest, options_of
from headrace.config.options import (
    GENERATION_KEYS,
    MODEL_LEN_THAT_FITS,
    CacheOptions,
    FrontendOptions,
    LoadOptions,
    ModelOptions,
    SchedulerOptions,
    ServerOptions,
)
from headrace.config.parsers import ParserOptions
from headrace.config.profiler import ProfilerSettings, ProfilingOptions, profiler_settings
from headrace.config.structured import structured_settings
from headrace.config.unsupported import FeatureOptions, LegacyOptions, ParallelOptions
from headrace.errors import ConfigError

__all__ = [
    "GROUPS",
    "MODEL_LEN_THAT_FITS",
    "OPTIONS",
    "CompilationConfig",
    "Config",
    "KVTransferConfig",
    "Option",
    "PoolerConfig",
    "ProfilerConfig",
    "ProfilerSettings",
    "ServerOptions",
    "StructuredOutputsConfig",
    "VllmConfig",
    "find_option",
    "nearest",
    "profiler_settings",
    "shown",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Config:
    """Every option of one server or LLM, in groups: ``config.model.dtype``, ``config.cache.block_size``."""

    model: ModelOptions = field(default_factory=ModelOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    cache: CacheOptions = field(default_factory=CacheOptions)
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    frontend: FrontendOptions = field(default_factory=FrontendOptions)
    parsers: ParserOptions = field(default_factory=ParserOptions)
    server: ServerOptions = field(default_factory=ServerOptions)
    profiling: ProfilingOptions = field(default_factory=ProfilingOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    features: FeatureOptions = field(default_factory=FeatureOptions)
    legacy: LegacyOptions = field(default_factory=LegacyOptions)

    @classmethod
    def from_kwargs(cls, **options: Any) -> Self:
        """The configuration that sets ``options`` by their flat names (``max_model_len="40k"``), all else as default.

        Values may be text, as on the command line. Raises ConfigError for an unknown name, a value out of place or
        an option that this version can't honour; logs why an accepted one changes nothing.
        """
        config = cls._build({}, options)
        for note in config.notes():
            log.warning(note)
        return config

    @classmethod
    def planned(cls, **options: Any) -> Self:
        """The same, but for what this version does not have yet: that may be asked for, to plan with."""
        return cls._build({}, options, refuse=False)

    def replace(self, **options: Any) -> Self:
        """A copy with ``options`` changed, checked as in ``from_kwargs``."""
        return self._build(self.flat(), options)

    @classmethod
    def _build(cls, base: dict[str, Any], given: dict[str, Any], refuse: bool = True) -> Self:
        values = dict(base)
        for name, value in given.items():
            option = find_option(name)
            values[option.name] = option.parse(value)
        modernize(values)
        if refuse:
            refuse_later(values)
        groups = {
            group: declared(**{f.name: values[f.name] for f in dataclasses.fields(declared) if f.name in values})
            for group, declared in GROUPS.items()
        }
        config = cls(**groups)
        config._check_together()
        return config

    def flat(self) -> dict[str, Any]:
        """Every option's value by its flat name."""
        return {name: getattr(getattr(self, option.group), name) for name, option in OPTIONS.items()}

    def non_default(self) -> dict[str, Any]:
        """The options that differ from their defaults; secrets are hidden, so it may be logged."""
        return {
            name: "***" if OPTIONS[name].facts.secret else value
            for name, value in self.flat().items()
            if value != OPTIONS[name].default
        }

    def notes(self) -> list[str]:
        """Why options that were set change nothing, a sentence each."""
        return [
            f"{OPTIONS[name].flag} has no effect: {OPTIONS[name].facts.moot}."
            for name in self.non_default()
            if OPTIONS[name].facts.moot
        ]

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """What ``to_json`` wrote, for another process of this server."""
        return msgspec.json.decode(data, type=cls)

    def _check_together(self) -> None:
        """The rules that span options."""
        server, model = self.server, self.model
        if server.ssl_keyfile and not server.ssl_certfile:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile: name the certificate that belongs to the key.")
        if any(not key.isascii() or not key.isprintable() or key.strip() != key or not key for key in server.api_key):
            raise ConfigError("--api-key must be printable ASCII, not empty and without spaces around it.")
        if server.uds and server.host:
            raise ConfigError("--uds and --host exclude each other: leave one of them out.")
        if self.scheduler.long_prefill_token_threshold and not self.scheduler.enable_chunked_prefill:
            raise ConfigError(
                "--long-prefill-token-threshold cuts prompts, which --no-enable-chunked-prefill forbids: leave one out."
            )
        check_keys("--override-generation-config", model.override_generation_config, GENERATION_KEYS)
        profiler_settings(self.profiling.profiler_config)
        structured_settings(self.frontend.structured_outputs_config)
        for path in model.logits_processors:
            module, colon, name = path.partition(":")
            if not (module and colon and name.isidentifier()):
                raise ConfigError(f"--logits-processors must each be module:Class, got {path!r}.")


VllmConfig = Config  # for users' logits processors
CompilationConfig = KVTransferConfig = PoolerConfig = ProfilerConfig = StructuredOutputsConfig = dict  # as options
GROUPS: dict[str, type] = get_type_hints(Config)
OPTIONS: dict[str, Option] = {option.name: option for option in options_of(GROUPS)}
SPELLINGS: dict[str, str] = {
    spelling.lstrip("-").replace("-", "_"): option.name
    for option in OPTIONS.values()
    for spelling in (option.flag, *option.facts.aliases)
}


def find_option(name: str) -> Option:
    """The option of that name or alias, with underscores or dashes; ConfigError with the nearest name if none is."""
    known = SPELLINGS.get(name.lstrip("-").replace("-", "_"))
    if known is None:
        raise ConfigError(f"there is no option {name!r}{nearest(name, OPTIONS)}")
    return OPTIONS[known]


def modernize(values: dict[str, Any]) -> None:
    """Turn older spellings among ``values`` into today's options."""
    if values.pop("disable_log_requests", False):
        values["enable_log_requests"] = False
    if values.pop("profile", False) and not values.get("profiler_config"):
        values["profiler_config"] = {"profiler": "torch"}
    for name in ("rope_scaling", "rope_theta"):
        value = values.pop(name, None)
        if value is not None:
            values["hf_overrides"] = {name: value, **values.get("hf_overrides", {})}


def refuse_later(values: dict[str, Any]) -> None:
    """Raise a ConfigError that names every option set to what this version does not have yet."""
    asked = [
        (f"{option.flag}{shown(values[name])}", option.facts.later)
        for name, option in OPTIONS.items()
        if option.facts.later and values.get(name, option.default) not in (option.default, *option.facts.neutral)
    ]
    if asked:
        flags, needs = (listed(dict.fromkeys(column)) for column in zip(*asked, strict=True))
        verb, them = ("needs", "it") if len(asked) == 1 else ("need", "them")
        raise ConfigError(f"{flags} {verb} {needs}, which this version does not have yet: leave {them} out.")


def listed(items: Iterable[str]) -> str:
    """``a, b and c``."""
    *front, last = items
    return f"{', '.join(front)} and {last}" if front else last


def shown(value: Any) -> str:
    """An option's value as it stands on a command line, after its flag."""
    if value is True:
        return ""
    if isinstance(value, list):
        return " " + " ".join(map(str, value))
    if isinstance(value, float):
        return f" {value:g}"
    return " " + (msgspec.json.encode(value).decode() if isinstance(value, dict) else str(value))
