"""Devices by their data sheets: what a plan needs to know of one that need not be there. Knows no model.

Rates are dense ones, without the doubling for sparse matrices that data sheets print. Sources: NVIDIA's data sheets of
the L40S, A100, H100, H200, GH200 and DGX B200, Intel's specifications of the Arc Pro B60 and the Arc A770 16GB. Memory
is what the driver lets programs have, as torch reports it: less than the sheet's, whose gigabytes also hold ECC's.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch

from headrace.bench import limits
from headrace.config import nearest
from headrace.device import GIB, total_memory
from headrace.errors import ConfigError

TERA = 1e12
SHEETS: dict[str, dict[str, Any]] = {
    "l40s": {"memory": 44.4, "read": 0.864, "bf16": 362, "fp8": 733, "int8": 733, "fp32": 91.6, "link": 32},
    "a100-40gb": {"memory": 39.4, "read": 1.555, "bf16": 312, "int8": 624, "fp32": 19.5, "link": 300},
    "a100-80gb": {"memory": 79.2, "read": 2.039, "bf16": 312, "int8": 624, "fp32": 19.5, "link": 300},
    "h100": {"memory": 79.2, "read": 3.35, "bf16": 989.4, "fp8": 1979, "int8": 1979, "fp32": 66.9, "link": 450},
    "h100-pcie": {"memory": 79.1, "read": 2.0, "bf16": 756, "fp8": 1513, "int8": 1513, "fp32": 51.2, "link": 64},
    "h200": {"memory": 139.8, "read": 4.8, "bf16": 989.4, "fp8": 1979, "int8": 1979, "fp32": 66.9, "link": 450},
    "gh200": {"memory": 94.5, "read": 4.0, "bf16": 989.4, "fp8": 1979, "int8": 1979, "fp32": 66.9, "link": 450},
    "b200": {"memory": 178.35, "read": 8.0, "bf16": 2250, "fp8": 4500, "int8": 4500, "fp32": 75, "link": 900},
    "arc-b60": {"memory": 23.9, "read": 0.456, "bf16": 98.3, "int8": 196.6, "fp32": 12.28, "link": 32, "type": "xpu"},
    "arc-a770": {"memory": 15.1, "read": 0.56, "bf16": 137.6, "int8": 275, "fp32": 19.66, "link": 32, "type": "xpu"},
}  # memory in GiB, read in TB/s, operations in TFLOP/s, link in GB/s one way; without fp8 it multiplies as bf16
ALIASES = {"a100": "a100-80gb", "h100-sxm": "h100", "b60": "arc-b60", "a770": "arc-a770"}
CPU = "cpu"  # this machine's
ABOVE_ZERO = msgspec.Meta(gt=0)
Positive = Annotated[float, ABOVE_ZERO]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One accelerator. Bytes, and bytes and floating-point operations a second."""

    name: str
    memory_bytes: Annotated[int, ABOVE_ZERO]  # that programs can have
    bytes_per_second: Positive  # read from its memory
    bf16_flops: Positive  # float16's, too
    fp8_flops: Positive | None = None  # None: it multiplies such numbers as bf16
    int8_flops: Positive | None = None
    fp32_flops: Positive | None = None
    link_bytes_per_second: Positive | None = None  # to the host's other devices, one way
    type: str = "cuda"  # torch's: cuda, xpu or cpu

    def flops(self, number: str) -> float:
        """How fast it multiplies matrices of ``bfloat16``, ``float16``, ``float32``, ``fp8`` or ``int8`` numbers."""
        rates = {"float32": self.fp32_flops, "fp8": self.fp8_flops, "int8": self.int8_flops}
        return rates.get(number) or self.bf16_flops


def device_called(name: str) -> Device:
    """The device of that name, in any case and with or without dashes."""
    wanted = name.lower().replace("_", "-").removeprefix("nvidia-").removeprefix("intel-")
    if wanted == CPU:
        return this_cpu()
    names = dict(zip(SHEETS, SHEETS, strict=True)) | ALIASES
    spellings = {name.replace("-", ""): known for name, known in names.items()}
    known = spellings.get(wanted.replace("-", ""))
    if known is None:
        end = nearest(wanted.replace("-", ""), spellings)
        raise ConfigError(
            f"--device {name} is not known{end} Known are {', '.join((*SHEETS, CPU))}; any other can be described in a "
            "file with --device-spec."
        )
    sheet = SHEETS[known]
    rates = {f"{number}_flops": sheet[number] * TERA for number in ("bf16", "fp8", "int8", "fp32") if number in sheet}
    return Device(
        name=known,
        memory_bytes=int(sheet["memory"] * GIB),
        bytes_per_second=sheet["read"] * TERA,
        link_bytes_per_second=sheet["link"] * 1e9,
        type=sheet.get("type", "cuda"),
        **rates,
    )


def device_reported(name: str) -> Device | None:
    """The device that its driver calls ``name``, such as NVIDIA H100 80GB HBM3; None if its data sheet isn't here."""
    words = set(re.findall(r"[a-z0-9]+", name.lower()))
    known = [sheet for sheet in (*SHEETS, "a100") if words.issuperset(sheet.split("-"))]
    return device_called(max(known, key=len)) if known and "nvl" not in words else None


def this_cpu() -> Device:
    """This machine, measured: no data sheet tells how fast a CPU is."""
    cpu = torch.device(CPU)
    single, half = limits.measure("float32", cpu), limits.measure("bfloat16", cpu)
    return Device(
        CPU,
        total_memory(cpu),
        single.bytes_per_second,
        half.flops_per_second,
        fp32_flops=single.flops_per_second,
        type=CPU,
    )


def device_in(path: str) -> Device:
    """The device that a JSON or YAML file describes by ``Device``'s fields."""
    try:
        text = Path(path).read_bytes()
        if path.endswith(".json"):
            return msgspec.json.decode(text, type=Device, strict=False)
        return msgspec.yaml.decode(text, type=Device, strict=False)
    except OSError as error:
        reason = str(error.strerror)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
    known = ", ".join(Device.__struct_fields__)
    raise ConfigError(f"--device-spec {path} describes no device ({reason}); it may have the keys {known}.")
