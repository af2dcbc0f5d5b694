"""Stored tensors as the loader gets them, in chunks that are read one at a time; and a checkpoint's safetensors files.

Knows no model and no device.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from headrace.errors import ConfigError

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 64 * 2**20
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Chunk(NamedTuple):
    """Some tensors of one file. ``read`` yields them by the checkpoint's names; they are valid until the next one."""

    path: Path
    num_bytes: int  # in the file
    host_bytes: int  # the most that reading needs at a time, mapped pages included
    read: Callable[[], Iterator[tuple[str, "torch.Tensor"]]]


def choose_weights(names: list[str], where: str) -> list[str]:
    """The safetensors files among ``names`` that hold each weight once. ``ConfigError`` about ``where`` if none do."""
    found = sorted(name for name in names if name.endswith(".safetensors"))
    if SINGLE in found:
        return [SINGLE]
    if found:
        return [name for name in found if SHARD.fullmatch(name)] or found
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        raise ConfigError(
            f"{where} has its weights only as pickles ({pickles[0]}), which are never loaded as they can run code; "
            "use a copy of it in safetensors format."
        )
    raise ConfigError(f"{where} has no weights in safetensors format.")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of the checkpoint in ``directory``: those that its index names, if it has one."""
    names = sorted(path.name for path in directory.iterdir())
    chosen = [SINGLE] if SINGLE in names else _indexed(directory / INDEX) if INDEX in names else []
    if missing := [name for name in chosen if name not in names]:
        raise ConfigError(f"{directory} lacks {missing[0]}, which {INDEX} names; download it again.")
    return [directory / name for name in chosen or choose_weights(names, str(directory))]


def _indexed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is damaged ({error}); download it again.") from error


def safetensors_chunks(path: Path) -> list[Chunk]:
    """The tensors of one safetensors file, some ``CHUNK_BYTES`` at a time; a larger one is a chunk of its own.

    Raises ``ConfigError`` if the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):  # checks the header against the file's length
            pass
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (SafetensorError, ValueError, OSError) as error:
        raise ConfigError(f"{path} is damaged or cut short ({error}); download it again.") from error
    header.pop("__metadata__", None)
    sizes: dict[str, int] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        sizes[name] = end - start
    chunks: list[Chunk] = []
    names: list[str] = []
    total = 0
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if names and total + sizes[name] > CHUNK_BYTES:
            chunks.append(_chunk(path, names, total))
            names, total = [], 0
        names.append(name)
        total += sizes[name]
    return [*chunks, _chunk(path, names, total)] if names else chunks


def _chunk(path: Path, names: list[str], num_bytes: int) -> Chunk:
    def read() -> Iterator[tuple[str, "torch.Tensor"]]:
        from safetensors import safe_open

        # The tensors are views of a mapping that lasts as long as they and the file do: each chunk opens it anew, or
        # the pages of all that was read would pile up in memory.
        with safe_open(path, framework="pt") as file:
            for name in names:
                yield name, file.get_tensor(name)

    return Chunk(path, num_bytes, num_bytes, read)
