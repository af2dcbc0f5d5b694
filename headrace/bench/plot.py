"""`headrace bench plot`: figures of results, and lists of their requests as text and CSV.

A figure is a function from results to a matplotlib Figure, or to None where the results lack what it shows.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headrace.bench.reading import Requests, Result, as_csv, as_text, requests_of, rows_of

INK = "#23262b"  # of text and axes; a page replaces it by its own
COLORS = ("#2f7ed8", "#e8743b", "#19a979", "#c0418f", "#8f6ed5", "#b58900", "#13a4b4", "#dc4545", "#7a869a", "#6b8e23")
SIZE = (6.4, 3.9)  # inches: text stays readable when a phone shrinks it
STYLE: Any = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "grid.color": "#8a919c",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "axes.prop_cycle": cycler(color=COLORS),
    "text.parse_math": False,  # names may hold dollars
    "svg.hashsalt": "headrace",  # the same file from the same results
} | dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
FEW = len(COLORS)  # lines that colours tell apart; more get a scale of colours
TIME_BINS = 60
LEGEND_WIDTH, LEGEND_MARK, LEGEND_ROW = 84, 9, 0.2  # characters; those that a line and its margin take; inches

Draw = Callable[[Sequence[Result]], Figure | None]


def figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    drawing = Figure(figsize=SIZE, layout="constrained")
    axes = drawing.add_subplot()
    axes.set_title(title, fontsize=12, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return drawing, axes


def colored(results: Sequence[Result]) -> list[tuple[Result, tuple[float, ...] | str]]:
    """Every result with a colour of its own, and a name that legends show: matplotlib hides those with a _ in front."""
    results = [replace(result, name=result.name.lstrip("_") or "-") for result in results]
    if len(results) <= FEW:
        return list(zip(results, COLORS, strict=False))
    scale = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(results)))
    return [(result, tuple(color)) for result, color in zip(results, scale, strict=True)]


def finished(drawing: Figure, axes: Axes) -> Figure | None:
    """The figure from 0 on, or None if nothing is in it.

    The legend is below, where it hides no line, in as many columns as fit; the figure grows by its rows.
    """
    if not axes.has_data():
        return None
    axes.set_ylim(bottom=0)
    names = axes.get_legend_handles_labels()[1]
    columns = max(1, min(3, len(names), LEGEND_WIDTH // (max(map(len, names)) + LEGEND_MARK)))
    drawing.set_figheight(SIZE[1] + LEGEND_ROW * (len(names) // columns))
    drawing.legend(loc="outside lower center", ncols=columns)
    return drawing


def per_request(results: Sequence[Result]) -> list[tuple[Result, str | tuple[float, ...], Requests]]:
    return [(result, color, requests_of(result.data)) for result, color in colored([r for r in results if r.detailed])]


def in_order(metric: str, title: str, results: Sequence[Result]) -> Figure | None:
    """One line a result: its requests' values in ascending order, not in that of the prompts."""
    drawing, axes = figure(f"{title}, sorted", "Prompt, by rank", f"{metric.upper()} (ms)")
    for result, color, requests in per_request(results):
        values = getattr(requests, metric)
        values = np.sort(values[~np.isnan(values)])
        if len(values):
            axes.plot(np.arange(len(values)), values, color=color, label=result.name, marker="." * (len(values) == 1))
    return finished(drawing, axes)


