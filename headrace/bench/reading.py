"""Results that `bench serve` wrote, ours or vLLM's, read back: found, named, taken apart by request and listed.

The keys are vLLM's (`vllm bench serve --save-result --save-detailed`). Knows neither figures nor pages.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from headrace.bench.files import unreadable
from headrace.errors import ConfigError

NO_RESULTS = ("warmup.json", "summary.json", ".failure.json", ".partial.json", ".pytorch.json")  # how such names end
COLUMNS = ("request", "input_tokens", "output_tokens", "ttft_ms", "tpot_ms", "e2el_ms")  # of a list of requests
Array = np.ndarray[Any, np.dtype[np.float64]]


class Keys(msgspec.Struct):
    """What a result may not have otherwise: the keys that figures are computed from."""

    request_throughput: float
    output_throughput: float = 0.0
    input_lens: list[float] = []
    output_lens: list[float] = []
    ttfts: list[float] = []
    itls: list[list[float]] = []


@dataclass(frozen=True)
class Result:
    """A benchmark's result and what to call it."""

    name: str
    path: Path
    data: dict[str, Any]

    @property
    def detailed(self) -> bool:
        """Whether it has a latency for each request (`--save-detailed`)."""
        return bool(self.data.get("ttfts"))


@dataclass(frozen=True)
class Requests:
    """The successful requests of a result, in the order they were sent: one value each, times in milliseconds.

    ``index`` is the place among all requests. ``tpot`` is NaN where there is but one output token; ``itl`` are the gaps
    between output pieces, by request. ``start`` is since the first request's; empty where the result does not tell.
    """

    index: Array
    input_len: Array
    output_len: Array
    ttft: Array
    tpot: Array
    e2el: Array
    itl: list[Array]
    start: Array


def requests_of(result: Result) -> Requests:
    data = result.data
    count = len(data["ttfts"])
    errors = data.get("errors") or [not tokens for tokens in data["output_lens"]]
    good = [i for i in range(count) if not errors[i]]
    chosen = {key: np.array([data[key][i] for i in good], float) for key in ("input_lens", "output_lens", "ttfts")}
    itls = [np.array(data["itls"][i], float) if data.get("itls") else np.array([]) for i in good]
    latencies = data.get("latencies") or []
    if len(latencies) == count:
        decoding = np.array([latencies[i] for i in good], float) - chosen["ttfts"]
    else:  # results of older vLLM: the gaps add up to the same
        decoding = np.array([gaps.sum() for gaps in itls], float)
    steps = chosen["output_lens"] - 1
    tpot = np.divide(decoding, steps, out=np.full(len(good), np.nan), where=steps > 0)
    starts = np.array([data["start_times"][i] for i in good], float) if data.get("start_times") else np.array([])
    return Requests(
        index=np.array(good, float),
        input_len=chosen["input_lens"],
        output_len=chosen["output_lens"],
        ttft=1000 * chosen["ttfts"],
        tpot=1000 * tpot,
        e2el=1000 * (chosen["ttfts"] + decoding),
        itl=[1000 * gaps for gaps in itls],
        start=1000 * (starts - starts.min(initial=np.inf)) if len(starts) else starts,
    )


def load(paths: Sequence[str | Path]) -> list[Result]:
    """The results in files, and in all files below folders. Raises ConfigError if there is none."""
    results = find(paths)
    if not results:
        raise ConfigError(
            f"no results in {', '.join(map(str, paths))}: `headrace bench serve --save-result` makes some."
        )
    return results


def find(paths: Sequence[str | Path]) -> list[Result]:
    """The same, where there may be none. Each gets a name of its own.

    A name is the result's label, else its metadata (`--metadata`), else its file's name. Raises ConfigError if a file
    can't be read or is no result although it was named.
    """
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in map(Path, paths):
        inside = path.is_dir()
        files = [file for file in path.rglob("*.json") if not file.name.endswith(NO_RESULTS)] if inside else [path]
        for file in sorted(files, key=natural):
            results = [data for data in read(file) if isinstance(data, dict) and "request_throughput" in data]
            if not inside and not results:
                raise ConfigError(f"{file} is no result of `bench serve`: it has no request_throughput.")
            try:
                msgspec.convert(results, list[Keys])
            except msgspec.ValidationError as error:
                raise ConfigError(f"{file} is no result of `bench serve`: {error}.") from None
            found += [(file, data) for data in results]
    names = unique([title(file, data) for file, data in found], [file for file, _ in found])
    return [Result(name, file, data) for name, (file, data) in zip(names, found, strict=True)]


def read(file: Path) -> Iterator[Any]:
    """The JSON documents of a file, of which `--append-result` makes several."""
    try:
        text, decoder = file.read_text(), json.JSONDecoder()
        while text := text.lstrip():
            document, end = decoder.raw_decode(text)
            yield document
            text = text[end:]
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from None


def title(file: Path, data: dict[str, Any]) -> str:
    keys = list(data)
    metadata = []
    if "num_prompts" in data and "request_rate" in data:  # between which vLLM puts what --metadata gives
        metadata = keys[keys.index("num_prompts") + 1 : keys.index("request_rate")]
    return data.get("label") or ", ".join(f"{key}={data[key]}" for key in metadata) or file.stem


def unique(names: Sequence[str], files: Sequence[Path]) -> list[str]:
    """The same names; those that several results have are told apart by their file, their folder, or a number."""
    for part in (lambda file: f" {file.stem}", lambda file: f" in {file.parent.name}"):
        counts = Counter(names)
        names = [name + part(file) * (counts[name] > 1) for name, file in zip(names, files, strict=True)]
    counts, seen = Counter(names), Counter[str]()
    result = []
    for name in names:
        seen[name] += 1
        result.append(f"{name} #{seen[name]}" if counts[name] > 1 else name)
    return result


def rows_of(result: Result) -> list[list[str]]:
    """COLUMNS of each successful request."""
    requests = requests_of(result)
    counts = zip(requests.index, requests.input_len, requests.output_len, strict=True)
    times = zip(requests.ttft, requests.tpot, requests.e2el, strict=True)
    return [
        [*(f"{count:.0f}" for count in three), *(f"{ms:.3f}" for ms in others)]
        for three, others in zip(counts, times, strict=True)
    ]


def as_csv(columns: Sequence[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def as_text(columns: Sequence[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    return "".join("  ".join(map(str.rjust, row, widths)) + "\n" for row in (columns, *rows))


def natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts rate=2 before rate=16."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", str(path))]
