"""Prometheus metrics of the engine under vLLM's names: one table declares them all, one observer fills them.

Owns names, buckets and labels; does not know routes. docs/metrics.md is generated from the table.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import Metric as Family
from prometheus_client.core import Sample
from prometheus_client.registry import Collector

from headrace.config import Config
from headrace.frontend.observer import FinishedRequest, Observer
from headrace.types import EngineInfo, Stats

PREFIX = "vllm:"
FINISH_REASONS = ("stop", "length", "abort", "error")
REJECT_REASONS = (
    *("max_num_queued_reqs", "max_num_queued_tokens"),
    *("max_queued_per_key", "max_requests_per_minute_per_key"),
)
WAIT_REASONS = ("capacity", "deferred")
SOURCES = ("local_compute", "local_cache_hit")

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560),
)
PER_TOKEN = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75), *(1, 2.5, 5, 7.5, 10, 20, 40, 80))
LATENCY = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60),
    *(120, 240, 480, 960, 1920, 7680),
)
UP_TO_MODEL_LENGTH: tuple[float, ...] = ()  # stands for the 1-2-5 series up to the model's length


@dataclasses.dataclass(frozen=True)
class Metric:
    """One declared metric; ``values`` are the values of ``label`` that exist from the start, at zero."""

    name: str
    kind: type[Gauge] | type[Counter] | type[Histogram]
    help: str
    buckets: Sequence[float] | None = None
    label: str | None = None
    values: tuple[str, ...] = ()


TABLE = (
    Metric("num_requests_running", Gauge, "Requests being computed."),
    Metric("num_requests_waiting", Gauge, "Requests waiting to be scheduled."),
    Metric(
        "num_requests_waiting_by_reason",
        Gauge,
        "Waiting requests by what they wait for: capacity, or something else (deferred, always 0 here).",
        label="reason",
        values=WAIT_REASONS,
    ),
    Metric("kv_cache_usage_perc", Gauge, "Part of the KV cache in use; 1 means all."),
    Metric("prefix_cache_queries", Counter, "Prompt tokens looked up in the prefix cache."),
    Metric("prefix_cache_hits", Counter, "Prompt tokens found in the prefix cache."),
    Metric("num_preemptions", Counter, "Times a running request lost its KV blocks and had to start again."),
    Metric("prompt_tokens", Counter, "Prompt tokens processed, computed or found in the prefix cache."),
    Metric("prompt_tokens_cached", Counter, "Prompt tokens that needed no computation."),
    Metric(
        "prompt_tokens_by_source", Counter, "Prompt tokens by where they came from.", label="source", values=SOURCES
    ),
    Metric("generation_tokens", Counter, "Tokens generated."),
    Metric(
        "request_success",
        Counter,
        "Finished sequences by how they ended.",
        label="finished_reason",
        values=FINISH_REASONS,
    ),
    Metric(
        "admission_rejections",
        Counter,
        "Requests refused because there were too many, by the limit (no engine label).",
        label="reason",
        values=REJECT_REASONS,
    ),
    Metric("request_prompt_tokens", Histogram, "Prompt tokens of a request.", UP_TO_MODEL_LENGTH),
    Metric("request_generation_tokens", Histogram, "Tokens generated for a request.", UP_TO_MODEL_LENGTH),
    Metric(
        "request_max_num_generation_tokens", Histogram, "Tokens of a request's longest sequence.", UP_TO_MODEL_LENGTH
    ),
    Metric("request_params_max_tokens", Histogram, "max_tokens as requests set it.", UP_TO_MODEL_LENGTH),
    Metric("request_params_n", Histogram, "n as requests set it.", (1, 2, 5, 10, 20)),
    Metric(
        "request_prefill_kv_computed_tokens",
        Histogram,
        "Prompt tokens of a request that were computed, not found in the prefix cache.",
        UP_TO_MODEL_LENGTH,
    ),
    Metric("request_num_preemptions", Histogram, "Preemptions of a request.", (1, 2, 3, 4, 5, 10, 20)),
    Metric("iteration_tokens_total", Histogram, "Tokens of an engine step.", STEP_TOKENS),
    Metric("time_to_first_token_seconds", Histogram, "Arrival to first token.", FIRST_TOKEN),
    Metric("inter_token_latency_seconds", Histogram, "Time between two tokens of a sequence.", PER_TOKEN),
    Metric(
        "request_time_per_output_token_seconds",
        Histogram,
        "A request's mean time per token after the first.",
        PER_TOKEN,
    ),
    Metric("e2e_request_latency_seconds", Histogram, "Arrival to last token.", LATENCY),
    Metric("request_queue_time_seconds", Histogram, "Arrival to first scheduled.", LATENCY),
    Metric("request_prefill_time_seconds", Histogram, "First scheduled to first token.", LATENCY),
    Metric("request_decode_time_seconds", Histogram, "First token to last token.", LATENCY),
    Metric("request_inference_time_seconds", Histogram, "First scheduled to last token.", LATENCY),
)

# Names that vLLM dropped and dashboards still use -> what they are called now.
ALIASES = {
    "time_per_output_token_seconds": "inter_token_latency_seconds",
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
    "gpu_prefix_cache_queries": "prefix_cache_queries",
    "gpu_prefix_cache_hits": "prefix_cache_hits",
}
# Names of what does not exist here, so that boards show 0 instead of nothing.
ZEROS = {
    "cpu_cache_usage_perc": "Part of a KV cache on the host in use (there is none).",
    "num_requests_swapped": "Requests swapped out to the host (there are none).",
}
CACHE_CONFIG = "One series of value 1; its labels are the settings of the KV cache."


class Metrics(Observer):
    """Observer that keeps the metrics of one engine in a registry of its own."""

    def __init__(self, config: Config, info: EngineInfo, model_name: str):
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        labels = {"model_name": model_name, "engine": "0"}
        self._series: dict[str, Any] = {}  # name -> what to write to: a metric, or one per value of its own label
        families = {metric.name: self._add(metric, labels, info.max_model_len) for metric in TABLE}
        for alias, name in ALIASES.items():
            self.registry.register(Alias(PREFIX + alias, families[name]))
        for name, text in ZEROS.items():
            Gauge(PREFIX + name, text, list(labels), registry=self.registry).labels(**labels)
        settings = labels | cache_settings(config, info)
        Gauge(PREFIX + "cache_config_info", CACHE_CONFIG, list(settings), registry=self.registry).labels(
            **settings
        ).set(1)

    def _add(self, metric: Metric, labels: dict[str, str], max_model_len: int) -> Any:
        if metric.name == "admission_rejections":
            labels = {"model_name": labels["model_name"]}
        own = [] if metric.label is None else [metric.label]
        options: dict[str, Any] = {"registry": self.registry}
        if metric.kind is Histogram:
            options["buckets"] = metric.buckets or one_two_five(max_model_len)
        family = metric.kind(PREFIX + metric.name, metric.help, [*labels, *own], **options)
        self._series[metric.name] = (
            family.labels(**labels)
            if metric.label is None
            else {value: family.labels(**labels, **{metric.label: value}) for value in metric.values}
        )
        return family

    def on_stats(self, stats: Stats) -> None:
        series = self._series
        series["num_requests_running"].set(stats.num_running)
        series["num_requests_waiting"].set(stats.num_waiting)
        series["num_requests_waiting_by_reason"]["capacity"].set(stats.num_waiting)
        series["kv_cache_usage_perc"].set(stats.kv_cache_usage)
        series["prefix_cache_queries"].inc(stats.prefix_cache_queries)
        series["prefix_cache_hits"].inc(stats.prefix_cache_hits)
        series["num_preemptions"].inc(stats.num_preemptions)
        series["prompt_tokens"].inc(stats.prompt_tokens + stats.prefix_cache_hits)
        series["prompt_tokens_cached"].inc(stats.prefix_cache_hits)
        series["prompt_tokens_by_source"]["local_compute"].inc(stats.prompt_tokens)
        series["prompt_tokens_by_source"]["local_cache_hit"].inc(stats.prefix_cache_hits)
        series["generation_tokens"].inc(stats.generation_tokens)
        for _ in range(stats.num_steps):
            series["iteration_tokens_total"].observe((stats.prompt_tokens + stats.generation_tokens) / stats.num_steps)

    def on_first_token(self, ttft_seconds: float) -> None:
        self._series["time_to_first_token_seconds"].observe(ttft_seconds)

    def on_tokens(self, num_tokens: int, inter_token_seconds: float) -> None:
        self._series["inter_token_latency_seconds"].observe(inter_token_seconds)

    def on_finished(self, request: FinishedRequest) -> None:
        for reason in request.finish_reasons:
            self._series["request_success"][reason].inc()
        observed = {
            "request_prompt_tokens": request.prompt_tokens,
            "request_generation_tokens": request.generation_tokens,
            "request_max_num_generation_tokens": request.max_generation_tokens,
            "request_params_max_tokens": request.max_tokens,
            "request_params_n": request.n,
            "request_prefill_kv_computed_tokens": request.prompt_tokens - request.cached_tokens,
            "request_num_preemptions": request.preemptions,
            "request_time_per_output_token_seconds": request.time_per_output_token,
            "e2e_request_latency_seconds": request.e2e_seconds,
            "request_queue_time_seconds": request.queue_seconds,
            "request_prefill_time_seconds": request.prefill_seconds,
            "request_decode_time_seconds": request.decode_seconds,
            "request_inference_time_seconds": request.inference_seconds,
        }
        for name, value in observed.items():
            if value is not None:
                self._series[name].observe(value)

    def on_rejected(self, reason: str) -> None:
        self._series["admission_rejections"][reason].inc()


class Alias(Collector):
    """Serves a metric's samples a second time, under another name."""

    def __init__(self, name: str, source: Gauge | Counter | Histogram):
        self.name = name
        self.source = source

    def collect(self) -> Iterator[Family]:
        for family in self.source.collect():
            alias = Family(self.name, f"Another name of {family.name}. {family.documentation}", family.type)
            alias.samples = [
                Sample(self.name + sample.name.removeprefix(family.name), *sample[1:]) for sample in family.samples
            ]
            yield alias


