"""Figures out of what became of the requests: vLLM's metrics and JSON keys, its printed table.

Definitions are those of ``vllm bench serve``: TPOT is (latency - TTFT) / (output tokens - 1), percentiles interpolate
linearly as NumPy's do, failed requests count in no latency. Knows no server and no clock.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from headrace.bench.load import Outcome
from headrace.bench.reading import Array, Requests, requests_of

TITLES = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
    "client_queue_time": ("Client Queue Time", "Client Queue Time"),
    "e2el_including_client_queue": ("End-to-end Latency Including Client Queue", "E2EL Including Client Queue"),
}
DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors")  # --save-detailed
WIDTH = 50
LATE_SECONDS = 0.01  # from here on an open loop is not what it claims to be
MOST_REASONS = 10


def series(requests: Requests) -> dict[str, Array]:
    """Milliseconds of every metric; NaN where a request has none."""
    queue = np.where(np.isnan(requests.ttft), np.nan, requests.queue)
    return {
        "ttft": requests.ttft,
        "tpot": requests.tpot,
        "itl": np.concatenate([*requests.itl, []]),
        "e2el": requests.e2el,
        "client_queue_time": queue,
        "e2el_including_client_queue": queue + requests.e2el,
    }


def measure(
    outcomes: Sequence[Outcome],
    duration: float,
    metrics: Sequence[str],
    percentiles: Sequence[float],
    goodput: dict[str, float],
) -> dict[str, Any]:
    """vLLM's keys from ``duration`` on, in its order. ``goodput``: the most milliseconds by metric."""
    vectors: dict[str, Any] = {
        "input_lens": [outcome.prompt_len for outcome in outcomes],
        "output_lens": [outcome.output_len or 0 for outcome in outcomes],
        "ttfts": [outcome.ttft for outcome in outcomes],
        "itls": [outcome.itls for outcome in outcomes],
        "latencies": [outcome.latency for outcome in outcomes],
        "start_times": [outcome.start for outcome in outcomes],
        "queue_times": [outcome.start - outcome.due for outcome in outcomes],
        "generated_texts": [outcome.text for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
    }
    requests = requests_of(vectors)
    milliseconds, good = series(requests), ~np.isnan(requests.ttft)
    completed, tokens_in, tokens_out = (int(n[good].sum()) for n in (good, requests.input_len, requests.output_len))
    met = [np.nan_to_num(milliseconds[metric]) <= most for metric, most in goodput.items()]
    result: dict[str, Any] = {
        "duration": duration,
        "completed": completed,
        "failed": len(outcomes) - completed,
        "total_input_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "request_throughput": completed / duration,
        "request_goodput": int(np.all([good, *met], axis=0).sum()) / duration if goodput else None,
        "output_throughput": tokens_out / duration,
        "total_token_throughput": (tokens_in + tokens_out) / duration,
        **vectors,
        "max_output_tokens_per_s": peak_tokens(requests),
        "max_concurrent_requests": int(crowd(requests.start, requests.start + requests.e2el)[1].max(initial=0)),
        "rtfx": 0.0,
    }
    for metric in metrics:
        result |= statistics(metric, milliseconds[metric], percentiles)
    return result


def statistics(metric: str, milliseconds: Array, percentiles: Sequence[float]) -> dict[str, float]:
    """Of those that are no NaN; of none, zeros."""
    values = milliseconds[~np.isnan(milliseconds)]
    values = values if len(values) else np.zeros(1)
    result = {f"mean_{metric}_ms": values.mean(), f"median_{metric}_ms": np.median(values)}
    result |= {f"std_{metric}_ms": values.std()}
    result |= {f"p{percent:g}_{metric}_ms": np.percentile(values, percent) for percent in percentiles}
    return {key: float(value) for key, value in result.items()}


def peak_tokens(requests: Requests) -> float:
    """Most output tokens in any second since the first request; a piece of several tokens counts as so many."""
    moments, tokens = [np.array([])], [np.array([])]
    for start, ttft, gaps, count in zip(requests.start, requests.ttft, requests.itl, requests.output_len, strict=True):
        if not np.isnan(ttft):
            moments.append(start + ttft + np.cumsum([0.0, *gaps]))
            tokens.append(np.full(len(gaps) + 1, count / (len(gaps) + 1)))
    seconds = (np.concatenate(moments) / 1000).astype(int)
    return float(np.bincount(seconds, np.concatenate(tokens)).max(initial=0))


def crowd(starts: Array, ends: Array) -> tuple[Array, Array]:
    """The moments at which an interval begins or ends, in order, and of how many it is the time from each on."""
    starts, ends = starts[~np.isnan(ends)], ends[~np.isnan(ends)]
    moments = np.concatenate([starts, ends])
    order = np.argsort(moments, kind="stable")  # beginnings first
    return moments[order], np.cumsum(np.where(order < len(starts), 1, -1))


def schedule(outcomes: Sequence[Outcome], percentiles: Sequence[float]) -> dict[str, Any]:
    """Latencies from when each request was due, whoever was late: a slow server can't hide in a client that waits.

    In milliseconds, with how late the client itself was. An open loop only: else nothing is due.
    """
    good = [outcome for outcome in outcomes if not outcome.error]
    late = np.array([outcome.late for outcome in outcomes])
    result: dict[str, Any] = {}
    for metric, seconds in (
        ("scheduled_ttft", [outcome.start - outcome.due + outcome.ttft for outcome in good]),
        ("scheduled_e2el", [outcome.start - outcome.due + outcome.latency for outcome in good]),
        ("client_late", late),
    ):
        result |= statistics(metric, 1000 * np.array(seconds), percentiles)
    return result | {"max_client_late_ms": 1000 * late.max(initial=0.0), "num_late": int((late > LATE_SECONDS).sum())}


def table(result: dict[str, Any], metrics: Sequence[str], percentiles: Sequence[float], pooling: bool) -> list[str]:
    """vLLM's printed table of a result."""
    rate, generated = result["request_rate"], not pooling
    rows: list[tuple[str, Any]] = [
        ("Successful requests:", result["completed"]),
        ("Failed requests:", result["failed"]),
        ("Maximum request concurrency:", result["max_concurrency"]),
        ("Request rate configured (RPS):", None if rate == "inf" else float(rate)),
        ("Benchmark duration (s):", result["duration"]),
        ("Total input tokens:", result["total_input_tokens"]),
        ("Total generated tokens:", result["total_output_tokens"] if generated else None),
        ("Request throughput (req/s):", result["request_throughput"]),
        ("Request goodput (req/s):", result["request_goodput"]),
        ("Output token throughput (tok/s):", result["output_throughput"] if generated else None),
        ("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"] if generated else None),
        ("Peak concurrent requests:", float(result["max_concurrent_requests"]) if generated else None),
        ("Total token throughput (tok/s):", result["total_token_throughput"]),
    ]
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}", *(row(pair) for pair in rows if pair[1] is not None)]
    for metric in metrics:
        title, short = TITLES[metric]
        lines.append(f"{title:-^{WIDTH}}")
        lines += [row((f"{name} {short} (ms):", result[f"{key}_{metric}_ms"])) for name, key in shown(percentiles)]
    if "spec_decode_num_drafts" in result:
        lines += [f"{'Speculative Decoding':-^{WIDTH}}", *map(row, speculation_rows(result))]
    return [*lines, "=" * WIDTH]


