"""Command-line syntax: argparse, taught the spellings that vLLM's users write, and to fail in one line.

Owns the flags that the configuration's options become and how ``--config`` files and flags merge; knows no command.
"""

import argparse
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from headrace.bench.files import unreadable
from headrace.config import GROUPS, OPTIONS, SPELLINGS, Config, Option, find_option, nearest, shown
from headrace.config.profiler import VARIABLE
from headrace.errors import ConfigError

ENGINE_GROUPS = tuple(group for group in GROUPS if group != "server")
PREFIX = "option:"  # of the attributes that hold configuration options among a command's own arguments


@dataclass(frozen=True)
class Group:
    """Commands that share a beginning: each is a module of ``package`` with ``add_arguments`` and ``run``."""

    prog: str
    package: str
    description: str
    commands: dict[str, str]  # with what each is for


class FlagParser(argparse.ArgumentParser):
    """argparse, but flags may have underscores, JSON options dotted keys, and an error is a ConfigError.

    The beginning of a flag stands for it, as with argparse, from the second of its words on. With ``takes_command``,
    the words after ``--`` are no arguments but a command to run, ``command`` in what ``parse`` returns.
    """

    takes_command = False

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=HelpFormatter, **settings)

    def parse(self, tokens: Sequence[str]) -> argparse.Namespace:
        """What ``tokens`` set. Raises ConfigError, and never exits but for --help."""
        command: Sequence[str] = ()
        if self.takes_command and "--" in tokens:
            place = tokens.index("--")
            tokens, command = tokens[:place], tokens[place + 1 :]
        tokens = ["--help" if token.startswith("--help=") else token for token in tokens]  # vLLM's shows a part of it
        parsed, unknown = self.parse_known_args(normalize(tokens))
        if unknown:
            flag = unknown[0].partition("=")[0]
            if not flag.startswith("-"):
                self.error(f"unexpected argument {flag!r}")
            self.error(f"there is no flag {flag}{nearest(flag, self._option_string_actions)}")
        if self.takes_command:
            parsed.command = list(command)
        return parsed

    def _get_option_tuples(self, option_string: str) -> list[Any]:
        """What a flag's beginning may stand for: nothing within its first word, where --prot is a slip for --port."""
        name = option_string.partition("=")[0]
        whole_words = not name.startswith("--") or "-" in name[2:]
        return super()._get_option_tuples(option_string) if whole_words else []

    def error(self, message: str) -> NoReturn:
        sentence = message.removeprefix("argument ")
        stop = "" if sentence.endswith((".", "?")) else "."
        raise ConfigError(f"{sentence}{stop} `{self.prog} --help` lists all flags.")


class HelpFormatter(argparse.HelpFormatter):
    """Shows a flag's default after its help, and its value once, not again after each alias."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36)

    def _get_help_string(self, action: argparse.Action) -> str:
        default = f"{action.default:g}" if isinstance(action.default, float) else action.default
        told = (
            isinstance(default, str | int) and not isinstance(default, bool) and default not in ("", argparse.SUPPRESS)
        )
        return (action.help or "") + (f" [{default}]".replace("%", "%%") if told else "")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            positive = [flag for flag in action.option_strings if not flag.startswith("--no-")]
            return ", ".join(flag.replace("--", "--[no-]", 1) for flag in positive)
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def normalize(tokens: Iterable[str]) -> list[str]:
    """The same tokens with dashes for underscores in flags, and ``--name.key value`` as ``--name {"key": value}``."""
    result: list[str] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if token == "--":
            return [*result, token, *rest]
        if not re.match(r"--\w", token):
            result.append(token)
            continue
        name, equals, value = token.partition("=")
        base, dot, path = name.partition(".")
        base = base.replace("_", "-")
        if not dot:
            result.append(base + equals + value)
            continue
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("-") else "true"
        result += [base, json.dumps(nested(path.split("."), json_or_text(value)))]
    return result


def json_or_text(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except ValueError:
        return text


def nested(keys: Sequence[str], value: Any) -> Any:
    return {keys[0]: nested(keys[1:], value)} if keys else value


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """``second`` over ``first``, objects inside merged as well."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def add_options(parser: FlagParser, groups: Iterable[str] = tuple(GROUPS)) -> None:
    """Give ``parser`` the flags of the configuration's ``groups``, the model as its positional, and ``--config``."""
    parser.usage = "%(prog)s [MODEL] [FLAG …]"
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="The model, as --model takes it.")
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; those on the command line win.")
    for group in groups:
        section = parser.add_argument_group((GROUPS[group].__doc__ or group).rstrip("."))
        for option in OPTIONS.values():
            if option.group == group:
                add_option(section, option)


