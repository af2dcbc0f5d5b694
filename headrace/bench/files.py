"""Files that measurements read and leave, and a sentence for those that can't be used.

Owns that a full disk costs no figures; knows of a result only where its file's name comes from.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError
from headrace.files import write_whole


def read_json(path: Path, flag: str = "") -> Any:
    """Raises ConfigError, naming ``flag``, if there is no JSON in ``path``."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error, flag) from None


def unreadable(path: Path | str, error: Exception, flag: str = "") -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, json.JSONDecodeError):
        reason = f"it is no JSON ({error})"
    return ConfigError(f"{flag} {path} can't be read: {reason}.".lstrip())


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Raises ConfigError in place of an OSError: ``what`` can't be written."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what} can't be written: {error.strerror}.") from None


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=4) + "\n")


def save_result(path: Path, result: dict[str, Any], append: bool, siblings: dict[str, str]) -> list[str]:
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


def result_name(result: dict[str, Any]) -> str:
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
