"""``headrace bench latency`` and ``throughput``: an engine in this process, or in each of torchrun's.

Figures and JSON keys are vLLM's; beside them stands what the device allows, and which share of it was used. Several
ranks start together, and the time of all of them is that of the slowest.
"""

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from headrace.bench import limits
from headrace.bench.datasets import Sample
from headrace.bench.ranks import Ranks
from headrace.bench.spread import percentiles, repeated, spread
from headrace.config import profiler_settings
from headrace.device import pick_device
from headrace.errors import ConfigError
from headrace.frontend.door import Prompt
from headrace.frontend.llm import LLM, Messages
from headrace.types import RequestOutput, SamplingParams, StepCost


class Repeats(NamedTuple):
    """How often to measure, and what to do before: batches for ``latency``, requests for ``throughput``."""

    warmup: int
    measured: int


@dataclass(frozen=True)
class Run:
    """What one rank did with its requests once."""

    seconds: float
    num_requests: int
    prompt_tokens: int
    computed: list[int]  # prompt tokens of each sequence that the prefix cache did not have
    outputs: list[int]  # tokens of each sequence; the first comes out of the prompt
    context: float  # tokens in the cache before an output token, on average
    steps: float  # that the engine took, about

    @property
    def output_tokens(self) -> int:
        return sum(self.outputs)

    @property
    def decoded(self) -> int:
        return self.output_tokens - len(self.outputs)

    @property
    def work(self) -> limits.Work:
        return limits.Work(self.steps, self.computed, self.decoded, self.context)

    def least_seconds(self, cost: StepCost, ceilings: limits.Ceilings) -> float:
        """That the device would have needed, had all sequences run at once."""
        prefill = sum(ceilings.prefill_step(cost, length).products for length in self.computed)
        steps = self.decoded / len(self.outputs)
        return prefill + steps * ceilings.decode_step(cost, len(self.outputs), self.context).total


def latency(
    llm: LLM, ranks: Ranks, lengths: tuple[int, int], batch: int, repeats: Repeats, sampling: SamplingParams
) -> dict[str, Any]:
    """Times of batches of requests with ``lengths`` tokens in and out, each rank with its share of ``batch``."""
    input_len, output_len = lengths
    check_length(llm, input_len + output_len)
    share = len(range(ranks.rank, batch, ranks.size))
    if batch < ranks.size:
        raise ConfigError(f"--batch-size {batch} is less than the {ranks.size} processes that share it.")

    def one(seed: int) -> tuple[float, float, float]:
        """Seconds of a batch, to its last first token, and of a step after that."""
        rng = np.random.default_rng((ranks.rank, seed))
        prompts: list[Any] = rng.integers(llm.info.vocab_size, size=(share, input_len)).tolist()
        ranks.meet()
        started = time.perf_counter()
        done = llm.generate(prompts, sampling.clone(max_tokens=output_len), use_tqdm=False)
        elapsed = time.perf_counter() - started
        times = [output.metrics for output in done if output.metrics]
        begun = max(metrics.first_token_ts for metrics in times)
        decoding = max(metrics.last_token_ts for metrics in times) - begun
        return elapsed, begun - min(metrics.queued_ts for metrics in times), decoding / max(output_len - 1, 1)

    for seed in range(repeats.warmup):
        one(seed)
    measured, interrupted = repeated(lambda i: one(repeats.warmup + i), repeats.measured, ranks.size == 1)
    files = [] if interrupted else profiled(llm, lambda: one(sum(repeats)))
    every = np.array(ranks.gather(measured))  # ranks × repeats × the three times
    latencies, first, steps = every.max(axis=0).T.tolist()
    result: dict[str, Any] = {
        "avg_latency": statistics.mean(latencies),
        "latencies": latencies,
        "percentiles": percentiles(latencies),
    }
    if ranks.size > 1:
        means = every.mean(axis=1)[:, 0].tolist()
        result["ranks"] = [{"rank": rank, "avg_latency": mean} for rank, mean in enumerate(means)]
    cost, ceilings, rows = llm.info.cost, ceilings_of(llm), share * sampling.n
    prefill = ceilings.prefill_step(cost, input_len)
    used = ceilings.used(cost, limits.Work(1, [input_len] * rows), statistics.median(first))
    result["ttft"] = spread(first) | {"limit": max(prefill.weights, rows * prefill.products)} | used._asdict()
    if output_len > 1:
        context = input_len + output_len / 2
        used = ceilings.used(cost, limits.Work(1, (), rows, context), statistics.median(steps))
        result["decode_step"] = spread(steps) | {"limit": ceilings.decode_step(cost, rows, context).total}
        result["decode_step"] |= used._asdict()
    return result | facts(llm, ceilings, files, interrupted)


