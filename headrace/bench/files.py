"""Files that measurements read and leave: written whole or not at all, and a sentence for those that can't be used."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError


def read_json(path: Path, flag: str = "") -> Any:
    """Raises ConfigError, naming ``flag``, if there is no JSON in ``path``."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error, flag) from None


def unreadable(path: Path, error: Exception, flag: str = "") -> ConfigError:
    reason = getattr(error, "strerror", None) or error
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


def write_whole(path: Path, text: str) -> None:
    """All of ``text`` or, whenever we are interrupted, nothing."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text)
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
