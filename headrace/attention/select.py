"""The choice of the attention backend of a layer: an explicit one or the first that can, logged with the reasons."""

import functools
import importlib
import logging

import torch

from headrace.attention.backend import AttentionSpec, Backend
from headrace.errors import ConfigError

logger = logging.getLogger(__name__)

BACKENDS = {  # name: where it lives, best first; loaded when asked about
    "triton": ("headrace.attention.triton_backend", "TritonBackend"),
    "torch": ("headrace.attention.torch_backend", "TorchBackend"),
}


@functools.cache
def select_backend(
    name: str | None, spec: AttentionSpec, device: torch.device, dtype: torch.dtype, block_size: int
) -> Backend:
    """The backend for layers of this kind; layers of the same kind share it.

    ``name`` None: the first that can run them. Raises ``ConfigError`` for an unknown name, or one that can't.
    """
    if name is not None and name not in BACKENDS:
        raise ConfigError(f"There is no attention backend {name!r}; there are {', '.join(BACKENDS)}.")
    rejected: list[str] = []
    for candidate in [name] if name else BACKENDS:
        module, class_name = BACKENDS[candidate]
        backend = getattr(importlib.import_module(module), class_name)
        reason = backend.supports(spec, device, dtype, block_size)
        if reason is None:
            logger.info(
                "attention on %s: %s%s", device, candidate, f" (rejected: {'; '.join(rejected)})" if rejected else ""
            )
            return backend(spec, device, dtype)
        rejected.append(f"{candidate}: {reason}")
    raise ConfigError(f"No attention backend can run this model's layers: {'; '.join(rejected)}.")
