"""What a trace says of a device's time, whoever recorded it: activities, and the steps they belong to."""

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# The ranges around the launch of a step: ours, and those of vLLM's model runner.
STEP = re.compile(r"headrace: step |execute_")
NO_STEP = -1


class Activity(NamedTuple):
    """A kernel or copy on a device, or an operator on the host. Times are microseconds on the trace's own clock."""

    name: str
    start: float
    end: float
    time: float  # its own: without that of operators within it, and of the kernel it waited for
    device: int
    stream: int
    step: int  # index into the trace's steps, or NO_STEP


class Range(NamedTuple):
    """A named stretch of the host's time, in microseconds."""

    start: float
    end: float
    name: str


@dataclass(frozen=True)
class Trace:
    """``on_device``: the activities are a GPU's; else they are the operators that the host ran."""

    activities: list[Activity]
    on_device: bool
    steps: Sequence[Range] = ()
    device_names: Sequence[str] = ()


def in_turn(activities: Iterable[Activity]) -> list[Activity]:
    """By time, each with the time that it didn't wait for the one before it on its stream.

    A kernel that is launched early (programmatic dependent launch) is resident, and waits, while its predecessor runs.
    """
    ended: dict[tuple[int, int], float] = {}
    found = []
    for activity in sorted(activities, key=lambda activity: activity.start):
        stream = activity.device, activity.stream
        since = max(activity.start, ended.get(stream, activity.start))
        ended[stream] = max(since, activity.end)
        found.append(activity._replace(time=ended[stream] - since))
    return found


def step_ranges(ranges: Iterable[Range]) -> list[Range]:
    """Those that are steps, by time."""
    return sorted(found for found in ranges if STEP.match(found.name))


def step_at(steps: list[Range], time: float | None) -> int:
    """The step that the host was launching at ``time``."""
    if time is None:
        return NO_STEP
    place = bisect.bisect_right(steps, (time, float("inf"))) - 1
    return place if place >= 0 and time <= steps[place].end else NO_STEP
