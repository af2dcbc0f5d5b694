"""Facts and services of the device that computes: memory, host-to-device copies, peaks. Knows nothing of Headrace."""

import os
from collections.abc import Callable

import torch

from headrace.errors import ConfigError

GIB = 2**30


def pick_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu`` or ``cuda``; raises ``ConfigError`` if it isn't there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs an NVIDIA GPU that this torch can use, and none was found.")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def describe(device: torch.device) -> str:
    """A name people know it by."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({torch.get_num_threads()} threads)"


def total_memory(device: torch.device) -> int:
    """Bytes the device has; for a CPU those of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def used_memory(device: torch.device) -> int:
    """Bytes in use on a GPU, by whoever, after giving back what torch merely keeps."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def available_host_memory() -> int:
    """Bytes of host memory that can be taken now."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a host tensor on ``device``, made without waiting for what runs there.

    The pinned staging memory is fresh each time and returns to torch's pool, which reuses it only after the copy.
    """
    return values if device.type == "cpu" else copy_to(torch.empty_like(values, device=device), values)


def mark(device: torch.device) -> Callable[[], None]:
    """A call that waits for all that has been launched on ``device`` by now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def copy_to(target: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """``target``, on a GPU, which gets the ``values`` of a host tensor; see ``to_device``."""
    return target.copy_(values.pin_memory(), non_blocking=True)
