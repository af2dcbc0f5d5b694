"""How near a load on a server came to what the server's device allows at least: times, bandwidth (MBU), FLOPs (MFU).

The arithmetic is that of plans and of the offline benchmarks; the work is what the requests needed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace.bench.limits import Work
from headrace.bench.measures import crowd
from headrace.bench.reading import requests_of
from headrace.bench.roofline import Speed


@dataclass(frozen=True)
class Served:
    """What a load's successful requests, of which there are some, needed, and how long it took; times in seconds."""

    work: Work
    batch: float  # requests that decoded at once, while any did; 0 if none did
    ttft: float
    tpot: float  # both the means that are printed
    duration: float


def served(result: dict[str, Any], cached: float) -> Served:
    """By a result's vectors. ``cached``: the part of the prompts' tokens that the server had in its prefix cache."""
    requests = requests_of(result)
    good, decoding = ~np.isnan(requests.ttft), ~np.isnan(requests.tpot)
    tokens = np.where(decoding, requests.output_len - 1, 0)
    moments, counts = crowd((requests.start + requests.ttft)[decoding], (requests.start + requests.e2el)[decoding])
    spans, counts = np.diff(moments), counts[:-1]
    busy = spans[counts > 0].sum()  # none where whole answers come at once
    batch = float((spans * counts).sum() / busy) if busy else 0.0
    prompts = np.rint(requests.input_len[good] * (1 - cached)).astype(int).tolist()
    contexts = (requests.input_len + requests.output_len / 2) * tokens
    context = float(contexts.sum() / max(tokens.sum(), 1))
    return Served(
        work=Work(float(tokens.sum()) / batch if batch else 1, prompts, int(tokens.sum()), context),
        batch=batch,
        ttft=float(requests.ttft[good].mean()) / 1000,
        tpot=float(requests.tpot[decoding].mean()) / 1000 if batch else 0.0,
        duration=result["duration"],
    )


def reached(speed: Speed, load: Served) -> dict[str, Any]:
    """Keys of ours in a result: limits in milliseconds, shares from 0 to 1; without decoding, only prefill's."""
    ceilings, cost = speed.ceilings, speed.parts[0].cost
    prompt, context = round(float(np.mean(load.work.prompts))), load.work.context
    result = {
        "limit_device": speed.setting.device.name,
        "limit_devices": speed.setting.tensor,
        "mean_prompt": prompt,
        "limit_ttft_ms": speed.prefill(prompt)["ttft_ms"],
        "prefill_mfu": ceilings.used(cost, Work(1, [prompt]), load.ttft).mfu,
    }
    if load.batch:
        decode = ceilings.used(cost, Work(1, (), load.batch, context), load.tpot)
        result |= {"mean_batch": load.batch, "mean_context": context, "decode_mbu": decode.mbu}
        result["limit_tpot_ms"] = speed.decode(load.batch, context)["tpot_ms"]
    return result | ceilings.used(cost, load.work, load.duration)._asdict()


def lines_of(result: dict[str, Any], load: Served) -> list[str]:
    """What ``reached`` found, for people."""
    devices = result["limit_devices"]
    said = [f"Limits of {f'{devices} × ' if devices > 1 else ''}{result['limit_device']}, and how much was reached:"]
    for name, seconds, limit, what in (
        ("TPOT", load.tpot, result.get("limit_tpot_ms"), "MBU {decode_mbu:.1%}; {mean_batch:.1f} requests at once"),
        ("TTFT", load.ttft, result["limit_ttft_ms"], "MFU {prefill_mfu:.1%}; a prompt of {mean_prompt} tokens alone"),
    ):
        if limit is not None:
            said.append(
                f"  {name}  {limit:.2f} ms, {limit / seconds / 1000:.1%} of it reached; {what.format(**result)}"
            )
    return [*said, f"  Whole run: MBU {result['mbu']:.1%}, MFU {result['mfu']:.1%}"]
