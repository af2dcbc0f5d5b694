"""How repeated measurements lie."""

import statistics
from collections.abc import Sequence

import numpy as np

PERCENTILES = (10, 25, 50, 75, 90, 99)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """By linear interpolation between the two nearest; the keys are vLLM's."""
    return dict(zip(map(str, PERCENTILES), np.percentile(values, PERCENTILES).tolist(), strict=True))
