"""`headrace bench report`: one HTML page about a folder of results, which needs nothing but itself.

Reads what `bench serve`, `bench sweep` and `lab` leave (see snapshot.py for the names); measures nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

import headrace
from headrace.bench import snapshot
from headrace.bench.capacity import saturation_sentence, slo_sentence
from headrace.bench.files import read_json
from headrace.bench.metrics import differences
from headrace.bench.parameters import SUITES
from headrace.bench.reading import Result, find, natural
from headrace.config import nearest
from headrace.errors import ConfigError

ORDER = {suite: number for number, suite in enumerate((*SUITES, "slo"))}
LOG_LINES = 80  # of a server's log that the page shows
LEDGER_ROW = re.compile(r"^[│|┃]\s*(\S.*?)\s*[│|┃]\s*([\d.]+)\s*[│|┃]\s*([\d.]*)\s*[│|┃]\s*$", re.MULTILINE)  # ours
LEDGER_LINES = (  # vLLM's: the stage, its seconds, its GiB, and what else is said
    ("weights read", r"Loading weights took (?P<seconds>[\d.]+) seconds"),
    ("model loaded", r"Model loading took (?P<gib>[\d.]+) GiB memory and (?P<seconds>[\d.]+) seconds"),
    ("torch.compile", r"torch\.compile takes (?P<seconds>[\d.]+) s in total"),
    ("KV cache", r"Available KV cache memory: (?P<gib>[\d.]+) GiB"),
    ("graphs captured", r"Graph capturing finished in (?P<seconds>[\d.]+) secs, took (?P<gib>[\d.]+) GiB"),
    ("engine ready", r"init engine \([^)]*\) took (?P<seconds>[\d.]+) seconds"),
)


@dataclass(frozen=True)
class Column:
    """A figure of the comparison; with a ``short`` title, also of a sweep's table on the terminal."""

    title: str
    key: str
    digits: int
    short: str = ""
    more_is_better: bool = False


COLUMNS = (
    Column("Requests/s", "request_throughput", 2, "req/s", more_is_better=True),
    Column("Output tokens/s", "output_throughput", 1, "out tok/s", more_is_better=True),
    Column("TTFT median", "median_ttft_ms", 1, "TTFT ms"),
    Column("TTFT p99", "p99_ttft_ms", 1, "p99"),
    Column("TPOT median", "median_tpot_ms", 2, "TPOT ms"),
    Column("TPOT p99", "p99_tpot_ms", 2, "p99"),
    Column("ITL p99", "p99_itl_ms", 2),
    Column("E2EL median", "median_e2el_ms", 0),
    Column("Decode MBU", "decode_mbu", 3, "MBU", more_is_better=True),
    Column("Failed", "failed", 0, "failed"),
)


def columns_of(results: Sequence[dict[str, Any]]) -> list[Column]:
    """Those that any of the results has a figure for."""
    return [column for column in COLUMNS if any(result.get(column.key) is not None for result in results)]


