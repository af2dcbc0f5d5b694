"""Output tok/s of Headrace and of its peers on the packaged default model, in turn, on the CPU.

    python benchmarks/against_transformers.py [--batch-sizes 1 16] [--repeats 3] [--dtype float32] [--llama-cpp PYTHON]

Greedy, random prompts of 128 tokens, 128 tokens out; prints each one's median and range, and the ratios to Headrace.
The peers are transformers' ``generate`` in float32 and, for one request at a time, llama.cpp on the same GGUF file:
its Python package has to be installed for the interpreter PYTHON, best in an environment of its own.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

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
        self.model = LlamaForCausalLM(LlamaConfig(**source.load_config(files).to_dict())).eval()
        self._parameters = self.model.state_dict()
        load(self, files)

    def accepts(self, checkpoint_name: str) -> bool:
        return False  # nothing but plain values

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


class LlamaCpp:
    """llama.cpp in a process of its own."""

    def __init__(self, python: str) -> None:
        config = Config()
        path = source.resolve(config.model, config.load).path
        script = Path(__file__).with_name("llama_cpp_peer.py")
        self._process = subprocess.Popen(
            [python, str(script), path, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def generate(self, prompts: list[list[int]]) -> None:
        assert self._process.stdin and self._process.stdout
        for prompt in prompts:
            print(json.dumps([prompt, LENGTH]), file=self._process.stdin, flush=True)
            float(self._process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto", help="Headrace's; auto keeps the weights quantized")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="an interpreter that has llama-cpp-python")
    arguments = parser.parse_args()
    llm = LLM(enable_prefix_caching=False, cpu_kv_cache_gb=4, dtype=arguments.dtype)
    params = SamplingParams(temperature=0, max_tokens=LENGTH, ignore_eos=True)
    runs: dict[str, Callable[[list[list[int]]], object]] = {
        "headrace": lambda prompts: llm.generate(prompts, params, use_tqdm=False),
        "transformers": Peer().generate,
    }
    if arguments.llama_cpp:
        runs["llama.cpp"] = LlamaCpp(arguments.llama_cpp).generate
    else:
        print("llama.cpp isn't measured: no --llama-cpp names an interpreter that has llama-cpp-python.")
    for batch in arguments.batch_sizes:
        compared = [name for name in runs if batch == 1 or name != "llama.cpp"]
        speeds: dict[str, list[float]] = {name: [] for name in compared}
        for repeat in range(arguments.repeats + 1):
            generator = torch.Generator().manual_seed(repeat)
            prompts = torch.randint(100, 40_000, (batch, LENGTH), generator=generator).tolist()
            for name in compared:
                started = time.perf_counter()
                runs[name](prompts)
                if repeat:  # the first is for warming up
                    speeds[name].append(batch * LENGTH / (time.perf_counter() - started))
        ours = statistics.median(speeds["headrace"])
        for name, values in speeds.items():
            middle = statistics.median(values)
            spread = f"({min(values):.1f}-{max(values):.1f})"
            print(f"batch {batch:3d} {name:13s} {middle:7.1f} tok/s {spread}  headrace / {name}: {ours / middle:.2f}")


if __name__ == "__main__":
    main()