def add_option(section: Any, option: Option, **settings: Any) -> None:
    """Give ``section`` the flags of an option that nothing else has; ``settings`` are argparse's, over those here."""
    facts = option.facts
    flags = [
        flag for flag in dict.fromkeys((option.flag, *facts.aliases)) if flag not in section._option_string_actions
    ]
    if not flags:
        return
    usual: dict[str, Any] = {
        "dest": PREFIX + option.name,
        "default": argparse.SUPPRESS,
        "help": describe(option).replace("%", "%%"),
    }
    if option.kind is bool:
        usual["action"] = argparse.BooleanOptionalAction
    else:
        words = {int: "N", float: "X", dict: "JSON", str: "TEXT", list: "ITEM"}
        usual["metavar"] = facts.metavar or ("|".join(facts.choices) if facts.choices else words[option.kind])
    if option.kind is list:
        usual |= {"nargs": "+", "action": "extend"}
    elif option.kind is dict:
        usual["action"] = "append"
    section.add_argument(*flags, **usual | settings)


def describe(option: Option) -> str:
    default = option.default
    if default in (None, "", [], {}, False):
        return option.facts.help
    return f"{option.facts.help} [{'on' if default is True else shown(default).strip()}]"


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that the command line sets, by name."""
    given: dict[str, Any] = {}
    for attribute, value in vars(arguments).items():
        if not attribute.startswith(PREFIX):
            continue
        option = OPTIONS[attribute.removeprefix(PREFIX)]
        given[option.name] = reduce(merged, map(option.parse, value)) if option.kind is dict else value
    positional = arguments.model_argument
    if positional is not None:
        if given.get("model", positional) != positional:
            raise ConfigError(f"two models are named, {positional} and --model {given['model']}: leave one out.")
        given["model"] = positional
    return given


def options_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that the environment, a command's ``--config`` file and its flags set, the later ones winning."""
    from_file = {} if arguments.config is None else read_config_file(arguments.config)
    return environment() | from_file | given_options(arguments)


def engine_options_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """The same for a command without a server, whom what the environment says of one doesn't concern."""
    options, servers = options_from(arguments), ("api_key", "server_dev_mode", "uvicorn_log_level")
    return {name: value for name, value in options.items() if name not in servers}


def config_from(arguments: argparse.Namespace) -> Config:
    """The configuration that a command's arguments ask for."""
    return Config.from_kwargs(**options_from(arguments))


def environment() -> dict[str, Any]:
    """The options that environment variables set, as vLLM's do; nothing below the command line reads any."""
    values: dict[str, Any] = {}
    for name in ("VLLM_API_KEY", "HEADRACE_API_KEY"):
        if os.environ.get(name):
            values["api_key"] = [os.environ[name]]
    if os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1":
        values["allow_long_max_model_len"] = True
    if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
        values["server_dev_mode"] = True
    if level := os.environ.get("VLLM_LOGGING_LEVEL"):
        values["uvicorn_log_level"] = level.lower()
    if directory := os.environ.get("VLLM_TORCH_PROFILER_DIR"):
        values["profiler_config"] = {"profiler": "torch", "torch_profiler_dir": directory}
    if settings := os.environ.get(VARIABLE):  # set by `headrace profile` for its command
        values["profiler_config"] = settings
    return values


def read_config_file(path: str) -> dict[str, Any]:
    """The options in a YAML file whose keys are flags without their dashes in front."""
    import yaml  # takes a while, and few commands need it

    try:
        content = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, "--config") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold flags with their values, such as `port: 8000`.")
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key)
        negated = name.replace("_", "-").removeprefix("no-")
        if name not in SPELLINGS and negated != name.replace("_", "-") and isinstance(value, bool):
            name, value = negated, not value
        try:
            values[find_option(name).name] = value
        except ConfigError as error:
            raise ConfigError(f"in --config {path}, {error}") from None
    return values
