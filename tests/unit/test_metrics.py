"""Metrics: every name that dashboards ask for is served, with vLLM's buckets, and filled by what is observed."""

import logging
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from headrace.config import Config
from headrace.frontend.metrics import FINISH_REASONS, LATENCY, TABLE, Metrics, markdown, one_two_five
from headrace.frontend.observer import FinishedRequest, Observer
from headrace.server.stats_log import StatsLog
from headrace.types import Stats

from .fake_engine import FakeEngine

# Every series that a widely used Grafana board for vLLM asks for.
BOARD = (
    "e2e_request_latency_seconds_bucket", "e2e_request_latency_seconds_sum", "e2e_request_latency_seconds_count",
    "prompt_tokens_total", "generation_tokens_total",
    "time_per_output_token_seconds_bucket", "time_per_output_token_seconds_sum", "time_per_output_token_seconds_count",
    "num_requests_running", "num_requests_swapped", "num_requests_waiting",
    "time_to_first_token_seconds_bucket", "time_to_first_token_seconds_sum", "time_to_first_token_seconds_count",
    "gpu_cache_usage_perc", "cpu_cache_usage_perc",
    "request_prompt_tokens_bucket", "request_generation_tokens_bucket", "request_success_total",
    "request_queue_time_seconds_sum", "request_prefill_time_seconds_sum", "request_decode_time_seconds_sum",
    "request_max_num_generation_tokens_sum",
)  # fmt: skip
# What vLLM exports beside them, and the older names that were dropped there.
EXPORTED = (
    "num_requests_waiting_by_reason", "kv_cache_usage_perc", "prefix_cache_queries_total", "prefix_cache_hits_total",
    "gpu_prefix_cache_queries_total", "gpu_prefix_cache_hits_total", "num_preemptions_total",
    "prompt_tokens_cached_total", "prompt_tokens_by_source_total", "admission_rejections_total",
    "request_params_max_tokens_bucket", "request_params_n_bucket", "request_prefill_kv_computed_tokens_bucket",
    "request_num_preemptions_bucket", "iteration_tokens_total_bucket", "inter_token_latency_seconds_bucket",
    "request_time_per_output_token_seconds_bucket", "request_inference_time_seconds_bucket", "cache_config_info",
)  # fmt: skip

REQUEST = FinishedRequest(
    request_id="r",
    finish_reasons=["stop", "length"],
    prompt_tokens=30,
    generation_tokens=12,
    max_generation_tokens=7,
    cached_tokens=16,
    n=2,
    max_tokens=100,
    e2e_seconds=3.0,
    queue_seconds=0.25,
    prefill_seconds=0.5,
    decode_seconds=2.0,
    inference_seconds=2.5,
    time_per_output_token=0.2,
    preemptions=1,
)


class Scrape:
    """The samples of one scrape, looked up by name and labels."""

    def __init__(self, metrics: Metrics):
        text = generate_latest(metrics.registry).decode()
        self.samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        self.names = {sample.name for sample in self.samples}

    def __call__(self, name: str, **labels: str) -> float:
        wanted = labels.items()
        (value,) = [s.value for s in self.samples if s.name == "vllm:" + name and wanted <= s.labels.items()]
        return float(value)

    def buckets(self, name: str) -> list[float]:
        return [float(s.labels["le"]) for s in self.samples if s.name == f"vllm:{name}_bucket"]


@pytest.fixture
def metrics() -> Metrics:
    config = Config.from_kwargs(gpu_memory_utilization=0.5)
    return Metrics(config, FakeEngine(config).info, "model")


def test_every_series_of_the_board_and_of_vllm_exists_before_the_first_request(metrics: Metrics) -> None:
    scrape = Scrape(metrics)
    assert {"vllm:" + name for name in (*BOARD, *EXPORTED)} <= scrape.names
    for sample in scrape.samples:
        if sample.name.startswith("vllm:"):
            assert sample.labels["model_name"] == "model"
            assert sample.labels.get("engine") == (None if "admission_rejections" in sample.name else "0")
    reasons = {s.labels["finished_reason"] for s in scrape.samples if s.name == "vllm:request_success_total"}
    assert reasons == set(FINISH_REASONS)


def test_buckets(metrics: Metrics) -> None:
    scrape = Scrape(metrics)
    assert scrape.buckets("request_prompt_tokens")[:-1] == [1, 2, 5, 10, 20, 50, 100, 200, 500]
    assert scrape.buckets("e2e_request_latency_seconds")[:-1] == list(LATENCY)
    assert scrape.buckets("time_per_output_token_seconds") == scrape.buckets("inter_token_latency_seconds")
    assert one_two_five(1000)[-1] == 1000
    assert one_two_five(1) == [1]


