"""How much a server can take: where it saturates, and the largest request rate at which it keeps a promise (an SLO).

Works on results as `bench serve` writes them; knows neither servers nor commands.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headrace.errors import ConfigError

OBJECTIVE = re.compile(r"(ttft|tpot|itl|e2el)_(mean|median|std|p\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)(us|ms|s)?")
MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3, None: 1.0}
GROWTH = 0.1  # less is none: throughput and latency of equal loads differ as much from run to run
KEEPS_UP = 0.9  # part of the rate that must be served meanwhile, lest an endless queue pass for a met promise
LOWEST_RATE, HIGHEST_RATE = 1 / 64, 2.0**14  # requests/s between which the search stays


@dataclass(frozen=True)
class Objective:
    """A latency's statistic that must not exceed so many milliseconds."""

    metric: str
    statistic: str
    milliseconds: float

    @property
    def key(self) -> str:
        """Where a result has it."""
        return f"{self.statistic}_{self.metric}_ms"

    def __str__(self) -> str:
        return f"{self.metric}_{self.statistic}={self.milliseconds:g}ms"


def parse_slo(text: str) -> list[Objective]:
    """``ttft_p99=200ms,tpot_median=20`` (ms where no unit is given) as objectives. Raises ConfigError."""
    objectives = []
    for part in text.replace(" ", "").split(","):
        match = OBJECTIVE.fullmatch(part)
        if match is None:
            raise ConfigError(
                f"--slo {part!r} is no objective such as ttft_p99=200ms: ttft, tpot, itl or e2el; then mean, median, "
                "std or p and a percentile; then a time in us, ms or s."
            )
        metric, statistic, value, unit = match.groups()
        objectives.append(Objective(metric, statistic, float(value) * MILLISECONDS[unit]))
    return objectives


@dataclass(frozen=True)
class Trial:
    """A request rate that was tried, what was measured of each objective, and why the promise was broken, if it was."""

    rate: float
    measured: dict[str, float]
    broken: str | None


def judge(result: dict[str, Any], rate: float, objectives: Sequence[Objective]) -> Trial:
    """Whether a run at ``rate`` requests/s kept every objective, lost no request and kept up with the arrivals."""
    measured = {objective.key: float(result[objective.key]) for objective in objectives}
    served_seconds = result["duration"] - result.get("median_e2el_ms", 0) / 1000  # without the last requests' own time
    broken = None
    if result.get("failed"):
        broken = f"{result['failed']} requests failed"
    elif late := [str(o) for o in objectives if measured[o.key] > o.milliseconds]:
        broken = f"missed {', '.join(late)}"
    elif result["completed"] < KEEPS_UP * rate * served_seconds:
        broken = "did not keep up with the arrivals"
    return Trial(rate, measured, broken)


def largest_rate(attempt: Callable[[float], Trial], start: float, precision: float) -> tuple[float | None, list[Trial]]:
    """The largest rate whose trial is kept, to ``precision`` (0.05: 5%), and all trials in order; None if none is.

    Doubles or halves from ``start`` until the limit lies between two rates, then bisects.
    """
    trials: list[Trial] = []
    low, high, rate = 0.0, float("inf"), start
    while LOWEST_RATE <= rate <= HIGHEST_RATE:
        trials.append(attempt(rate))
        if trials[-1].broken is None:
            low = rate
        else:
            high = rate
        if low and high <= low * (1 + precision):
            break
        rate = 2 * low if high == float("inf") else high / 2 if not low else float(f"{(low + high) / 2:.4g}")
    return low or None, trials


def saturation(points: Sequence[dict[str, Any]]) -> int | None:
    """The index of the point where throughput stops growing while latency does; None if it grows to the end.

    ``points`` are results in ascending load.
    """
    for i, (here, there) in enumerate(pairwise(points)):
        stalls = there["output_throughput"] < (1 + GROWTH) * here["output_throughput"]
        if stalls and latency(there) > (1 + GROWTH) * latency(here):
            return i
    return None


def latency(result: dict[str, Any]) -> float:
    """What a user waits, in ms: of the end if it was measured, else of the first token."""
    return float(result.get("mean_e2el_ms") or result.get("mean_ttft_ms") or 0)


def saturation_sentence(point: dict[str, Any]) -> str:
    """What a suite's ``saturation`` says."""
    load = f"{point['at']} ({point['output_throughput']:,.1f} output tokens/s)"
    if point["saturated"]:
        return f"Saturated at {load}: beyond it only latency grows."
    return f"Suite {point['suite']}: throughput grew up to {load}; no saturation found."


def slo_sentence(search: dict[str, Any]) -> str:
    """What a search for the ``largest_rate`` found."""
    rate, on = search["largest_rate"], f" on {search['serve']}" if search["serve"] else ""
    return f"SLO {search['slo']}{on}: " + (f"kept up to {rate:g} requests/s." if rate else "kept at no rate tried.")
