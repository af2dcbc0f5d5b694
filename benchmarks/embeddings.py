"""Sentences a second of Headrace and of sentence-transformers on one embedding model, in turn, in one process.

    python benchmarks/embeddings.py MODEL_DIRECTORY [--repeats 5] [--batch-sizes 16 32 64] [--dtype float16] [--url …]

MODEL_DIRECTORY is a sentence-transformers model, say all-MiniLM-L6-v2. Both embed the same 2,000 runs of words of mixed
length. Prints each one's median and range, the median of the ratios pair by pair, and the least cosine of two vectors
of the same sentence. With --url the sentences go, in requests of 100 at once, to the server there instead.
"""

import argparse
import base64
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import httpx
import numpy as np
import numpy.typing as npt

NUM_SENTENCES, NUM_TOGETHER = 2000, 100
WORDS, SPREAD = 20, 0.8  # median of the lengths, and standard deviation of their logarithms
LONGEST = 150

Floats = npt.NDArray[np.float32]


def sentences() -> list[str]:
    """Runs of words of one text, whose lengths have a log-normal distribution: 3 to 150 words, about 20."""
    words = (files("headrace.bench.datasets") / "verse.txt").read_text().split()
    random = np.random.default_rng(0)
    lengths = np.exp(random.normal(np.log(WORDS), SPREAD, NUM_SENTENCES)).astype(int).clip(3, LONGEST)
    starts = random.integers(0, len(words) - LONGEST, NUM_SENTENCES)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


class Offline:
    def __init__(self, model: str, dtype: str):
        from headrace import LLM

        self._llm = LLM(model, dtype=dtype)

    def __call__(self, texts: list[str]) -> Floats:
        outputs = self._llm.embed(texts, use_tqdm=False)
        return np.array([output.outputs.embedding for output in outputs], np.float32)


class Served:
    def __init__(self, url: str):
        self._client = httpx.Client(base_url=url, timeout=300)
        self._pool = ThreadPoolExecutor(NUM_SENTENCES // NUM_TOGETHER)
        self._model = self._client.get("/v1/models").json()["data"][0]["id"]

    def __call__(self, texts: list[str]) -> Floats:
        groups = [texts[start : start + NUM_TOGETHER] for start in range(0, len(texts), NUM_TOGETHER)]
        return np.concatenate(list(self._pool.map(self._embedded, groups)))

    def _embedded(self, texts: list[str]) -> Floats:
        body = {"model": self._model, "input": texts, "encoding_format": "base64"}
        data = self._client.post("/v1/embeddings", json=body).raise_for_status().json()["data"]
        return np.array([np.frombuffer(base64.b64decode(item["embedding"]), np.float32) for item in data])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32], help="sentence-transformers'")
    parser.add_argument("--dtype", default="auto", help="that Headrace computes in")
    parser.add_argument("--url", help="of a server of the same model, instead of LLM.embed")
    arguments = parser.parse_args()
    from sentence_transformers import SentenceTransformer

    texts = sentences()
    ours = Served(arguments.url) if arguments.url else Offline(arguments.model, arguments.dtype)
    peer = SentenceTransformer(arguments.model, device="cpu")
    least = float((ours(texts) * peer.encode(texts)).sum(axis=1).min())
    counts = np.array([len(ids) for ids in peer.tokenizer(texts)["input_ids"]])
    print(f"{len(texts)} sentences of {counts.min()} to {counts.max()} tokens, mean {counts.mean():.1f}")
    for batch_size in arguments.batch_sizes:
        pairs = []
        for _ in range(arguments.repeats):
            began = time.perf_counter()
            ours(texts)
            middle = time.perf_counter()
            peer.encode(texts, batch_size=batch_size)
            pairs.append((len(texts) / (middle - began), len(texts) / (time.perf_counter() - middle)))
        for place, name in enumerate(("Headrace", f"sentence-transformers, {batch_size} at once")):
            speeds = [pair[place] for pair in pairs]
            print(f"{name}: {statistics.median(speeds):.0f} sentences/s ({min(speeds):.0f} to {max(speeds):.0f})")
        ratios = [a / b for a, b in pairs]
        print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"least cosine: {least:.7f}")


if __name__ == "__main__":
    main()
