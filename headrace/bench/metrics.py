"""What a server's /metrics tell of the time between two readings: texts as Prometheus has them, None if there are none.

Knows vLLM's names of counters; knows neither servers nor loads.
"""

import re
from collections import defaultdict
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

SPECULATION = "vllm:spec_decode_num_"
UNIMPORTANT = re.compile(r"(process|python)_\w+|\w+:?\w*_created")


def samples(text: str | None) -> list[Sample]:
    return [sample for family in text_string_to_metric_families(text or "") for sample in family.samples]


def grown(before: str | None, after: str | None) -> defaultdict[tuple[str, str], float]:
    """How much each counter grew, over all engines: by its name, and the position that it is of, if any."""
    growth: defaultdict[tuple[str, str], float] = defaultdict(float)
    for text, sign in ((before, -1), (after, 1)):
        for sample in samples(text):
            growth[sample.name, sample.labels.get("position", "")] += sign * sample.value
    return growth


def cached_share(before: str | None, after: str | None) -> float:
    """The part of the prompts' tokens that the prefix cache had meanwhile."""
    growth = grown(before, after)
    hits, queries = (growth[f"vllm:prefix_cache_{what}_total", ""] for what in ("hits", "queries"))
    return hits / queries if queries > 0 else 0.0


def speculation(before: str | None, after: str | None) -> dict[str, Any]:
    """vLLM's keys on speculative decoding; none if the server didn't speculate."""
    growth = grown(before, after)
    drafts, tokens, accepted = (
        growth[f"{SPECULATION}{what}_total", ""] for what in ("drafts", "draft_tokens", "accepted_tokens")
    )
    if not drafts:
        return {}
    counter = f"{SPECULATION}accepted_tokens_per_pos_total"
    by_position = {int(place): count for (name, place), count in growth.items() if name == counter and place}
    return {
        "spec_decode_acceptance_rate": 100 * accepted / tokens,
        "spec_decode_acceptance_length": 1 + accepted / drafts,
        "spec_decode_num_drafts": int(drafts),
        "spec_decode_draft_tokens": int(tokens),
        "spec_decode_accepted_tokens": int(accepted),
        "spec_decode_per_position_acceptance_rates": [by_position[place] / drafts for place in sorted(by_position)],
    }


def differences(before: str, after: str) -> list[dict[str, Any]]:
    """A row for each series; a histogram is its count, with the mean of what came in between."""
    old, new = by_series(before), by_series(after)
    rows = []
    for (name, labels), value in new.items():
        if name.endswith(("_bucket", "_sum")) or UNIMPORTANT.fullmatch(name):
            continue
        earlier = old.get((name, labels), 0.0)
        row = {"name": name, "labels": labels, "before": earlier, "after": value, "difference": value - earlier}
        total = (name.removesuffix("_count") + "_sum", labels)
        if name.endswith("_count") and total in new and row["difference"]:
            row["mean"] = (new[total] - old.get(total, 0.0)) / (value - earlier)
        rows.append(row)
    return rows


def by_series(text: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ", ".join(f"{key}={value}" for key, value in sample.labels.items())): sample.value
        for sample in samples(text)
    }
