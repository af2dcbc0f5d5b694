"""What a sweep varies: parameter files as `vllm bench sweep serve` reads them, the cheat sheet's suites, and flags.

Knows neither servers nor results.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from headrace.bench.files import read_json
from headrace.command import dashed, has_flag, without_flag
from headrace.errors import ConfigError

Flags = dict[str, Any]  # by name, without dashes: {"max_num_seqs": 8, "enable_prefix_caching": False}
NAME = "_benchmark_name"  # a file's key for what a set is called, as vLLM has it


@dataclass(frozen=True)
class Parameters:
    """A set of flags to try. ``defaults`` are more of them, which yield to those of the command."""

    name: str
    flags: Flags
    suite: str = ""  # of which it is a point, if of any
    defaults: Flags = field(default_factory=dict)


class Suite(NamedTuple):
    """The flag that a suite varies, its points in ascending load, and what else it sets."""

    flag: str
    points: tuple[float, ...]
    fixed: Flags


RESULT = {"percentile_metrics": "ttft,tpot,itl,e2el", "save_result": True}  # what we make of each needs these
WORKLOAD = {"dataset_name": "random", "num_prompts": 100, "ignore_eos": True, "save_detailed": True}  # of every suite
LENGTHS = {"random_input_len": 512, "random_output_len": 256}
SUITES = {
    "rate": Suite("request_rate", (1, 2, 4, 8, 16, 32, float("inf")), LENGTHS),
    "concurrency": Suite("max_concurrency", (1, 2, 4, 8, 16, 32, 64, 128), LENGTHS | {"request_rate": "inf"}),
    "input": Suite(
        "random_input_len",
        (128, 256, 512, 1024, 2048, 4096, 8192, 16384),
        {"random_output_len": 1, "request_rate": 4},  # nearly all work is prefill, hardly any waits
    ),
    "output": Suite("random_output_len", (64, 128, 256, 512, 1024, 2048), {"random_input_len": 128, "request_rate": 4}),
}
SEED = 42  # of a suite's first point; each has its own, or the prefix cache would know all prompts from the second on


def suite_points(names: Iterable[str], values: dict[str, list[float]]) -> list[Parameters]:
    """The parameter sets of suites, in ascending load; ``values`` replaces the points of the suites it names."""
    points: list[Parameters] = []
    for name in names:
        suite = SUITES[name]
        for value in sorted(values.get(name, suite.points)):
            number = "inf" if value == float("inf") else value if value % 1 else int(value)
            defaults = WORKLOAD | suite.fixed | {"seed": SEED + len(points)}
            points.append(Parameters(f"{name}={number}", {suite.flag: number}, name, defaults))
    return points


def read_parameters(path: str | None, flag: str) -> list[Parameters]:
    """The sets of a parameter file: a list of objects, or an object of objects by name. Without a file, one empty set.

    A set without a name is called after its values; keys with "_" in front are no flags. Raises ConfigError naming
    ``flag`` if the file is anything else.
    """
    if path is None:
        return [Parameters("", {})]
    content = read_json(Path(path), flag)
    if isinstance(content, dict):
        content = [{NAME: name, **fields} if isinstance(fields, dict) else fields for name, fields in content.items()]
    if not isinstance(content, list) or not content or not all(isinstance(fields, dict) for fields in content):
        raise ConfigError(f"{flag} {path} must hold a list of objects, or an object of objects by name.")
    sets = []
    for fields in content:
        flags = {key: value for key, value in fields.items() if not key.startswith("_")}
        values = "-".join(f"{key}={value}" for key, value in flags.items())
        sets.append(Parameters(str(fields.get(NAME, values)), flags))
    names = [file_name(one.name) for one in sets]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"{flag} {path} has two sets whose folders are called {twice!r}: every {NAME} must be another."
        )
    return sets


def file_name(text: str) -> str:
    return re.sub(r'[/\\:*?"<>|\s]', "_", text)


def linked(serve: Parameters, bench: Parameters, links: Sequence[tuple[str, str]]) -> bool:
    """Whether two sets belong together: every linked pair of values is equal."""
    server, benchmark = ({dashed(key): value for key, value in fields.items()} for fields in (serve.flags, bench.flags))
    return all(server.get(dashed(a)) == benchmark.get(dashed(b)) for a, b in links)


def read_links(text: str | None) -> list[tuple[str, str]]:
    """``a=b,c=d`` as pairs of a server's and a benchmark's parameter."""
    pairs = [tuple(pair.split("=")) for pair in (text or "").split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError("--link-vars needs pairs such as max_num_seqs=max_concurrency, separated by commas.")
    return [(pair[0], pair[1]) for pair in pairs]


def with_flags(words: Sequence[str], flags: Flags) -> list[str]:
    """A command with ``flags``, each in place of the one that the command had."""
    command = list(words)
    for key, value in flags.items():
        flag = f"--{dashed(key)}"
        num_values = 0 if isinstance(value, bool) else math.inf if isinstance(value, list) else 1
        command = without_flag(command, flag, num_values=num_values)
        if isinstance(value, bool) and "." in flag:
            command.append(f"{flag}={str(value).lower()}")
        elif isinstance(value, bool):
            command.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            command += [flag, *map(str, value)]
        else:
            command += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return command


def with_defaults(words: Sequence[str], flags: Flags) -> list[str]:
    """The same for those alone that the command lacks."""
    return with_flags(words, {key: value for key, value in flags.items() if not has_flag(words, key)})


def measuring(bench: Sequence[str], url: str, output: Path, defaults: Flags, flags: Flags) -> list[str]:
    """The benchmark ``bench`` of the server at ``url``, unless it names another, with its result in ``output``.

    ``defaults`` yield to the command's own flags, ``flags`` replace them.
    """
    if not any(has_flag(bench, key) for key in ("base_url", "host", "port")):
        defaults = defaults | {"base_url": url}
    kept = RESULT | {"result_dir": str(output.parent), "result_filename": output.name}
    return with_flags(with_defaults(bench, defaults), flags | kept)
