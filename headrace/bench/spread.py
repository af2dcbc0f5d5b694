"""Measuring again and again, and how the measurements lie."""

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

PERCENTILES = (10, 25, 50, 75, 90, 99)
T = TypeVar("T")


def repeated(one: Callable[[int], T], count: int, alone: bool = True) -> tuple[list[T], bool]:
    """What ``one`` returns, called with 0, 1 and so on; whether Ctrl-C came before the last, but after the first.

    Among several processes (not ``alone``), which must all measure the same, Ctrl-C is the end of everything.
    """
    done: list[T] = []
    try:
        while len(done) < count:
            done.append(one(len(done)))
    except KeyboardInterrupt:
        if not (done and alone):
            raise
        return done, True
    return done, False


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By linear interpolation between the two nearest; the keys are vLLM's."""
    return dict(zip(map(str, PERCENTILES), np.percentile(values, PERCENTILES).tolist(), strict=True))