def one_two_five(limit: int) -> list[int]:
    """1, 2, 5, 10, 20, 50, … up to ``limit``."""
    series = (digit * 10**power for power in range(len(str(limit))) for digit in (1, 2, 5))
    return [bucket for bucket in series if bucket <= limit]


def cache_settings(config: Config, info: EngineInfo) -> dict[str, str]:
    """The KV cache's options, and what came of them, as label values."""
    settings = dataclasses.asdict(config.cache) | {
        "block_size": info.block_size,
        "num_gpu_blocks": info.num_blocks,
        "kv_cache_size_tokens": info.kv_cache_tokens,
        "kv_cache_max_concurrency": round(info.max_concurrency, 2),
    }
    return {name: str(value) for name, value in settings.items()}


def markdown() -> str:
    """docs/metrics.md."""
    kinds = {Gauge: "gauge", Counter: "counter", Histogram: "histogram"}
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` serves these in Prometheus' text format. They bear vLLM's names, labels and buckets, so that",
        "its dashboards and alerts work unchanged. Each has the labels `model_name` (the first served name) and",
        '`engine` ("0") unless it says otherwise. Counters get the suffix `_total`; histograms `_bucket`, `_sum` and',
        "`_count`. With `--api-key`, `--protect-metrics` decides whether this route asks for the key, too. This page",
        "is generated from the table in `headrace/frontend/metrics.py`.",
        "",
        "| Name | Type | Meaning |",
        "|---|---|---|",
    ]
    for metric in TABLE:
        extra = f" Label `{metric.label}`: {', '.join(metric.values)}." if metric.label else ""
        lines.append(f"| `{PREFIX}{metric.name}` | {kinds[metric.kind]} | {metric.help}{extra} |")
    lines.append(f"| `{PREFIX}cache_config_info` | gauge | {CACHE_CONFIG} |")
    lines += ["", "Names that older dashboards use:", "", "| Name | Serves |", "|---|---|"]
    lines += [f"| `{PREFIX}{alias}` | the samples of `{PREFIX}{name}` |" for alias, name in ALIASES.items()]
    lines += [f"| `{PREFIX}{name}` | 0. {text} |" for name, text in ZEROS.items()]
    lines += [
        "",
        "Buckets of token counts are the 1-2-5 series up to the model's length. The process, platform and garbage",
        "collector metrics of the Python client (`process_*`, `python_*`) are served as well.",
        "",
        "Every 10 seconds of work the log has a line with the throughput, the queue and the cache, unless the server",
        "runs with `--disable-log-stats`:",
        "",
        "```",
        "Engine 000: Avg prompt throughput: 2.2 tokens/s, Avg generation throughput: 6.3 tokens/s, Running: 1 reqs, "
        "Waiting: 0 reqs, GPU KV cache usage: 0.1%, Prefix cache hit rate: 0.0%",
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
