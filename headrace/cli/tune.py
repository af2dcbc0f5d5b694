"""``headrace tune``: measure how this GPU best computes a model's products, and remember it for later starts."""

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.cli.parser import FlagParser
from headrace.config import Config
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.ops.tuned import Product

ROWS = (2, 4, 8, 16, 32, 64)


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument(
        "models",
        nargs="*",
        default=[""],
        metavar="MODEL",
        help="Models, as serve takes them, or shapes, such as llama-3.1-8b; the packaged model if there is none.",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        type=int,
        choices=ROWS,
        default=ROWS,
        metavar="N",
        help=f"Tune for steps of up to so many tokens, and more than half: of {', '.join(map(str, ROWS))}. [all]",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="Where to write instead of Headrace's cache.")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from headrace.device import describe, pick_device
    from headrace.models.packaged import cache_root
    from headrace.ops.registry import triton_unusable
    from headrace.ops.tuned import FOLDER, file_for, write

    if not torch.cuda.is_available():
        raise ConfigError("tuning needs a GPU, and torch finds none: run it on the machine that is to serve.")
    if reason := triton_unusable("cuda"):
        raise ConfigError(f"tuning needs Triton, and {reason}.")
    from headrace.ops.tuned.tuner import tune

    layers: dict[tuple[int, int], set[str]] = defaultdict(set)
    for model in arguments.models:
        for shape, names in shapes_of(model).items():
            layers[shape] |= names
    device = pick_device("cuda")
    name = describe(device)
    print(f"{name}, bfloat16; times in µs\n outputs  inputs rows  library     rule     best  TB/s  layers: best way")
    products = []
    for product in tune(list(layers), sorted(set(arguments.rows)), device):
        products.append(product)
        print(line(product, layers[product.outputs, product.inputs]), flush=True)
    path = arguments.output or file_for(name, cache_root() / FOLDER)
    write(path, name, products)
    print(f"{len(products)} products tuned for {name}: {path}", file=sys.stderr)
    return 0


def line(product: "Product", layers: set[str]) -> str:
    way = "the library"
    if tiling := product.tiling:
        way = f"{tiling.outputs} outputs, {tiling.parts} parts, {tiling.block} inputs at a time, "
        way += f"{tiling.warps} warps, {tiling.stages} stages"
    shape = f"{product.outputs:8d}{product.inputs:8d}{product.rows:5d}"
    times = f"{product.library_us:9.1f}{product.rule_us:9.1f}{product.us:9.1f}"
    speed = 2 * product.outputs * product.inputs / product.us / 1e6
    return f"{shape}{times}{speed:6.2f}  {', '.join(sorted(layers))}: {way}"


def shapes_of(model: str) -> dict[tuple[int, int], set[str]]:
    """(outputs, inputs) of the matrices that a model multiplies by, with the names of each shape's layers."""
    import torch

    from headrace.attention.torch_backend import TorchBackend
    from headrace.layers.linear import Linear
    from headrace.models import source
    from headrace.models.decoder import Decoder
    from headrace.models.registry import spec_for

    config = Config.from_kwargs(model=model, load_format="dummy")
    spec = spec_for(source.load_config(source.resolve(config.model, config.load)), max_model_len=1)
    meta, dtype = torch.device("meta"), torch.bfloat16  # shapes, but no memory
    decoder = Decoder(spec, dtype, meta, lambda attention: TorchBackend(attention, meta, dtype))
    found: dict[tuple[int, int], set[str]] = defaultdict(set)
    for name, layer in decoder.named_modules():
        if isinstance(layer, Linear):
            found[layer.out_features, layer.in_features].add(name.rpartition(".")[2])
    return found
