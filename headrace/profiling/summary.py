"""A trace as figures: time by kernel and by class of work, how busy the device was, and its gaps between steps."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from headrace.profiling.classes import ALL_REDUCE, CLASSES, IDLE, class_of
from headrace.profiling.trace import NO_STEP, Activity, Trace

Interval = tuple[float, float]


@dataclass(frozen=True)
class Kernel:
    """All calls of one kernel, copy or operator; ``share`` is of the time of all."""

    name: str
    kind: str
    calls: int
    total_us: float
    mean_us: float
    share: float


@dataclass(frozen=True)
class Kind:
    """One class of work; ``share`` is of the time recorded. On several streams at once, shares exceed 1 together."""

    name: str
    total_us: float
    share: float


@dataclass(frozen=True)
class Gaps:
    """What the device waited, in microseconds, from the end of a step until the host had launched the next."""

    steps: int
    mean_step_us: float  # from a step's first activity to the next one's
    mean_us: float
    median_us: float
    longest_us: float
    share: float  # of the time recorded


@dataclass(frozen=True)
class Summary:
    """``recorded_us``: from the first activity to the last, on every device."""

    on_device: bool
    devices: int
    device_name: str | None
    recorded_us: float
    busy_share: float
    kernels: list[Kernel]  # the longest first
    kinds: list[Kind]
    host_gaps: Gaps | None  # None if the trace has no two steps

    @property
    def all_reduces(self) -> list[Kernel]:
        return [kernel for kernel in self.kernels if kernel.kind == ALL_REDUCE]

    def as_json(self, top: int) -> dict[str, Any]:
        """The figures under their names, with the ``top`` kernels."""
        figures = asdict(self) | {"kernels": [asdict(kernel) for kernel in self.kernels[:top]]}
        return figures | {"all_reduce_kernels": [asdict(kernel) for kernel in self.all_reduces]}


def summarize(trace: Trace) -> Summary:
    by_device: dict[int, list[Activity]] = defaultdict(list)
    for activity in trace.activities:
        by_device[activity.device].append(activity)
    begin = min(activity.start for activity in trace.activities)
    recorded = (max(activity.end for activity in trace.activities) - begin) * len(by_device)
    busy = {device: merged((a.start, a.end) for a in activities) for device, activities in by_device.items()}
    busy_us = sum(end - start for intervals in busy.values() for start, end in intervals)
    kernels = by_name(trace.activities)
    kinds: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
    for kernel in kernels:
        kinds[kernel.kind] += kernel.total_us
    kinds[IDLE] = recorded - busy_us
    return Summary(
        on_device=trace.on_device,
        devices=len(by_device),
        device_name=trace.device_names[0] if trace.device_names else None,
        recorded_us=recorded,
        busy_share=busy_us / recorded if recorded else 1.0,
        kernels=kernels,
        kinds=[
            Kind(name, total, total / recorded if recorded else 0.0)
            for name, total in sorted(kinds.items(), key=lambda item: -item[1])
        ],
        host_gaps=host_gaps(by_device, busy, recorded),
    )


def by_name(activities: Iterable[Activity]) -> list[Kernel]:
    totals: dict[str, list[float]] = defaultdict(list)
    for activity in activities:
        totals[activity.name].append(activity.time)
    of_all = sum(map(sum, totals.values())) or 1.0
    kernels = [
        Kernel(name, class_of(name), len(times), sum(times), statistics.fmean(times), sum(times) / of_all)
        for name, times in totals.items()
    ]
    return sorted(kernels, key=lambda kernel: -kernel.total_us)


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same stretches of time without overlaps, by time."""
    union: list[Interval] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], end)
        else:
            union.append((start, end))
    return union


def host_gaps(by_device: dict[int, list[Activity]], busy: dict[int, list[Interval]], recorded: float) -> Gaps | None:
    """The device's idle time between each step's last activity and the next one's first."""
    gaps: list[float] = []
    lengths: list[float] = []
    for device, activities in by_device.items():
        spans: dict[int, Interval] = {}
        for activity in activities:
            if activity.step != NO_STEP:
                first, last = spans.get(activity.step, (activity.start, activity.end))
                spans[activity.step] = min(first, activity.start), max(last, activity.end)
        ordered = sorted(spans.values())
        lengths += [after - before for (before, _), (after, _) in pairwise(ordered)]
        gaps += idle_between([(end, start) for (_, end), (start, _) in pairwise(ordered)], busy[device])
    if not gaps:
        return None
    return Gaps(
        steps=len(gaps) + len(by_device),
        mean_step_us=statistics.fmean(lengths),
        mean_us=statistics.fmean(gaps),
        median_us=statistics.median(gaps),
        longest_us=max(gaps),
        share=sum(gaps) / recorded,
    )


def idle_between(windows: Sequence[Interval], busy: Sequence[Interval]) -> list[float]:
    """How long nothing ran in each of the ``windows``; ``busy`` is by time and has no overlaps."""
    edges = np.ravel(busy)
    lengths = np.diff(edges)
    lengths[1::2] = 0  # between two stretches nothing runs
    ran = np.concatenate([[0.0], np.cumsum(lengths)])  # up to each edge
    begins, ends = np.reshape(windows, (-1, 2)).T
    idle = ends - begins - np.interp(ends, edges, ran) + np.interp(begins, edges, ran)
    return np.maximum(idle, 0.0).tolist()
