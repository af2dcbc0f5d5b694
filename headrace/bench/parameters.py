"""What a sweep varies: parameter files as `vllm bench sweep serve` reads them, the cheat sheet's suites, and flags.

A parameter set maps flags without their dashes to values: ``{"max_num_seqs": 8, "enable_prefix_caching": False}``.
Knows neither servers nor results.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from headrace.bench.files import read_json
from headrace.command import dashed, has_flag, without_flag
from headrace.errors import ConfigError

Parameters = dict[str, Any]
NAME = "_benchmark_name"  # vLLM's key for what a set is called; keys with "_" in front are no flags
SUITE = "_suite"  # of which a set is a point
DEFAULTS = "_defaults"  # flags of a set that yield to those of the benchmark's command

RESULT = {"percentile_metrics": "ttft,tpot,itl,e2el", "save_result": True}  # what we make of each needs these
# The value that each suite varies, its points, and what else it sets unless the benchmark's command does.
WORKLOAD = {"dataset_name": "random", "num_prompts": 100}
SUITES: dict[str, tuple[str, tuple[float, ...], Parameters]] = {
    "rate": (
        "request_rate",
        (1, 2, 4, 8, 16, 32, float("inf")),
        {"random_input_len": 512, "random_output_len": 256},
    ),
    "concurrency": (
        "max_concurrency",
        (1, 2, 4, 8, 16, 32, 64, 128),
        {"random_input_len": 512, "random_output_len": 256, "request_rate": "inf"},
    ),
    "input": (
        "random_input_len",
        (128, 256, 512, 1024, 2048, 4096, 8192, 16384),
        {"random_output_len": 1, "request_rate": 4},  # nearly all work is prefill, hardly any waits
    ),
    "output": (
        "random_output_len",
        (64, 128, 256, 512, 1024, 2048),
        {"random_input_len": 128, "request_rate": 4},
    ),
}
SEED = 42  # of a suite's first point; each has its own, or the prefix cache would know all prompts from the second on


def suite_points(names: Iterable[str], values: dict[str, list[float]]) -> list[Parameters]:
    """The parameter sets of suites, in ascending load; ``values`` replaces the points of the suites it names."""
    points: list[Parameters] = []
    for suite in names:
        flag, default, fixed = SUITES[suite]
        for value in sorted(values.get(suite, default)):
            number = "inf" if value == float("inf") else value if value % 1 else int(value)
            points.append(suite_point(suite, f"{suite}={number}", fixed, SEED + len(points)) | {flag: number})
    return points


def suite_point(suite: str, name: str, fixed: Parameters, seed: int) -> Parameters:
    """The set called ``name`` of a suite, but for the flags that it varies."""
    defaults = WORKLOAD | fixed | {"ignore_eos": True, "save_detailed": True, "seed": seed}
    return {NAME: name, SUITE: suite, DEFAULTS: defaults}


def read_parameters(path: str | None, flag: str) -> list[Parameters]:
    """The sets of a parameter file: a list of objects, or an object of objects by name. Without a file, one empty set.

    Raises ConfigError naming ``flag`` if the file is anything else.
    """
    if path is None:
        return [{}]
    content = read_json(Path(path), flag)
    if isinstance(content, dict):
        content = [{NAME: name, **fields} if isinstance(fields, dict) else fields for name, fields in content.items()]
    if not isinstance(content, list) or not content or not all(isinstance(fields, dict) for fields in content):
        raise ConfigError(f"{flag} {path} must hold a list of objects, or an object of objects by name.")
    names = [name_of(fields) for fields in content]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{flag} {path} has two sets called {twice!r}: every {NAME} must be another.")
    return content


def name_of(fields: Parameters) -> str:
    """What a set is called: its own name, or its values."""
    values = "-".join(f"{key}={value}" for key, value in flags_of(fields).items())
    return str(fields.get(NAME, values))


def flags_of(fields: Parameters) -> Parameters:
    """The part of a set that becomes flags."""
    return {key: value for key, value in fields.items() if not key.startswith("_")}


def file_name(text: str) -> str:
    return re.sub(r'[/\\:*?"<>|\s]', "_", text)


def linked(serve: Parameters, bench: Parameters, links: Sequence[tuple[str, str]]) -> bool:
    """Whether two sets belong together: every linked pair of values is equal."""
    keys = (normal(serve), normal(bench))
    return all(keys[0].get(dashed(a)) == keys[1].get(dashed(b)) for a, b in links)


def read_links(text: str | None) -> list[tuple[str, str]]:
    """``a=b,c=d`` as pairs of a server's and a benchmark's parameter."""
    pairs = [tuple(pair.split("=")) for pair in (text or "").split(",") if pair]
    if any(len(pair) != 2 for pair in pairs):
        raise ConfigError("--link-vars needs pairs such as max_num_seqs=max_concurrency, separated by commas.")
    return [(pair[0], pair[1]) for pair in pairs]


def normal(fields: Parameters) -> Parameters:
    return {dashed(key): value for key, value in fields.items()}


def with_flags(words: Sequence[str], fields: Parameters) -> list[str]:
    """A command with a set's flags, each in place of the one that the command had."""
    command = list(words)
    for key, value in flags_of(fields).items():
        flag = f"--{dashed(key)}"
        command = without_flag(command, flag, has_value=not isinstance(value, bool))
        if isinstance(value, bool) and "." in flag:
            command.append(f"{flag}={str(value).lower()}")
        elif isinstance(value, bool):
            command.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            command += [flag, *map(str, value)]
        else:
            command += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return command


def with_defaults(words: Sequence[str], fields: Parameters) -> list[str]:
    """The same for those flags alone that the command lacks."""
    return with_flags(words, {key: value for key, value in fields.items() if not has_flag(words, key)})


def measuring(
    bench: Sequence[str], url: str, output: Path, defaults: Parameters, fields: Parameters | None = None
) -> list[str]:
    """The benchmark ``bench`` of the server at ``url``, unless it names another, with its result in ``output``.

    ``defaults`` yield to the command's own flags, ``fields`` replace them.
    """
    if not any(has_flag(bench, key) for key in ("base_url", "host", "port")):
        defaults = defaults | {"base_url": url}
    kept = RESULT | {"result_dir": str(output.parent), "result_filename": output.name}
    return with_flags(with_defaults(bench, defaults), (fields or {}) | kept)