def shown(percentiles: Sequence[float]) -> list[tuple[str, str]]:
    """The statistics that are printed: what each is called, and how its keys begin."""
    return [("Mean", "mean"), ("Median", "median"), *((f"P{percent:g}", f"p{percent:g}") for percent in percentiles)]


def speculation_rows(result: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        ("Acceptance rate (%):", result["spec_decode_acceptance_rate"]),
        ("Acceptance length:", result["spec_decode_acceptance_length"]),
        ("Drafts:", result["spec_decode_num_drafts"]),
        ("Draft tokens:", result["spec_decode_draft_tokens"]),
        ("Accepted tokens:", result["spec_decode_accepted_tokens"]),
        *(
            (f"Position {position} acceptance (%):", 100 * share)
            for position, share in enumerate(result["spec_decode_per_position_acceptance_rates"])
        ),
    ]


def row(pair: tuple[str, Any]) -> str:
    label, value = pair
    return f"{label:<40} {value:<10.2f}" if isinstance(value, float) else f"{label:<40} {value:<10}"


def schedule_lines(result: dict[str, Any], percentiles: Sequence[float], pooling: bool) -> list[str]:
    """Lines on what ``schedule`` found."""
    lines = ["From when each request was due, in ms:"]
    for name, key in (("TTFT", "scheduled_ttft"), ("E2EL", "scheduled_e2el"), ("client late", "client_late")):
        if not (pooling and key == "scheduled_ttft"):
            figures = [f"{title.lower()} {result[f'{stem}_{key}_ms']:.2f}" for title, stem in shown(percentiles)]
            lines.append(f"  {name:<12} {', '.join(figures)}")
    if late := result["num_late"]:
        lines.append(
            f"The client was late: {late} requests left more than {1000 * LATE_SECONDS:g} ms behind the schedule, "
            f"up to {result['max_client_late_ms']:.1f} ms. More --num-client-processes may help."
        )
    return lines


def reasons(failures: dict[str, int]) -> list[str]:
    """A line for each reason, the most frequent first."""
    shown = Counter(failures).most_common(MOST_REASONS)
    lines = [f"{count:>7} × {reason}" for reason, count in shown]
    rest = sum(failures.values()) - sum(count for _, count in shown)
    return [*lines, f"{rest:>7} × other reasons"] if rest else lines
