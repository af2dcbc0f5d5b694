"""How products of few rows are computed on the device at hand, as measured on one like it.

Owns that table and its files: those that lie here, one a device, and those that ``headrace tune`` writes, which win.
Knows no kernel.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch

from headrace.device import describe
from headrace.errors import ConfigError
from headrace.files import write_whole

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent
FOLDER = "tuned"  # of Headrace's cache


class Tiling(msgspec.Struct, frozen=True):
    """How the few-rows kernel divides a product; without one, the vendor's library computes it."""

    outputs: Literal[16, 32, 64, 128]  # of a program
    parts: Annotated[int, msgspec.Meta(ge=1, le=64)]  # that the inputs are divided into
    block: Literal[32, 64, 128, 256]  # inputs at a time
    warps: Literal[4, 8]
    stages: Annotated[int, msgspec.Meta(ge=1, le=8)]  # blocks on their way at once


class Product(msgspec.Struct, frozen=True):
    """The fastest way to multiply ``rows``, or fewer but more than half of them, by a matrix, and what was measured."""

    outputs: int
    inputs: int
    rows: Annotated[int, msgspec.Meta(ge=2, le=64)]  # a power of 2
    tiling: Tiling | None
    us: float
    rule_us: float  # of what is done unless tuned
    library_us: float

    @property
    def key(self) -> tuple[int, int, int]:
        return self.outputs, self.inputs, self.rows


class File(msgspec.Struct, frozen=True):
    """What a file holds, as JSON."""

    device: str
    products: list[Product]


Key = tuple[torch.device, int, int, int]  # and a product's key; of 16-bit numbers
TILINGS: dict[Key, Tiling | None] = {}  # in use


def use(device: torch.device, cache: Path) -> None:
    """From now on compute as was measured on a device of this name: here or, which wins, on this machine.

    ``cache``: Headrace's cache directory. Raises ``ConfigError`` for a file that can't be used.
    """
    if device.type != "cuda":
        return
    name = describe(device)
    shipped, own = (read(file_for(name, folder), name) for folder in (SHIPPED, cache / FOLDER))
    found = {product.key: product.tiling for product in (*shipped, *own)}
    TILINGS.update({(device, *key): tiling for key, tiling in found.items()})
    logger.info("%d products tuned for %s%s", len(found), name, f", {len(own)} of them on this machine" if own else "")


def file_for(device_name: str, directory: Path) -> Path:
    return directory / (re.sub(r"\W+", "-", device_name).lower() + ".json")


def read(path: Path, device_name: str) -> list[Product]:
    """The products in the file ``path``; none if there is no such file. Raises ``ConfigError`` if it can't be used."""
    try:
        file = msgspec.json.decode(path.read_bytes(), type=File)
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path} holds no tuned products ({error}); remove it and run `headrace tune`.") from error
    if file.device != device_name:
        raise ConfigError(
            f"{path} was tuned on {file.device}, not on {device_name}; remove it and run `headrace tune`."
        )
    return file.products


def write(path: Path, device_name: str, products: Iterable[Product]) -> None:
    """Put ``products`` into the file ``path``, over those in it that are of the same shapes."""
    merged = {product.key: product for product in (*read(path, device_name), *products)}
    lines = ",\n".join(msgspec.json.encode(merged[key]).decode() for key in sorted(merged))
    text = f'{{"device": {msgspec.json.encode(device_name).decode()}, "products": [\n{lines}\n]}}\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