def test_what_is_observed_is_served(metrics: Metrics) -> None:
    observer: Observer = metrics
    stats = Stats(
        num_running=3,
        num_waiting=2,
        kv_cache_usage=0.5,
        prefix_cache_queries=30,
        prefix_cache_hits=16,
        num_preemptions=1,
        prompt_tokens=14,
        generation_tokens=6,
        num_steps=2,
    )
    for _ in range(2):
        observer.on_stats(stats)
    observer.on_first_token(0.03)
    observer.on_tokens(1, 0.2)
    observer.on_finished(REQUEST)
    observer.on_finished(FinishedRequest(request_id="q", finish_reasons=["abort"], prompt_tokens=1,
                                         generation_tokens=0, max_generation_tokens=0, e2e_seconds=1.0))  # fmt: skip
    observer.on_rejected("max_num_queued_reqs")
    scrape = Scrape(metrics)
    assert (scrape("num_requests_running"), scrape("num_requests_waiting")) == (3, 2)
    assert scrape("num_requests_waiting_by_reason", reason="capacity") == 2
    assert scrape("kv_cache_usage_perc") == scrape("gpu_cache_usage_perc") == 0.5
    assert scrape("prefix_cache_hits_total") == scrape("gpu_prefix_cache_hits_total") == 32
    assert scrape("prompt_tokens_total") == 60
    assert scrape("prompt_tokens_by_source_total", source="local_compute") == 28
    assert scrape("prompt_tokens_cached_total") == 32
    assert scrape("generation_tokens_total") == 12
    assert scrape("num_preemptions_total") == 2
    assert (scrape("iteration_tokens_total_count"), scrape("iteration_tokens_total_sum")) == (4, 40)
    assert scrape("time_to_first_token_seconds_sum") == 0.03
    assert scrape("inter_token_latency_seconds_sum") == scrape("time_per_output_token_seconds_sum") == 0.2
    assert scrape("request_success_total", finished_reason="stop") == 1
    assert scrape("request_success_total", finished_reason="abort") == 1
    assert scrape("request_prefill_kv_computed_tokens_sum") == 14 + 1
    assert scrape("request_max_num_generation_tokens_sum") == 7
    assert scrape("request_params_max_tokens_count") == 1
    assert scrape("request_params_n_sum") == 3
    assert scrape("e2e_request_latency_seconds_sum") == 4
    assert scrape("request_decode_time_seconds_count") == 1
    assert scrape("admission_rejections_total", reason="max_num_queued_reqs") == 1
    assert scrape("num_requests_swapped") == scrape("cpu_cache_usage_perc") == 0


def test_cache_settings_are_labels(metrics: Metrics) -> None:
    resolved = {"block_size": "16", "num_gpu_blocks": "64", "kv_cache_size_tokens": "1024"}
    options = {"gpu_memory_utilization": "0.5", "enable_prefix_caching": "True"}
    assert Scrape(metrics)("cache_config_info", **resolved, **options, kv_cache_max_concurrency="2.0") == 1


def test_the_page_lists_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert page.read_text() == markdown(), "run: python -m headrace.frontend.metrics > docs/metrics.md"
    assert len({metric.name for metric in TABLE}) == len(TABLE)


def test_periodic_line(caplog: Any) -> None:
    log, now, lines = StatsLog(0.0), 0.0, []
    caplog.set_level(logging.INFO, "headrace")
    busy = Stats(num_running=1, kv_cache_usage=0.001, prompt_tokens=22, generation_tokens=63)
    hits = Stats(prefix_cache_queries=8, prefix_cache_hits=2)
    for stats in (None, busy, None, hits, hits):
        if stats is not None:
            log.on_stats(stats)
        now += 10
        caplog.clear()
        log.log(now)
        lines.append(caplog.messages)
    assert lines[0] == []
    assert lines[1] == [
        "Engine 000: Avg prompt throughput: 2.2 tokens/s, Avg generation throughput: 6.3 tokens/s, Running: 1 reqs, "
        "Waiting: 0 reqs, GPU KV cache usage: 0.1%, Prefix cache hit rate: 0.0%"
    ]
    assert len(lines[2]) == 1  # still running
    assert "Prefix cache hit rate: 25.0%" in lines[3][0]  # the first idle period is still reported
    assert lines[4] == []
