"""What is in a GGUF file: metadata, and where each tensor lies. Knows the container format, no model and no torch.

The ``gguf`` package reads it too, but as one NumPy view per string: 1.6 s for 49,000 tokens and as many merges, where
this takes 0.03 s. Its constants and dequantizers are used as they are.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from headrace.errors import ConfigError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")  # the end of a split file's parts' names

SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies; ``shape`` is in row-major order, as torch has it."""

    path: Path
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int  # bytes from the start of the file

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return prod(self.shape) // block * size

    def read(self) -> npt.NDArray[np.uint8]:
        """The bytes, mapped rather than copied; what is written into them stays in memory."""
        return np.memmap(self.path, np.uint8, "c", self.offset, (self.num_bytes,))

    @property
    def stem(self) -> str:
        """Its name within a layer: ``attn_q`` of blk.0.attn_q.weight."""
        return self.name.split(".")[-2:][0]

    def split(self, rows: int) -> Iterator["GgufTensor"]:
        """The tensor in pieces of so many of its first dimension's entries."""
        step = self.num_bytes // self.shape[0]
        for start in range(0, self.shape[0], rows):
            shape = (min(rows, self.shape[0] - start), *self.shape[1:])
            yield replace(self, shape=shape, offset=self.offset + start * step)

    def slices(self) -> Iterator["GgufTensor"]:
        """The tensors stacked in this one, along its first dimension."""
        return (replace(part, shape=self.shape[1:]) for part in self.split(1))


class GgufFile:
    """A GGUF file's ``metadata`` as plain Python values, and its ``tensors`` by name, those of its other parts too.

    Raises ``ConfigError`` if the file isn't GGUF, or is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metadata, self.tensors = _parse(path)
        for other in parts(path)[1:]:
            if not other.is_file():
                raise ConfigError(f"{path.name} is one of several parts, but {other.name} isn't beside it.")
            self.tensors |= _parse(other)[1]

    def __getitem__(self, key: str) -> Any:
        """A metadata value; ``ConfigError`` if there is none of that name."""
        if key not in self.metadata:
            raise ConfigError(f"{self.path} lacks {key} in its metadata.")
        return self.metadata[key]


def parts(path: Path) -> list[Path]:
    """The files that together hold the model of which ``path`` is the first part: mostly just itself."""
    if not (found := PART.search(path.name)):
        return [path]
    stem, count = path.name[: found.start()], int(found[2])
    if int(found[1]) != 1:
        raise ConfigError(f"{path.name} isn't the first part of its model; give {stem}-00001-of-{found[2]}.gguf.")
    return [path.with_name(f"{stem}-{i:05}-of-{found[2]}.gguf") for i in range(1, count + 1)]


def choose_file(names: list[str], wanted: str, where: str) -> str:
    """The GGUF file among ``names`` that ``wanted`` is the name or a part of (a quantization, say).

    Of a split file the first part is meant, and vision towers don't count. Raises ``ConfigError`` unless it is one.
    """
    ggufs = [name for name in names if name.endswith(".gguf") and not name.startswith("mmproj")]
    firsts = [name for name in ggufs if not (found := PART.search(name)) or int(found[1]) == 1]
    matching = [name for name in firsts if name == wanted] or [
        name for name in firsts if wanted.lower() in name.lower()
    ]
    if len(matching) != 1:
        listed = ", ".join(sorted(matching or firsts))
        hint = f"; name one of them, as in {where}:FILE: {listed}." if listed else "."
        called = f" called {wanted}" if wanted else ""
        raise ConfigError(f"{where} has {'several' if matching else 'no'} GGUF files{called}{hint}")
    return matching[0]


def _parse(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise ConfigError(f"{path} isn't a GGUF file.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Header(path, data).parse()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}.") from error
    except ConfigError:
        raise
    except (struct.error, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{path} is damaged or cut short: its header can't be read ({error}).") from error


class _Header:
    """A cursor over the start of one file. Any exception it raises means that the file is damaged."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, len(MAGIC)

    def parse(self) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
        (version,) = self.take("I")
        if version not in VERSIONS:
            raise ConfigError(f"{self.path} is GGUF of version {version}, but only {VERSIONS} can be read.")
        num_tensors, num_fields = self.take("QQ")
        metadata = {}
        for _ in range(num_fields):
            key = self.string()
            metadata[key] = self.value(GGUFValueType(*self.take("I")))
        infos = []
        for _ in range(num_tensors):
            name, (num_dims,) = self.string(), self.take("I")
            infos.append((name, self.take(f"{num_dims}Q"), GGMLQuantizationType(*self.take("I")), *self.take("Q")))
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        start = -(-self.at // alignment) * alignment
        tensors = [GgufTensor(self.path, name, dims[::-1], kind, start + at) for name, dims, kind, at in infos]
        for tensor in tensors:
            self.check(tensor)
        return metadata, {tensor.name: tensor for tensor in tensors}

    def check(self, tensor: GgufTensor) -> None:
        if not tensor.shape or 0 in tensor.shape or tensor.shape[-1] % GGML_QUANT_SIZES[tensor.kind][0]:
            raise ValueError(f"{tensor.name} has shape {list(tensor.shape)}")
        if (end := tensor.offset + tensor.num_bytes) > len(self.data):
            raise ConfigError(
                f"{self.path} is cut short: {tensor.name} ends at byte {end:,}, the file at {len(self.data):,}."
            )

    def take(self, form: str) -> tuple[Any, ...]:
        """The next values, of ``struct`` format ``form``."""
        values = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return values

    def string(self) -> str:
        return self.strings(1)[0]

    def strings(self, count: int) -> list[str]:
        data, at, length = self.data, self.at, struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(count):
            end = at + 8 + length(data, at)[0]
            # Vocabularies may hold pieces of characters; "replace" is what llama.cpp shows of them, too.
            texts.append(data[at + 8 : end].decode("utf-8", "replace"))
            at = end
        if at > len(data):
            raise ValueError("a text reaches beyond its end")
        self.at = at
        return texts

    def value(self, kind: GGUFValueType) -> Any:
        if kind is GGUFValueType.STRING:
            return self.string()
        if kind is GGUFValueType.FLOAT32:  # as short as it was written: 1e-05 rather than 9.999999747378752e-06
            return float(str(np.float32(self.take("f")[0])))
        if kind is not GGUFValueType.ARRAY:
            return self.take(SCALARS[kind])[0]
        of, count = GGUFValueType(*self.take("I")), *self.take("Q")
        if of is GGUFValueType.STRING:
            return self.strings(count)
        if of is GGUFValueType.ARRAY:
            return [self.value(of) for _ in range(count)]
        return list(self.take(f"{count}{SCALARS[of]}"))
