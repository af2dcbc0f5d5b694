"""What the engine's host side costs as the load grows: planning and committing a step, finding a long prompt's prefix.

    python benchmarks/host_growth.py [--rows 1 64 256 1024] [--steps 500] [--prompt 32768]

Pure Python, no model: rows that decode, two steps under way, a block of 16 tokens full every 16 steps of each row.
"""

import argparse
import gc
import json
import random
import statistics
import time
from collections import deque

from llguidance import LLTokenizer

from headrace.engine.grammar import Grammars
from headrace.engine.kv_cache import KVCache
from headrace.engine.process import NEW_OBJECTS
from headrace.engine.request import Request
from headrace.engine.scheduler import Limits, Scheduler, Step
from headrace.types import KVCacheLayout, KVGroup, Sampled, SamplingParams, Submit

BLOCK, MODEL_LEN = 16, 65_536
FIELDS = ("plan", "commit", "slowest")


def layout(num_blocks: int) -> KVCacheLayout:
    return KVCacheLayout(BLOCK, num_blocks, [KVGroup([0], None)], 1)


def submit(name: object, prompt: list[int]) -> Submit:
    return Submit(str(name), prompt, SamplingParams(max_tokens=None), eos_token_ids=[1])


def step_costs(rows: int, steps: int) -> dict[str, float]:
    """Mean microseconds of a plan and of a commit, and of the slowest pair, while ``rows`` requests decode."""
    rng = random.Random(0)
    blocks, grammars = layout(rows * (256 + steps) // BLOCK + rows), Grammars(lambda: LLTokenizer("byte"), 512, [])
    scheduler = Scheduler(Limits(8192, rows, MODEL_LEN), blocks, True, grammars)
    for name in range(rows):
        scheduler.submit(submit(name, rng.choices(range(2, 50_000), k=rng.randrange(100, 200))), 0)
    under_way: deque[Step] = deque()
    plans: list[float] = []
    commits: list[float] = []
    while len(plans) < steps:
        started = time.perf_counter()
        step = scheduler.plan()
        planned = time.perf_counter()
        assert step is not None
        under_way.append(step)
        if len(under_way) == 2:
            oldest = under_way.popleft()
            tokens = [rng.randrange(2, 50_000) for _ in oldest.plan.sampled]
            begun = time.perf_counter()
            scheduler.commit(oldest, Sampled(tokens))
            if not scheduler.waiting and len(step.plan.sampled) == rows == len(oldest.plan.sampled):
                commits.append(time.perf_counter() - begun)
                plans.append(planned - started)
    both = [plan + commit for plan, commit in zip(plans, commits, strict=True)]
    return dict(
        zip(FIELDS, (1e6 * s for s in (statistics.mean(plans), statistics.mean(commits), max(both))), strict=True)
    )


def prefix_costs(length: int, repeats: int = 20) -> dict[str, float]:
    """Milliseconds to hash a prompt's blocks, to look all of them up, and to take them over."""
    cache = KVCache(layout(2 * length // BLOCK), True)
    prompt = random.Random(0).choices(range(50_000), k=length + 1)

    def new() -> Request:
        request = Request(submit("r", prompt), (0, 0), 0, MODEL_LEN, 1)
        request.row = 0
        return request

    def admit(request: Request) -> None:
        prefix = cache.find_prefix(request)
        cache.admit(request, prefix, length + 1 - BLOCK * len(prefix[0]))
        request.num_planned = length
        cache.register_full_blocks(request)

    first = new()
    admit(first)
    cache.free(first)
    parts: dict[str, list[float]] = {"hash": [], "lookup": [], "take over": []}
    for _ in range(repeats):
        request, times = new(), [time.perf_counter()]
        cache._hash_blocks(request, length // BLOCK)
        times.append(time.perf_counter())
        prefix = cache.find_prefix(request)
        times.append(time.perf_counter())
        assert len(prefix[0]) == length // BLOCK
        cache.admit(request, prefix, 1)
        times.append(time.perf_counter())
        cache.free(request)
        for part, begun, ended in zip(parts.values(), times[:-1], times[1:], strict=True):
            part.append(1e3 * (ended - begun))
    return {name: statistics.median(part) for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--prompt", type=int, default=32_768, help="tokens of the long prompt")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    gc.collect()
    gc.freeze()  # as the engine's process does
    gc.set_threshold(NEW_OBJECTS)
    steps = {}
    print("rows | plan, µs | commit, µs | slowest step, µs")
    for rows in arguments.rows:
        steps[rows] = cost = step_costs(rows, arguments.steps)
        print("{:4} | {:8.0f} | {:10.0f} | {:16.0f}".format(rows, *cost.values()))
    prefix = prefix_costs(arguments.prompt)
    print(f"prefix of {arguments.prompt} tokens: " + ", ".join(f"{name} {ms:.2f} ms" for name, ms in prefix.items()))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"steps_us": steps, "prefix_ms": prefix}, file)


if __name__ == "__main__":
    main()
