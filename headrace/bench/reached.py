"""How near a load on a server came to what the server's device allows at least: times, bandwidth (MBU), FLOPs (MFU).

The arithmetic is that of plans and of the offline benchmarks; the work is what the requests needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from headrace.bench.limits import utilization
from headrace.bench.load import Outcome
from headrace.bench.measures import crowd, tpot
from headrace.bench.roofline import Speed


@dataclass(frozen=True)
class Work:
    """What the successful requests of a load needed, and how long it took; times in seconds."""

    prompts: list[int]  # tokens of each, those left out that the prefix cache had
    decoded: int  # tokens after each request's first
    batch: float  # requests that decoded at once, while any did
    context: float  # tokens that a decoded one had before it, on average
    ttft: float
    tpot: float  # both the means that are printed
    duration: float


def work_of(outcomes: Sequence[Outcome], duration: float, cached: float) -> Work:
    """``cached``: the part of the prompts' tokens that the server had in its prefix cache. Some must have succeeded."""
    good = [outcome for outcome in outcomes if not outcome.error]
    decoding = [(outcome, value) for outcome in good if (value := tpot(outcome)) is not None]
    tokens = np.array([(outcome.output_len or 0) - 1 for outcome, _ in decoding])
    lengths = np.array([outcome.prompt_len + (outcome.output_len or 0) / 2 for outcome, _ in decoding])
    moments, counts = crowd([(o.start + o.ttft, o.start + o.latency) for o, _ in decoding])
    spans, counts = np.diff(moments), counts[:-1]
    return Work(
        prompts=[round(outcome.prompt_len * (1 - cached)) for outcome in good],
        decoded=int(tokens.sum()),
        batch=float((spans * counts).sum() / spans[counts > 0].sum()) if spans.any() else 0.0,
        context=float((lengths * tokens).sum() / tokens.sum()) if decoding else 0.0,
        ttft=float(np.mean([outcome.ttft for outcome in good])),
        tpot=float(np.mean([value for _, value in decoding])) if decoding else 0.0,
        duration=duration,
    )


def reached(speed: Speed, work: Work) -> dict[str, Any]:
    """Keys of ours in a result: limits in milliseconds, shares from 0 to 1; without decoding, only prefill's."""
    part, prompt = speed.parts[0], round(float(np.mean(work.prompts)))
    prefill = utilization(part, speed.ceilings, seconds=work.ttft, steps=1, prompts=[prompt])
    result = {
        "limit_device": speed.setting.device.name,
        "limit_devices": speed.setting.tensor,
        "mean_prompt": prompt,
        "limit_ttft_ms": speed.prefill(prompt)["ttft_ms"],
        "prefill_mfu": prefill.mfu,
    }
    steps = 1.0
    if work.batch:
        steps, batch, context = work.decoded / work.batch, work.batch, work.context
        decode = utilization(part, speed.ceilings, seconds=work.tpot, steps=1, output_tokens=batch, context=context)
        result |= {"mean_batch": batch, "mean_context": context, "decode_mbu": decode.mbu}
        result["limit_tpot_ms"] = speed.decode(batch, context)["tpot_ms"]
    whole = utilization(
        part,
        speed.ceilings,
        seconds=work.duration,
        steps=steps,
        prompts=work.prompts,
        output_tokens=work.decoded,
        context=work.context,
    )
    return result | whole._asdict()


def lines_of(result: dict[str, Any], work: Work) -> list[str]:
    """What ``reached`` found, for people."""
    devices = result["limit_devices"]
    said = [f"Limits of {f'{devices} × ' if devices > 1 else ''}{result['limit_device']}, and how much was reached:"]
    for name, seconds, limit, what in (
        ("TPOT", work.tpot, result.get("limit_tpot_ms"), "MBU {decode_mbu:.1%}; {mean_batch:.1f} requests at once"),
        ("TTFT", work.ttft, result["limit_ttft_ms"], "MFU {prefill_mfu:.1%}; a prompt of {mean_prompt} tokens alone"),
    ):
        if limit is not None:
            said.append(
                f"  {name}  {limit:.2f} ms, {limit / seconds / 1000:.1%} of it reached; {what.format(**result)}"
            )
    return [*said, f"  Whole run: MBU {result['mbu']:.1%}, MFU {result['mfu']:.1%}"]


def cached_share(before: str | None, after: str | None) -> float:
    """The part of the prompts' tokens that the prefix cache had, from a server's metrics before and after a load."""
    hits, queries = (
        total(after, f"vllm:prefix_cache_{what}_total") - total(before, f"vllm:prefix_cache_{what}_total")
        for what in ("hits", "queries")
    )
    return hits / queries if queries > 0 else 0.0


def total(metrics: str | None, name: str) -> float:
    families = text_string_to_metric_families(metrics or "")
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)
