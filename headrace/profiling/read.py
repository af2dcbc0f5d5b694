"""Reads a trace, whoever recorded it."""

from dataclasses import replace
from pathlib import Path

from headrace.errors import ConfigError
from headrace.profiling import nsight
from headrace.profiling.torch_trace import read_torch_trace
from headrace.profiling.trace import Trace, in_turn


def read_trace(path: Path) -> Trace:
    """The trace in ``path``. Raises ConfigError if it is of no kind that is known, or holds no activity."""
    if not path.is_file():
        raise ConfigError(f"there is no trace {path}.")
    trace = nsight.read_nsight(path) if path.suffix in nsight.SUFFIXES else read_torch_trace(path)
    if not trace.activities:
        raise ConfigError(f"{path} holds no kernel, copy or operator: nothing ran while it was recorded.")
    return replace(trace, activities=in_turn(trace.activities)) if trace.on_device else trace
