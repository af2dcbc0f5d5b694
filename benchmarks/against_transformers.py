"""Output tok/s of Headrace and of transformers' ``generate`` on the packaged default model, in turn, fp32 on the CPU.

    python benchmarks/against_transformers.py [--batch-sizes 1 16] [--repeats 3]

Greedy, random prompts of 128 tokens, 128 tokens out; prints each one's median and range, and the ratio.
"""

import argparse
import statistics
import time

import torch
from transformers import LlamaForCausalLM

from headrace import LLM, SamplingParams
from headrace.config import Config
from headrace.models import source
from headrace.models.loader import load

LENGTH = 128


class Peer:
    """transformers with the same dequantized weights."""

    def __init__(self) -> None:
        config = Config()
        files = source.resolve(config.model, config.load)
        self.model = LlamaForCausalLM(source.load_config(files)).eval()
        self._parameters = self.model.state_dict()
        load(self, files)

    def load_weight(self, checkpoint_name: str, tensor: torch.Tensor) -> None:
        self._parameters[checkpoint_name].copy_(tensor)

    def finish_loading(self) -> None:
        del self._parameters

    def init_dummy(self, seed: int) -> None:
        raise NotImplementedError

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]]) -> None:
        ids = torch.tensor(prompts)
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=LENGTH,
            min_new_tokens=LENGTH,
            do_sample=False,
            pad_token_id=0,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    llm, peer = LLM(enable_prefix_caching=False, cpu_kv_cache_gb=1), Peer()
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    for batch in arguments.batch_sizes:
        speeds: dict[str, list[float]] = {"headrace": [], "transformers": []}
        for repeat in range(arguments.repeats):
            generator = torch.Generator().manual_seed(repeat)
            prompts = torch.randint(100, 40_000, (batch, LENGTH), generator=generator).tolist()
            for name, run in (
                ("headrace", lambda p: llm.generate(p, params, use_tqdm=False)),
                ("transformers", peer.generate),
            ):
                started = time.perf_counter()
                run(prompts)
                speeds[name].append(batch * LENGTH / (time.perf_counter() - started))
        for name, values in speeds.items():
            spread = f"({min(values):.1f}-{max(values):.1f})"
            print(f"batch {batch:3d} {name:13s} {statistics.median(values):7.1f} tok/s {spread}")
        ratio = statistics.median(speeds["headrace"]) / statistics.median(speeds["transformers"])
        print(f"batch {batch:3d} ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