def report(folder: Path, baseline: str | None = None) -> str:
    """The page about ``folder``. Runs are compared with the one called ``baseline``, else with their series' first.

    Raises ConfigError if there are no results, or none of that name.
    """
    results = sorted(find([folder]), key=lambda result: ORDER.get(result.data.get("suite", ""), -1))
    chat = part(folder / snapshot.CHAT)
    if not results and not chat:
        raise ConfigError(
            f"there are no results in {folder}: bench serve --save-result, bench sweep and lab leave some."
        )
    columns = columns_of([result.data for result in results])
    names = [result.name for result in results]
    if baseline is not None and baseline not in names:
        raise ConfigError(f"no result is called {baseline!r}{nearest(baseline, names)} There are: {', '.join(names)}.")
    chosen = results[names.index(baseline)] if baseline else None
    firsts = {series_of(result): result for result in reversed(results)}
    logs = {path.stem: path.read_text(errors="replace") for path in sorted(folder.glob("*.log"), key=natural)}
    summary = part(folder / "summary.json") or {}
    searches = summary.get("slo", [])
    environment = jinja2.Environment(loader=jinja2.PackageLoader("headrace.bench", "."), autoescape=True)
    environment.filters["number"] = lambda value: f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return environment.get_template("report.html.jinja").render(
        title=folder.resolve().name,
        version=headrace.__version__,
        date=results[0].data.get("date") if results else None,
        model=results[0].data.get("model_id") if results else None,
        commands=part(folder / snapshot.COMMANDS) or {},
        columns=columns,
        rows=[compare(result, chosen or firsts[series_of(result)], columns) for result in results],
        sentences=[*map(saturation_sentence, summary.get("saturation", [])), *map(slo_sentence, searches)],
        searches=searches,
        chat=chat,
        groups=figures(results),
        ledgers={name: rows for name, text in logs.items() if (rows := ledger(text))},
        metrics=metrics(folder),
        versions=part(folder / snapshot.VERSIONS),
        environment=part(folder / snapshot.ENVIRONMENT) or {},
        logs={name: "\n".join(text.splitlines()[-LOG_LINES:]) for name, text in logs.items()},
    )


def part(path: Path) -> Any:
    """What a file of the folder holds; None if it isn't there."""
    return read_json(path) if path.exists() else None


def series_of(result: Result) -> str:
    """What a result is a point of: a suite on a server; "" without a suite."""
    suite = result.data.get("suite")
    server = result.path.parent.name.split("-BENCH--")[0].removeprefix("SERVE--")
    return " on ".join(filter(None, (f"Suite {suite}", server))) if suite else ""


def compare(result: Result, first: Result, columns: Sequence[Column]) -> dict[str, Any]:
    """A result's row: its figures, and by how many percent each differs from the first's."""
    cells = []
    for column in columns:
        value, base = result.data.get(column.key), first.data.get(column.key)
        change = 100 * (value / base - 1) if value is not None and base and result is not first else None
        better = None if change is None or abs(change) < 1 else (change > 0) == column.more_is_better
        text = "–" if value is None else f"{value:,.{column.digits}f}"
        cells.append({"text": text, "change": change, "better": better})
    return {"name": result.name, "is_baseline": result is first, "cells": cells}


def figures(results: Sequence[Result]) -> dict[str, list[str]] | None:
    """The figures as SVG, by series; None if there is nothing to draw them with."""
    try:
        from headrace.bench.plot import FIGURES, by_load, svg
    except ImportError:
        return None
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(series_of(result), []).append(result)
    drawn = {}
    for name, members in groups.items():
        draws = [*([by_load] if name else []), *FIGURES.values()]
        drawn[name] = [picture for draw in draws if (picture := svg(draw, members))]
    return drawn


def ledger(log: str) -> list[tuple[str, str, str]]:
    """Where a server's start went, out of its log: stage, seconds, GiB (either may be empty). Ours, or vLLM's."""
    if "Start-up ledger" in log:
        return [match.groups() for match in LEDGER_ROW.finditer(log)]  # type: ignore[misc]
    rows = []
    for stage, pattern in LEDGER_LINES:
        if match := re.search(pattern, log):
            facts = match.groupdict()
            rows.append((stage, facts.get("seconds", ""), facts.get("gib", "")))
    if match := re.search(r"GPU KV cache size: ([\d,]+) tokens", log):
        rows.append((f"KV cache of {match[1]} tokens", "", ""))
    return rows


def metrics(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By server, its metrics before and after: those that changed, and the rest."""
    found = {}
    for before in sorted(folder.glob(f"*{snapshot.METRICS_BEFORE}"), key=natural):
        server = before.name.removesuffix(snapshot.METRICS_BEFORE).rstrip(".")
        after = before.with_name(before.name.replace(snapshot.METRICS_BEFORE, snapshot.METRICS_AFTER))
        if after.exists():
            rows = differences(before.read_text(), after.read_text())
            changed = [row for row in rows if row["difference"]]
            found[server] = {"changed": changed, "same": [row for row in rows if not row["difference"]]}
    return found
