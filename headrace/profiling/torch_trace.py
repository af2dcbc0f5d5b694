"""Reads what torch.profiler exports: Chrome's trace event format, as Kineto fills it in.

The format: docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU; categories and arguments are those
of Kineto's output_json.cpp. A file is decoded in parts, and of each event only some numbers are kept.
"""

import gzip
import re
import zlib
from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import numpy as np

from headrace.errors import ConfigError
from headrace.profiling.trace import Activity, Range, Trace, step_at, step_ranges

DEVICE, LAUNCH, OPERATOR, RANGE = range(4)  # kinds of events, by their categories
KINDS = dict.fromkeys(("kernel", "gpu_memcpy", "gpu_memset"), DEVICE)
KINDS |= dict.fromkeys(("cuda_runtime", "cuda_driver", "xpu_runtime", "xpu_driver"), LAUNCH)
KINDS |= {"cpu_op": OPERATOR, "user_annotation": RANGE}
GZIP_MAGIC = b"\x1f\x8b"
BEGIN = re.compile(rb'"traceEvents"\s*:\s*\[')
BETWEEN = re.compile(rb"\}\s*,\s*\{")  # between two events, or perhaps within one
PART_BYTES = 2**25  # read at once
NEAR_BYTES, PLACES = 2**20, 8  # from a part's end: where it may be cut, and how many places are tried
MOST_BYTES = 8 * PART_BYTES  # without a place to cut: then it is no trace


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


class Document(msgspec.Struct, gc=False):
    traceEvents: list[Event]
    deviceProperties: list[dict[str, Any]] = []


DECODER = msgspec.json.Decoder(Document)


class Events:
    """What is needed of a file's events, seven numbers each: there may be tens of millions."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}  # of names and threads, in the order they came
        self._rows = [array("d") for _ in set(KINDS.values())]

    def add(self, event: Event) -> None:
        kind = KINDS.get(event.cat)
        if event.ph != "X" or kind is None:
            return
        args, numbers = event.args or Arguments(), self._numbers
        name, thread = (numbers.setdefault(key, len(numbers)) for key in (event.name, (event.pid, event.tid)))
        place = (int(args.device), int(args.stream)) if kind == DEVICE else (0, 0)
        # Where there is none, a kernel's number is not a launch's.
        call = -1 - kind if kind > LAUNCH or args.correlation is None else int(args.correlation)
        self._rows[kind].extend((name, event.ts, event.dur, thread, *place, call))

    def of(self, kind: int) -> np.ndarray:
        """[N, 7] of a kind: number of its name, start, duration, number of its thread, device, stream, correlation."""
        return np.frombuffer(self._rows[kind]).reshape(-1, 7)

    def names(self) -> list[Any]:
        """By number."""
        return list(self._numbers)


def read_torch_trace(path: Path) -> Trace:
    """The trace in a .json or .json.gz file. Raises ConfigError if it isn't one."""
    devices: list[str] = []
    events = Events()
    try:
        for part in parts(path):
            devices += [str(properties["name"]) for properties in part.deviceProperties if "name" in properties]
            for event in part.traceEvents:
                events.add(event)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}.") from None
    except (msgspec.MsgspecError, ValueError, TypeError) as error:  # the latter of a device that is no number
        raise ConfigError(
            f"{path} is no trace: neither torch's (.json, .json.gz) nor Nsight Systems' (.sqlite, .nsys-rep); {error}."
        ) from None
    names = events.names()
    steps = step_ranges(Range(start, start + time, names[int(name)]) for name, start, time in events.of(RANGE)[:, :3])
    on_device = len(events.of(DEVICE)) > 0
    found = device_activities(events, steps) if on_device else host_activities(events, steps)
    return Trace(list(found), on_device, steps, devices)


def parts(path: Path) -> Iterator[Document]:
    """A file in parts, each a document with some of the events: of a long recording, memory holds one at a time.

    A part ends where a cut leaves JSON: between two events, and not within one.
    """
    with cast(BinaryIO, gzip.open(path)) if packed(path) else path.open("rb") as file:
        data = file.read(PART_BYTES)
        if not (begin := BEGIN.search(data)):
            yield DECODER.decode(data + file.read())
            return
        yield DECODER.decode(data[: begin.end()] + b"]}")
        data = data[begin.end() :]
        while len(data) < MOST_BYTES and (more := file.read(PART_BYTES)):
            data += more
            places = [match.start() + 1 for match in BETWEEN.finditer(data, max(len(data) - NEAR_BYTES, 0))]
            for place in places[: -PLACES - 1 : -1]:
                with suppress(msgspec.DecodeError):
                    yield DECODER.decode(b'{"traceEvents":[' + data[:place] + b"]}")
                    data = data[place:].lstrip(b", \t\r\n")
                    break
        yield DECODER.decode(b'{"traceEvents":[' + data)


def packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def device_activities(events: Events, steps: list[Range]) -> Iterator[Activity]:
    """Kernels and copies; each belongs to the step in which the host launched it, however much later it ran."""
    names, rows, launches = events.names(), events.of(DEVICE), events.of(LAUNCH)
    launches = np.concatenate([launches[np.argsort(launches[:, -1])], np.full((1, 7), np.inf)])
    places = np.searchsorted(launches[:, -1], rows[:, -1])
    launched = np.where(launches[places, -1] == rows[:, -1], launches[places, 1], np.inf)
    for row, moment in zip(rows, launched, strict=True):
        name, start, time, _, device, stream, _ = row.tolist()
        step = step_at(steps, float(moment))
        yield Activity(names[int(name)], start, start + time, time, int(device), int(stream), step)


def host_activities(events: Events, steps: list[Range]) -> Iterator[Activity]:
    """Operators with the time that they spent themselves, not in operators that they called."""
    names, rows = events.names(), events.of(OPERATOR)
    _, starts, times, threads, *_ = rows.T
    ordered = (rows[i, :4].tolist() for i in np.lexsort((-times, starts, threads)))
    for number, (_, group) in enumerate(groupby(ordered, key=itemgetter(3))):
        open_: list[list[Any]] = []  # name, start, end and own time of each, which is within the one before it

        def closed() -> Activity:
            name, start, end, own = open_.pop()  # noqa: B023
            return Activity(names[int(name)], start, end, own, 0, number, step_at(steps, start))  # noqa: B023

        for name, start, time, _ in group:
            while open_ and open_[-1][2] <= start:
                yield closed()
            if open_:
                open_[-1][3] -= time
            open_.append([name, start, start + time, time])
        while open_:
            yield closed()
