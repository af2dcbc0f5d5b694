"""Reads what torch.profiler exports: Chrome's trace event format, as Kineto fills it in.

The format: docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU; categories and arguments are those
of Kineto's output_json.cpp. Decoding takes only what is needed of each event; a file is held in memory whole.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from headrace.errors import ConfigError
from headrace.profiling.trace import Activity, Range, Trace, step_at, step_ranges

ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
LAUNCHES = {"cuda_runtime", "cuda_driver", "xpu_runtime", "xpu_driver"}
GZIP_MAGIC = b"\x1f\x8b"


class Arguments(msgspec.Struct, gc=False):
    device: Any = 0
    stream: Any = 0
    correlation: Any = None


class Event(msgspec.Struct, gc=False):
    ph: str = ""
    cat: str = ""
    name: str = ""
    ts: float = 0.0  # microseconds
    dur: float = 0.0
    pid: Any = 0
    tid: Any = 0
    args: Arguments | None = None

    @property
    def end(self) -> float:
        return self.ts + self.dur


class Document(msgspec.Struct, gc=False):
    traceEvents: list[Event]
    deviceProperties: list[dict[str, Any]] = []


def read_torch_trace(path: Path) -> Trace:
    """The trace in a .json or .json.gz file. Raises ConfigError if it isn't one."""
    try:
        document = msgspec.json.decode(content(path), type=Document)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from None
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is no trace: neither torch's (.json, .json.gz) nor Nsight Systems' (.sqlite, .nsys-rep); {error}."
        ) from None
    events = [event for event in document.traceEvents if event.ph == "X"]
    steps = step_ranges(Range(event.ts, event.end, event.name) for event in events if event.cat == "user_annotation")
    on_device = any(event.cat in ON_DEVICE for event in events)
    found = device_activities(events, steps) if on_device else host_activities(events, steps)
    names = [str(properties["name"]) for properties in document.deviceProperties if "name" in properties]
    return Trace(list(found), on_device, steps, names)


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(GZIP_MAGIC) else data


def device_activities(events: list[Event], steps: list[Range]) -> Iterator[Activity]:
    """Kernels and copies; each belongs to the step in which the host launched it, however much later it ran."""
    launched = {event.args.correlation: event.ts for event in events if event.cat in LAUNCHES and event.args}
    for event in events:
        if event.cat in ON_DEVICE:
            args = event.args or Arguments()
            step = step_at(steps, launched.get(args.correlation))
            yield Activity(event.name, event.ts, event.end, event.dur, int(args.device), int(args.stream), step)


def host_activities(events: Iterable[Event], steps: list[Range]) -> Iterator[Activity]:
    """Operators with the time that they spent themselves, not in operators that they called."""

    def thread(event: Event) -> tuple[str, str]:
        return str(event.pid), str(event.tid)

    operators = (event for event in events if event.cat == "cpu_op")
    ordered = sorted(operators, key=lambda event: (*thread(event), event.ts, -event.dur))
    for number, (_, group) in enumerate(groupby(ordered, key=thread)):
        open_: list[tuple[Event, float]] = []  # each within the one before it, with what its own callees took so far
        for event in group:
            while open_ and open_[-1][0].end <= event.ts:
                yield closed(*open_.pop(), number, steps)
            if open_:
                caller, taken = open_[-1]
                open_[-1] = caller, taken + event.dur
            open_.append((event, 0.0))
        while open_:
            yield closed(*open_.pop(), number, steps)


def closed(event: Event, taken: float, thread: int, steps: list[Range]) -> Activity:
    return Activity(event.name, event.ts, event.end, event.dur - taken, 0, thread, step_at(steps, event.ts))