def throughput(
    llm: LLM, ranks: Ranks, samples: Sequence[Sample], repeats: Repeats, sampling: SamplingParams
) -> dict[str, Any]:
    """Runs of all requests, sent at once: vLLM's keys of the median run, the spread of all, each rank's figures."""
    for sample in samples:
        check_length(llm, sample.prompt_len + (sample.output_len or 0))
    own = ranks.share(samples)
    if not all(ranks.gather(bool(own))):
        raise ConfigError(f"there are fewer requests or conversations than the {ranks.size} processes that share them.")
    if len(turns(own)) > 1 and not sampling.detokenize:
        raise ConfigError("a conversation goes on after the replies' texts, so leave out --disable-detokenize.")
    send(llm, own[: repeats.warmup], sampling)

    def one(_: int) -> Run:
        llm.reset_prefix_cache()
        ranks.meet()
        return one_run(llm, own, sampling, show=ranks.rank == 0 and sys.stderr.isatty())

    runs, interrupted = repeated(one, repeats.measured, ranks.size == 1)
    files = [] if interrupted else profiled(llm, lambda: send(llm, own, sampling))
    cost, ceilings = llm.info.cost, ceilings_of(llm)
    by_repeat = list(zip(*ranks.gather(runs), strict=True))
    times = [max(run.seconds for run in each) for each in by_repeat]
    seconds, chosen = sorted(zip(times, by_repeat, strict=True), key=lambda pair: pair[0])[len(times) // 2]
    result: dict[str, Any] = figures(chosen, seconds, cost, ceilings)
    rates = [sum(run.output_tokens for run in each) / time for time, each in zip(times, by_repeat, strict=True)]
    result |= {"elapsed_times": times, "output_tokens_per_second_spread": spread(rates)}
    if ranks.size > 1:
        result["ranks"] = [
            {"rank": rank} | figures([run], run.seconds, cost, ceilings) for rank, run in enumerate(chosen)
        ]
    return result | facts(llm, ceilings, files, interrupted)


def figures(runs: Sequence[Run], seconds: float, cost: StepCost, ceilings: limits.Ceilings) -> dict[str, Any]:
    """Of one run of some ranks that together took ``seconds``."""
    count, tokens_in = sum(run.num_requests for run in runs), sum(run.prompt_tokens for run in runs)
    tokens_out = sum(run.output_tokens for run in runs)
    used = np.mean([ceilings.used(cost, run.work, seconds) for run in runs], axis=0).tolist()
    return {
        "elapsed_time": seconds,
        "num_requests": count,
        "total_num_tokens": tokens_in + tokens_out,
        "requests_per_second": count / seconds,
        "tokens_per_second": (tokens_in + tokens_out) / seconds,
        "total_prompt_tokens": tokens_in,
        "total_output_tokens": tokens_out,
        "output_tokens_per_second": tokens_out / seconds,
        "output_tokens_per_second_limit": tokens_out / max(run.least_seconds(cost, ceilings) for run in runs),
    } | limits.Utilization(*used)._asdict()


def one_run(llm: LLM, samples: Sequence[Sample], sampling: SamplingParams, show: bool) -> Run:
    started = time.perf_counter()
    done = send(llm, samples, sampling, show)
    seconds = time.perf_counter() - started
    lengths = [
        (len(output.prompt_token_ids), output.num_cached_tokens or 0, len(sequence.token_ids))
        for output in done
        for sequence in output.outputs
    ]
    prompts, cached, outputs = map(np.array, zip(*lengths, strict=True))
    times = [output.metrics for output in done if output.metrics]
    running = sampling.n * sum(metrics.last_token_ts - metrics.scheduled_ts for metrics in times) / seconds
    return Run(
        seconds=seconds,
        num_requests=len(done),
        prompt_tokens=sum(len(output.prompt_token_ids) for output in done),
        computed=(prompts - cached).tolist(),
        outputs=outputs.tolist(),
        context=float(((prompts + outputs / 2) * outputs).sum() / outputs.sum()),
        steps=float(max(outputs.sum() / running, outputs.max())),
    )


def send(llm: LLM, samples: Sequence[Sample], sampling: SamplingParams, show: bool = False) -> list[RequestOutput]:
    """Complete all samples, those without a conversation at once, the others turn after turn of all conversations.

    ``show``: with bars of progress on stderr.
    """
    histories: dict[int, list[dict[str, Any]]] = defaultdict(list)
    outputs = []
    for turn in turns(samples):
        params = [sampling.clone(max_tokens=sample.output_len) for sample in turn]
        if turn[0].conversation is None:
            outputs += llm.generate([cast(Prompt, sample.prompt) for sample in turn], params, use_tqdm=show)
            continue
        conversations = [histories[cast(int, sample.conversation)] for sample in turn]
        for messages, sample in zip(conversations, turn, strict=True):
            messages += cast(Messages, sample.prompt)
        answers = llm.chat(conversations, params, use_tqdm=show)
        for messages, answer in zip(conversations, answers, strict=True):
            messages.append({"role": "assistant", "content": answer.outputs[0].text})
        outputs += answers
    return outputs


def turns(samples: Sequence[Sample]) -> list[list[Sample]]:
    """The first samples of all conversations, the second ones, and so on; of those without one there is one turn."""
    taken: Counter[int | None] = Counter()
    found: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        found[0 if sample.conversation is None else taken[sample.conversation]].append(sample)
        taken[sample.conversation] += 1
    return list(found.values())


def profiled(llm: LLM, run: Callable[[], object]) -> list[str]:
    """The files of a profile of one more run, which counts in no figure, if the engine is to make profiles."""
    settings = profiler_settings(llm.config.profiling.profiler_config)
    if settings is None or settings.autostart:
        return []
    llm.start_profile()
    run()
    return llm.stop_profile()


def check_length(llm: LLM, length: int) -> None:
    if length > (limit := llm.info.max_model_len):
        raise ConfigError(f"prompt and output together have up to {length} tokens, more than --max-model-len {limit}.")


def ceilings_of(llm: LLM) -> limits.Ceilings:
    return limits.measure(llm.info.dtype, pick_device(llm.config.model.device))


def facts(llm: LLM, ceilings: limits.Ceilings, profile: list[str], interrupted: bool) -> dict[str, Any]:
    """What a figure means nothing without."""
    info = llm.info
    known = {"model": info.architecture, "device": info.device, "dtype": info.dtype, "ceilings": asdict(ceilings)}
    return known | ({"profile": profile} if profile else {}) | ({"interrupted": True} if interrupted else {})
