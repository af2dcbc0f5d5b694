"""Writes small GGUF files for tests."""

from collections.abc import Callable
from pathlib import Path

import gguf


def write(path: Path, fill: Callable[[gguf.GGUFWriter], None], architecture: str = "llama") -> Path:
    """A GGUF file at ``path`` with what ``fill`` adds."""
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
