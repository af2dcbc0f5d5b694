"""The small layers between pooled hidden states and an answer that stand in files of their own, beside the weights.

Formats: sentence-transformers' Dense modules (config.json and model.safetensors in a folder of their own), and the two
heads of BGE-M3 (colbert_linear.pt and sparse_linear.pt; see https://github.com/FlagOpen/FlagEmbedding).
"""

from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file
from torch import nn

from headrace.errors import ConfigError
from headrace.models.source import read_json

ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid}
MULTI_VECTOR, SPARSE = "colbert_linear.pt", "sparse_linear.pt"


class DenseSettings(msgspec.Struct):
    """A Dense module's config.json."""

    activation_function: str = "Identity"


def dense(folder: Path, device: torch.device) -> nn.Module:
    """One Dense module, in float32: [N, in] → [N, out]."""
    name = read_json(folder / "config.json", DenseSettings).activation_function.rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ConfigError(f"{folder} has the activation {name}; supported are {', '.join(ACTIVATIONS)}.")
    file = folder / "model.safetensors"
    file = file if file.is_file() else folder / "pytorch_model.bin"
    return nn.Sequential(linear(file, device), ACTIVATIONS[name]())


def extra_head(file: Path, device: torch.device) -> nn.Module | None:
    """The linear layer in ``file``, in float32; None if there is no such file."""
    return linear(file, device) if file.is_file() else None


def linear(file: Path, device: torch.device) -> nn.Linear:
    """The layer whose ``weight`` [out, in] and maybe ``bias`` [out] are in ``file``; torch's reader runs no code."""
    try:
        safe = file.suffix == ".safetensors"
        stored = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
        weights = {name.removeprefix("linear."): values for name, values in stored.items()}
        outputs, inputs = weights["weight"].shape
        layer = nn.Linear(inputs, outputs, bias="bias" in weights, device=device, dtype=torch.float32)
        layer.load_state_dict(weights)
    except Exception as error:  # of what is no layer the readers raise all sorts
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(f"{file} can't be read as a linear layer: {reason}.") from error
    return layer.requires_grad_(False)
