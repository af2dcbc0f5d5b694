"""What metrics stand at, as objects: vLLM's classes, by which its users read an LLM's. Knows no engine."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from headrace.frontend.metrics import PREFIX

BUCKET = "_bucket"  # follows a histogram's name, and then comes the upper limit


@dataclass
class Metric:
    name: str
    labels: dict[str, str]


@dataclass
class Counter(Metric):
    value: int


@dataclass
class Gauge(Metric):
    value: float


@dataclass
class Histogram(Metric):
    count: int
    sum: float
    buckets: dict[str, int]  # an upper limit, or "+Inf" -> the values up to it


@dataclass
class Vector(Metric):
    """Counters in a row, as of accepted drafts by position; there are none here yet."""

    values: list[int]


def readings(registry: CollectorRegistry) -> list[Metric]:
    """All of the engine's metrics in ``registry``, one entry for each set of labels."""
    found: list[Metric] = []
    for family in registry.collect():
        series: dict[frozenset[tuple[str, str]], dict[str, float]] = {}  # by labels: what follows the name -> value
        for sample in family.samples if family.name.startswith(PREFIX) else ():
            labels = dict(sample.labels)
            part = sample.name.removeprefix(family.name) + labels.pop("le", "")
            series.setdefault(frozenset(labels.items()), {})[part] = sample.value
        for key, parts in series.items():
            named = (family.name, dict(key))
            if family.type == "counter":
                found.append(Counter(*named, int(parts["_total"])))
            elif family.type == "gauge":
                found.append(Gauge(*named, parts[""]))
            else:
                counts = {part: int(value) for part, value in parts.items()}
                buckets = {part.removeprefix(BUCKET): n for part, n in counts.items() if part.startswith(BUCKET)}
                found.append(Histogram(*named, counts["_count"], parts["_sum"], buckets))
    return found
