"""Files that are written whole or not at all, and directories that are tried before anything is. Knows no content."""

import contextlib
import os
import tempfile
from pathlib import Path

from headrace.errors import ConfigError


def check_directory(path: Path, flag: str) -> None:
    """Make ``path`` and try whether files can be written there. Raises ConfigError; before a run, not after it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ConfigError(f"{flag} {path} can't be written to: {error.strerror}.") from None


def write_whole(path: Path, text: str) -> None:
    """All of ``text`` or, whenever we are interrupted, nothing. Raises OSError."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
