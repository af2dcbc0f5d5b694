"""The small layers between pooled hidden states and an answer that stand in files of their own, beside the weights.

Formats: sentence-transformers' Dense modules (config.json and model.safetensors in a folder of their own), and the two
heads of BGE-M3 (colbert_linear.pt and sparse_linear.pt; see https://github.com/FlagOpen/FlagEmbedding).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from headrace.errors import ConfigError

ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid}
MULTI_VECTOR, SPARSE = "colbert_linear.pt", "sparse_linear.pt"


def dense(folder: Path, device: torch.device) -> nn.Module:
    """One Dense module, in float32: [N, in] → [N, out]."""
    name = json.loads((folder / "config.json").read_text()).get("activation_function", "Identity").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ConfigError(f"{folder} has the activation {name}; supported are {', '.join(ACTIVATIONS)}.")
    file = folder / "model.safetensors"
    weights = load_file(file) if file.is_file() else _unpickled(folder / "pytorch_model.bin")
    return nn.Sequential(
        linear({key.removeprefix("linear."): weights[key] for key in weights}, device), ACTIVATIONS[name]()
    )


def extra_head(file: Path, device: torch.device) -> nn.Module | None:
    """The linear layer in ``file``, in float32; None if there is no such file."""
    return linear(_unpickled(file), device) if file.is_file() else None


def linear(weights: dict[str, torch.Tensor], device: torch.device) -> nn.Linear:
    """A layer of these weights: ``weight`` [out, in], maybe ``bias`` [out]."""
    outputs, inputs = weights["weight"].shape
    layer = nn.Linear(inputs, outputs, bias="bias" in weights, device=device, dtype=torch.float32)
    layer.load_state_dict(weights)
    return layer.requires_grad_(False)


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """Tensors alone: torch's restricted reader runs no code."""
    try:
        weights: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{file} can't be read: {error}.") from error
    return weights
