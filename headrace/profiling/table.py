"""Prints a summary: the top kernels, time by class of work, and what they say in sentences."""

import shutil

from rich import box
from rich.console import Console
from rich.table import Table

from headrace.profiling.classes import IDLE
from headrace.profiling.summary import Kernel, Summary

PIPED_WIDTH = 160  # columns, where the output is no terminal: kernels have long names
FIGURES_WIDTH = 70  # of them for the figures beside a name


def print_summary(summary: Summary, top: int) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(PIPED_WIDTH, shutil.get_terminal_size().columns)
    things = "Kernels and copies" if summary.on_device else "Operators on the CPU, own time"
    title, width = f"{things}: top {min(top, len(summary.kernels))}", max(console.width - FIGURES_WIDTH, 20)
    console.print(kernel_table(summary.kernels[:top], title, width))
    console.print(kind_table(summary))
    for sentence in sentences(summary):
        console.print(sentence, soft_wrap=True, markup=False)


def kernel_table(kernels: list[Kernel], title: str, name_width: int) -> Table:
    table = new_table(title, "class", "calls", "total ms", "mean µs", "share")
    for kernel in kernels:
        table.add_row(
            shortened(short(kernel.name), name_width),
            kernel.kind,
            f"{kernel.calls:,}",
            in_ms(kernel.total_us),
            f"{kernel.mean_us:,.1f}",
            percent(kernel.share),
        )
    return table


def kind_table(summary: Summary) -> Table:
    table = new_table("Time by class of work", "total ms", "share")
    for kind in summary.kinds:
        if kind.total_us or kind.name == IDLE:
            name = kind.name if summary.on_device or kind.name != IDLE else "between operators"
            table.add_row(name, in_ms(kind.total_us), percent(kind.share))
    return table


def new_table(title: str, *figures: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("name", no_wrap=True, overflow="ellipsis")
    for figure in figures:
        table.add_column(figure, justify="left" if figure == "class" else "right", no_wrap=True)
    return table


def sentences(summary: Summary) -> list[str]:
    """What the figures say, a line each."""
    busy = "operators ran"
    if summary.on_device:
        busy = f"{summary.device_name or 'the GPU'} was busy" if summary.devices == 1 else "the GPUs were busy"
    lines = [f"Recorded {in_ms(summary.recorded_us)} ms; {busy} for {percent(summary.busy_share)} of it."]
    if gaps := summary.host_gaps:
        lines.append(
            f"{gaps.steps} steps, {in_ms(gaps.mean_step_us)} ms each; waiting for the host between two: "
            f"{gaps.mean_us:,.1f} µs on average (median {gaps.median_us:,.1f}, longest {gaps.longest_us:,.1f}), "
            f"{percent(gaps.share)} of the time."
        )
    else:
        lines.append("There are no ranges of two steps, so the gaps between steps are unknown.")
    if reduces := summary.all_reduces:
        names = ", ".join(f"{short(kernel.name)} ({kernel.calls:,} calls)" for kernel in reduces)
        lines.append(f"The all-reduce of tensor parallelism: {names}.")
    elif summary.on_device:
        lines.append("No kernel is an all-reduce: nothing was shared between devices.")
    return lines


def short(name: str) -> str:
    """A kernel's name without what C++ says around it."""
    name = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return name.partition("(")[0]


def shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def in_ms(microseconds: float) -> str:
    return f"{microseconds / 1000:,.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"
