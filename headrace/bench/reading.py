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
COLUMNS = {"request": 0, "input_tokens": 0, "output_tokens": 0, "due_s": 6} | dict.fromkeys(
    ("queue_ms", "ttft_ms", "tpot_ms", "e2el_ms"), 3
)  # of a list of requests, with their decimals; the last one is the error
Array = np.ndarray[Any, np.dtype[np.float64]]


class Keys(msgspec.Struct):
    """What a result may not have otherwise: the keys that figures are computed from. The lists are one by request."""

    request_throughput: float
    label: str | None = None
    output_throughput: float = 0.0
    input_lens: list[float] = []
    output_lens: list[float] = []
    ttfts: list[float] = []
    itls: list[list[float]] = []
    errors: list[str] = []

    def __post_init__(self) -> None:
        for name in ("output_lens", "itls", "errors"):
            if self.ttfts and len(values := getattr(self, name)) not in (0, len(self.ttfts)):
                raise ValueError(f"{name} are {len(values)}, ttfts {len(self.ttfts)}")


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
    """The requests of a result, in the order they were sent: one value each, times in milliseconds.

    Latencies are NaN where ``error`` isn't empty, ``tpot`` also where there is but one output token. ``itl`` are the
    gaps between output pieces, by request. ``due`` and ``start`` are since the first was due or left; ``queue`` is how
    long a request waited in between. NaN where the result does not tell.
    """

    input_len: Array
    output_len: Array
    due: Array
    start: Array
    queue: Array
    ttft: Array
    tpot: Array
    e2el: Array
    itl: list[Array]
    error: list[str]


def requests_of(data: dict[str, Any]) -> Requests:
    """Those of a result's vectors, by vLLM's keys."""
    count = len(data["ttfts"])
    error = data.get("errors") or ["" if tokens else "failed" for tokens in data["output_lens"]]

    def values(key: str) -> Array:
        found = data.get(key) or []
        return np.array(found, float) if len(found) == count else np.full(count, np.nan)

    start, queue, output_len = values("start_times"), values("queue_times"), values("output_lens")
    due = start - queue
    itls = [
        np.array([] if why else gaps, float) for gaps, why in zip(data.get("itls") or [[]] * count, error, strict=True)
    ]
    ttft = np.where([not why for why in error], values("ttfts"), np.nan)
    latency = values("latencies")
    if np.isnan(latency).any():  # results of older vLLM: the gaps add up to the same
        latency = ttft + [gaps.sum() for gaps in itls]
    decoding = np.where(np.isnan(ttft), np.nan, latency - ttft)
    return Requests(
        input_len=values("input_lens"),
        output_len=output_len,
        due=1000 * (due - due.min(initial=np.inf)),
        start=1000 * (start - start.min(initial=np.inf)),
        queue=1000 * queue,
        ttft=1000 * ttft,
        tpot=1000 * np.divide(decoding, output_len - 1, out=np.full(count, np.nan), where=output_len > 1),
        e2el=1000 * (ttft + decoding),
        itl=[1000 * gaps for gaps in itls],
        error=error,
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


def rows_of(data: dict[str, Any]) -> list[list[str]]:
    """COLUMNS and the error of each request, failed ones included; empty where it has no such figure."""
    r = requests_of(data)
    times = r.due / 1000, r.queue, r.ttft, r.tpot, r.e2el
    figures = zip(range(len(r.error)), r.input_len, r.output_len, *times, strict=True)
    return [
        [
            *("" if np.isnan(one) else f"{one:.{digits}f}" for one, digits in zip(row, COLUMNS.values(), strict=True)),
            error,
        ]
        for row, error in zip(figures, r.error, strict=True)
    ]


def as_csv(rows: list[list[str]], *further: str) -> str:
    """``further``: columns in front."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([[*further, *COLUMNS, "error"], *rows])
    return text.getvalue()


def as_text(rows: list[list[str]]) -> str:
    lines = [[*COLUMNS, "error"], *([cell or "-" for cell in row] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "".join("  ".join(map(str.rjust, line, widths)) + "\n" for line in lines)


def natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts rate=2 before rate=16."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", str(path))]
