"""``headrace bench latency`` and ``throughput``: an engine in this process, prompts of random tokens.

Figures and JSON keys are vLLM's; beside them stands what the device allows.
"""

import random
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from headrace.bench import limits
from headrace.errors import ConfigError
from headrace.frontend.llm import LLM
from headrace.types import RequestOutput, SamplingParams

PERCENTILES = (10, 25, 50, 75, 90, 99)


@dataclass(frozen=True)
class Lengths:
    """How long random prompts and outputs are: ``input`` and ``output`` tokens, give or take ``spread`` of them."""

    input: int
    output: int
    spread: float = 0.0

    def draw(self, count: int, vocab_size: int, seed: int) -> tuple[list[list[int]], list[int]]:
        """``count`` prompts, and how many tokens each is to get."""
        rng = random.Random(seed)

        def around(length: int) -> int:
            return rng.randint(max(round(length * (1 - self.spread)), 1), max(round(length * (1 + self.spread)), 1))

        prompts = [[rng.randrange(vocab_size) for _ in range(around(self.input))] for _ in range(count)]
        return prompts, [around(self.output) for _ in range(count)]


def generate(llm: LLM, prompts: list[list[int]], outputs: list[int], sampling: dict[str, Any]) -> list[RequestOutput]:
    params = [SamplingParams(max_tokens=count, ignore_eos=True, **sampling) for count in outputs]
    return llm.generate(prompts, params, use_tqdm=False)


def check_lengths(llm: LLM, longest: int) -> None:
    if longest > llm.info.max_model_len:
        limit = llm.info.max_model_len
        raise ConfigError(f"prompt and output together have up to {longest} tokens, more than --max-model-len {limit}.")


def latency(
    llm: LLM, lengths: Lengths, batch: int, warmup: int, iterations: int, sampling: dict[str, Any]
) -> dict[str, Any]:
    """Times of ``iterations`` batches: vLLM's keys, and of the medians the first token's and a decoding step's."""
    check_lengths(llm, lengths.input + lengths.output)
    latencies, first, steps = [], [], []
    for iteration in range(-warmup, iterations):
        prompts, outputs = lengths.draw(batch, llm.info.vocab_size, iteration)
        started = time.perf_counter()
        done = generate(llm, prompts, outputs, sampling)
        elapsed = time.perf_counter() - started
        if iteration < 0:
            continue
        latencies.append(elapsed)
        times = [output.metrics for output in done if output.metrics]
        begun = max(metrics.first_token_ts for metrics in times)
        first.append(begun - min(metrics.queued_ts for metrics in times))
        if lengths.output > 1:
            steps.append((max(metrics.last_token_ts for metrics in times) - begun) / (lengths.output - 1))
    ceilings = limits.measure(llm.info.dtype)
    context = lengths.input + lengths.output / 2
    result: dict[str, Any] = {
        "avg_latency": statistics.mean(latencies),
        "latencies": latencies,
        "percentiles": {str(p): percentile(latencies, p) for p in PERCENTILES},
        "ttft": spread(first),
        "ttft_limit": ceilings.prefill_seconds(llm.info, lengths.input) if batch == 1 else None,
        "decode_step": spread(steps) if steps else None,
        "decode_step_limit": ceilings.decode_seconds(llm.info, batch, context) if steps else None,
    }
    return result | facts(llm, ceilings)


def throughput(
    llm: LLM, lengths: Lengths, count: int, warmups: int, seed: int, sampling: dict[str, Any]
) -> dict[str, Any]:
    """One run of ``count`` requests sent at once: vLLM's keys, and what output tokens a second the device allows."""
    check_lengths(llm, round((lengths.input + lengths.output) * (1 + lengths.spread)))
    if warmups:
        generate(llm, *lengths.draw(warmups, llm.info.vocab_size, -1), sampling)
    prompts, outputs = lengths.draw(count, llm.info.vocab_size, seed)
    started = time.perf_counter()
    generate(llm, prompts, outputs, sampling)
    elapsed = time.perf_counter() - started
    tokens_in, tokens_out = sum(map(len, prompts)), sum(outputs)
    ceilings = limits.measure(llm.info.dtype)
    contexts = sum(len(prompt) + wanted / 2 for prompt, wanted in zip(prompts, outputs, strict=True)) / count
    least = sum(ceilings.prefill_seconds(llm.info, len(prompt)) for prompt in prompts) + (
        ceilings.decode_seconds(llm.info, count, contexts) * tokens_out / count
    )
    result = {
        "elapsed_time": elapsed,
        "num_requests": count,
        "total_num_tokens": tokens_in + tokens_out,
        "requests_per_second": count / elapsed,
        "tokens_per_second": (tokens_in + tokens_out) / elapsed,
        "total_prompt_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "output_tokens_per_second": tokens_out / elapsed,
        "output_tokens_per_second_limit": tokens_out / least,
    }
    return result | facts(llm, ceilings)


def facts(llm: LLM, ceilings: limits.Ceilings) -> dict[str, Any]:
    """What a figure means nothing without."""
    info = llm.info
    return {"model": info.architecture, "device": info.device, "dtype": info.dtype, "ceilings": asdict(ceilings)}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: list[float], percent: int) -> float:
    """By linear interpolation between the two nearest, as NumPy has it."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
