"""The file of a run's result: its name as vLLM has it, and writing it so that a full disk costs no figures."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from headrace.bench.files import write_whole
from headrace.errors import ConfigError


def check_directory(path: Path, flag: str) -> None:
    """Make ``path`` and try whether files can be written there. Raises ConfigError; before a run, not after it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"{flag} {path} can't be written to: {error.strerror}.") from None


def save(path: Path, result: dict[str, Any], append: bool, siblings: dict[str, str]) -> list[str]:
    """Write ``result`` to ``path``, and ``siblings``, texts by suffix, beside it. Returns what went wrong.

    What can't be kept there goes to the directory for temporary files, and at the worst, in short, to stdout.
    """
    text = json.dumps(result)
    try:
        write_whole(path, f"{path.read_text()}\n{text}" if append and path.exists() else text)
        for suffix, content in siblings.items():
            write_whole(path.with_suffix(suffix), content)
        return []
    except OSError as error:
        trouble = [f"{path} can't be written: {error.strerror}"]
    elsewhere = Path(tempfile.gettempdir()) / path.name
    try:
        write_whole(elsewhere, text)
        return [*trouble, f"the result is in {elsewhere} instead"]
    except OSError as error:
        json.dump({key: value for key, value in result.items() if not isinstance(value, list | dict)}, sys.stdout)
        print()
        return [*trouble, f"nor {elsewhere}: {error.strerror}", "the figures above are all there is"]


def file_name(result: dict[str, Any]) -> str:
    """The name that vLLM gives a result."""
    if "ramp_up_strategy" in result:
        ramp = (result[f"ramp_up_{key}"] for key in ("strategy", "start_rps", "end_rps"))
        rate = "ramp-up-{}-{}qps-{}qps".format(*ramp)
    else:
        rate = f"{result['request_rate']}qps"
    concurrency = "" if result["max_concurrency"] is None else f"-concurrency{result['max_concurrency']}"
    model = result["model_id"].rstrip("/").split("/")[-1]
    label = (result["label"] or result["backend"]).replace("/", "_")
    return f"{label}-{rate}{concurrency}-{model}-{result['date']}.json"