def pareto(results: Sequence[Result]) -> Figure | None:
    """Throughput against latency: up and to the left is better; a line joins those that no other result beats."""
    key, what = "median_tpot_ms", "Median TPOT (ms)"
    points = [result for result in results if result.data.get(key)]
    if len(points) < 2:
        return None
    drawing, axes = figure("Throughput against latency", what, "Output tokens/s")
    best, beaten = frontier([(result.data[key], result.data["output_throughput"]) for result in points]), 0.0
    xs, ys = zip(*best, strict=True)
    axes.plot(xs, ys, color="#8a919c", linestyle="--", linewidth=1.2, label="no other is better")
    for number, (result, color) in enumerate(colored(points), 1):
        x, y = result.data[key], result.data["output_throughput"]
        label = f"{number}  {result.name}"
        axes.scatter([x], [y], s=46, color=[color], label=label, zorder=3)
        axes.annotate(str(number), (x, y), textcoords="offset points", xytext=(6, 5), fontsize=9)
        beaten = max(beaten, y)
    axes.set_ylim(0, beaten * 1.12)
    axes.margins(x=0.08)
    return finished(drawing, axes)


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (latency, throughput) than which none has less latency and as much throughput, by latency."""
    kept: list[tuple[float, float]] = []
    for latency, throughput in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or throughput > kept[-1][1]:
            kept.append((latency, throughput))
    return kept


def itl_over_time(results: Sequence[Result]) -> Figure | None:
    """Median (line) and 99th percentile (dots) of the gaps between tokens, as the run went on."""
    drawing, axes = figure("Inter-token latency over the run: median, and p99 dotted", "Time (s)", "ITL (ms)")
    for result, color, requests in per_request(results):
        gaps = [gap for gap in requests.itl if len(gap)]
        if not gaps or np.isnan(requests.start).all():
            continue
        begins = (requests.start + requests.ttft)[[len(gap) > 0 for gap in requests.itl]]
        moments = np.concatenate([begin + np.cumsum(gap) for begin, gap in zip(begins, gaps, strict=True)]) / 1000
        values = np.concatenate(gaps)
        edges = np.linspace(0, moments.max() + 1e-9, TIME_BINS + 1)
        bins = np.digitize(moments, edges) - 1
        filled = np.unique(bins)
        middles = (edges[filled] + edges[filled + 1]) / 2
        for percent, style, label in ((50, "-", result.name), (99, ":", None)):
            heights = [np.percentile(values[bins == number], percent) for number in filled]
            axes.plot(middles, heights, linestyle=style, color=color, label=label)
    return finished(drawing, axes)


def ttft_by_input(results: Sequence[Result]) -> Figure | None:
    drawing, axes = figure("Time to first token against prompt length", "Input tokens", "TTFT (ms)")
    for result, color, requests in per_request(results):
        good = ~np.isnan(requests.ttft)
        if good.any():
            axes.scatter(
                requests.input_len[good], requests.ttft[good], s=14, alpha=0.6, color=[color], label=result.name
            )
    lengths = np.concatenate([np.asarray(path.get_offsets())[:, 0] for path in axes.collections] or [np.array([])])
    if len(lengths) and lengths.max() > 16 * lengths.min() > 0:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, position: f"{value:g}")
    return finished(drawing, axes)


def by_load(results: Sequence[Result]) -> Figure | None:
    """Throughput, TTFT and TPOT at every point of a suite, in the order given."""
    if len(results) < 2:
        return None
    drawing = Figure(figsize=(SIZE[0], 5.6), layout="constrained")
    panels = drawing.subplots(3, sharex=True)
    names, places = [result.name for result in results], range(len(results))
    for axes, key, label in zip(
        panels, ("output_throughput", "ttft", "tpot"), ("Tokens/s", "TTFT (ms)", "TPOT (ms)"), strict=True
    ):
        if key == "output_throughput":
            axes.plot(places, [result.data[key] for result in results], marker="o", color=COLORS[2])
        else:
            for statistic, style, color in (("median", "-", COLORS[0]), ("p99", ":", COLORS[1])):
                heights = [result.data.get(f"{statistic}_{key}_ms", np.nan) for result in results]
                axes.plot(places, heights, style, marker="o", color=color, label=statistic)
            axes.legend()
        axes.set_ylabel(label)
        axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    panels[-1].set_xticks(places, names, rotation=30 if sum(map(len, names)) > 60 else 0)
    return drawing


FIGURES: dict[str, Draw] = {
    "ttft-sorted": partial(in_order, "ttft", "Time to first token"),
    "tpot-sorted": partial(in_order, "tpot", "Time per output token"),
    "pareto": pareto,
    "itl-over-time": itl_over_time,
    "ttft-by-input-length": ttft_by_input,
}


def save_figures(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw what the results allow, as PNG and SVG; returns the files."""
    files = []
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(STYLE):
            drawing = draw(results)
            if drawing is not None:
                files += [folder / f"{name}.png", folder / f"{name}.svg"]
                drawing.savefig(files[-2], dpi=160)
                drawing.savefig(files[-1], metadata={"Date": None})
    return files


def svg(draw: Draw, results: Sequence[Result]) -> str | None:
    """A figure to put into a page, in the page's own ink and on its ground."""
    with matplotlib.rc_context(STYLE | {"svg.fonttype": "none"}):  # text, in the page's type
        drawing = draw(results)
        if drawing is None:
            return None
        output = io.StringIO()
        drawing.savefig(output, format="svg", transparent=True, metadata={"Date": None})
    text = output.getvalue()
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt" ', "", text[text.index("<svg") :], count=1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # other figures on the page have the same
    return text.replace(INK, "currentColor")


def save_requests(results: Sequence[Result], folder: Path) -> list[Path]:
    """The times of every request: a text file for each result, one CSV file of all. Returns the files."""
    files, everything = [], []
    for result in results:
        if result.detailed:
            rows, name = rows_of(result.data), re.sub(r"[^\w.=-]+", "_", result.name)
            files.append(folder / f"requests-{name}.txt")
            files[-1].write_text(as_text(rows))
            everything += [[result.name, *row] for row in rows]
    if files:
        files.append(folder / "requests.csv")
        files[-1].write_text(as_csv(everything, "configuration"))
    return files
