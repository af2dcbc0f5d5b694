"""Users' own classes, which options name as module:Class. Does not know what they are for."""

import importlib
import os
import sys
from typing import Any

from headrace.errors import ConfigError


def load_class(flag: str, path: str) -> Any:
    """The class at ``path``, out of a library or a file in the working directory. Raises ConfigError."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that no file there takes a library's place
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # the module may raise what it likes
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise ConfigError(f"{flag} {path} can't be loaded as module:Class ({reason}).") from error
