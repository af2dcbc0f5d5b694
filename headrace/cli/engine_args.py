"""vLLM's EngineArgs and argument parser, for scripts that have an engine's options among their own.

Knows the options' declarations and the spellings of flags; starts nothing.
"""

import argparse
import copy
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.cli.parser import ENGINE_GROUPS, add_option, normalize
from headrace.config import OPTIONS, Config, Option
from headrace.errors import ConfigError

OF_THE_SERVER = ("disable_log_stats", "enable_log_requests")  # but vLLM's engines have them, too
ENGINE_OPTIONS = [
    option for option in OPTIONS.values() if option.group in ENGINE_GROUPS or option.name in OF_THE_SERVER
]


class _EngineArgs:
    """An engine's options by their flat names, as attributes; checked by whatever starts one."""

    if TYPE_CHECKING:

        def __init__(self, **options: Any): ...
        def __getattr__(self, name: str) -> Any: ...

    def create_engine_config(self) -> Config:
        """The options as a configuration. Raises ``ConfigError`` as ``Config.from_kwargs`` does."""
        from headrace.frontend.overrides import configured

        return configured(dataclasses.asdict(self))  # type: ignore[call-overload]

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Give ``parser`` a flag for each option; what it parses has the options' names."""
        section = parser.add_argument_group("engine")
        for option in ENGINE_OPTIONS:
            settings: dict[str, Any] = {} if option.kind is bool else {"action": "store"}
            if option.kind not in (bool, list):
                settings["type"] = _reader(option)
            add_option(section, option, dest=option.name, default=copy.copy(option.default), **settings)
        return parser

    @classmethod
    def from_cli_args(cls, arguments: argparse.Namespace) -> "_EngineArgs":
        """The options among what a parser with ``add_cli_args`` has parsed."""
        given = vars(arguments)
        return cls(**{option.name: given[option.name] for option in ENGINE_OPTIONS if option.name in given})


def _reader(option: Option) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return option.parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


if TYPE_CHECKING:
    EngineArgs = _EngineArgs
else:
    EngineArgs = dataclasses.make_dataclass(
        "EngineArgs",
        [
            (option.name, option.type, dataclasses.field(default_factory=partial(copy.copy, option.default)))
            for option in ENGINE_OPTIONS
        ],
        bases=(_EngineArgs,),
        namespace={"__module__": __name__, "__doc__": _EngineArgs.__doc__},
    )


class FlexibleArgumentParser(argparse.ArgumentParser):
    """argparse, but flags may be written with dashes or underscores, and JSON options with dotted keys.

    A script's own flag takes the place of an engine option of that name.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **({"conflict_handler": "resolve"} | settings))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        own = {flag.replace("_", "-"): flag for flag in self._option_string_actions}
        tokens = (token.partition("=") for token in normalize(sys.argv[1:] if args is None else args))
        return super().parse_known_args([own.get(flag, flag) + rest + value for flag, rest, value in tokens], namespace)
