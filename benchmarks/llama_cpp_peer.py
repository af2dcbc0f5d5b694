"""Generates with llama-cpp-python, for ``against_transformers.py``, in an interpreter of its own that has it.

    python benchmarks/llama_cpp_peer.py MODEL.gguf THREADS

Reads one JSON list per line, the token ids of a prompt and then how many to generate; answers with the seconds.
"""

import json
import sys
import time

from llama_cpp import Llama


def main() -> None:
    llama = Llama(sys.argv[1], n_ctx=512, n_batch=512, n_threads=int(sys.argv[2]), verbose=False)
    for line in sys.stdin:
        prompt, count = json.loads(line)
        llama.reset()
        started = time.perf_counter()
        llama.eval(prompt)
        for place in range(count):
            token = llama.sample(temp=0.0)
            if place + 1 < count:
                llama.eval([token])
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
