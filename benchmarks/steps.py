"""Milliseconds of a decoding step and of a prompt, offline, for a model or the shape of one with random weights.

    python benchmarks/steps.py benchmarks/shapes/llama-3.1-8b --load-format dummy [--batch-sizes 1 8 32 128]

A step: prompts of 128 random tokens, the time of 64 further output tokens divided by 64. A prompt: to its one output
token. Medians of three; greedy, without prefix caching.
"""

import argparse
import statistics
import time

import torch

from headrace import LLM, SamplingParams

PROMPT, FIRST, MORE = 128, 16, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--load-format", default="auto")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1024, 8192])
    arguments = parser.parse_args()
    started = time.perf_counter()
    llm = LLM(
        arguments.model,
        load_format=arguments.load_format,
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
        max_model_len=max([PROMPT + FIRST + MORE, *(size + 1 for size in arguments.prompts)]),
    )
    print(f"{arguments.model}: ready in {time.perf_counter() - started:.1f} s; {llm.info.kv_cache_tokens:,} tokens fit")
    for entry in llm.info.ledger:
        print(f"  {entry.stage:24s} {entry.seconds:7.2f} s {entry.num_bytes / 2**30:8.2f} GiB")

    def seconds(batch: int, length: int, outputs: int) -> float:
        prompts = torch.randint(100, 30_000, (batch, length)).tolist()
        params = SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True, detokenize=False)
        begun = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begun

    for batch in arguments.batch_sizes:
        seconds(batch, PROMPT, FIRST)  # compiles what is missing
        runs = [seconds(batch, PROMPT, FIRST + MORE) - seconds(batch, PROMPT, FIRST) for _ in range(3)]
        steps = [1000 * run / MORE for run in runs]
        print(f"  batch {batch:4d}: {statistics.median(steps):8.2f} ms a step ({min(steps):.2f}-{max(steps):.2f})")
    for length in arguments.prompts:
        seconds(1, length, 1)
        runs = [1000 * seconds(1, length, 1) for _ in range(3)]
        print(f"  prompt {length:6d}: {statistics.median(runs):8.1f} ms ({min(runs):.1f}-{max(runs):.1f})")


if __name__ == "__main__":
    main()
