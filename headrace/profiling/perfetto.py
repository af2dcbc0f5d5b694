"""Writes a trace for ui.perfetto.dev: torch's as it is, Nsight's as the same kind of events."""

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from headrace.profiling import nsight
from headrace.profiling.torch_trace import packed
from headrace.profiling.trace import Activity, Range, Trace

HOST = 1_000_000  # the process that stands for the host's ranges, above all devices


def write_perfetto(source: Path, trace: Trace, directory: Path) -> Path:
    """``source``, whose content ``trace`` is, as a .json.gz file in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"{source.name.removesuffix('.gz').removesuffix('.json')}.json.gz"
    if target.exists() and target.samefile(source):
        return target
    if source.suffix in nsight.SUFFIXES:
        with gzip.open(target, "wb") as file:
            file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
            file.writelines((b"," if i else b"") + msgspec.json.encode(event) for i, event in enumerate(events(trace)))
            file.write(b"]}")
    else:
        with source.open("rb") as data, target.open("wb") if packed(source) else gzip.open(target, "wb") as file:
            shutil.copyfileobj(data, file)
    return target


def events(trace: Trace) -> Iterator[dict[str, Any]]:
    """A process a device with a thread a stream, and one for the host's steps."""
    for device in sorted({activity.device for activity in trace.activities}):
        name = trace.device_names[device] if device < len(trace.device_names) else "GPU"
        yield {"ph": "M", "name": "process_name", "pid": device, "args": {"name": f"{name} {device}"}}
    yield {"ph": "M", "name": "process_name", "pid": HOST, "args": {"name": "steps, as launched"}}
    for activity in trace.activities:
        place = {"device": activity.device, "stream": activity.stream}
        yield span("kernel", activity, activity.device, activity.stream) | {"args": place}
    for step in trace.steps:
        yield span("user_annotation", step, HOST, 0)


def span(category: str, what: Activity | Range, process: int, thread: int) -> dict[str, Any]:
    times = {"ts": what.start, "dur": what.end - what.start}
    return {"ph": "X", "cat": category, "name": what.name, "pid": process, "tid": thread} | times
