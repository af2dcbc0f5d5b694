"""Progress, shown to whoever waits: of start-up, and of prompts under way. Knows only the records that report it."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from headrace.types import Progress

logger = logging.getLogger(__name__)
DESCRIPTION = TextColumn("{task.description}")


@contextmanager
def startup_progress(shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Gives what shows the stages of start-up, if ``shown``: as bars on a terminal, as log lines elsewhere."""
    console = Console(stderr=True)
    if not shown:
        yield lambda progress: None
        return
    if not console.is_terminal:
        yield _stage_log()
        return
    tasks: dict[str, TaskID] = {}
    with Bars(DESCRIPTION, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console) as bars:

        def show(progress: Progress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage)
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total)

        yield show


def _stage_log() -> Callable[[Progress], None]:
    begun: dict[str, float | None] = {}  # by stage; None once its end is logged

    def log(progress: Progress) -> None:
        if progress.stage not in begun:
            begun[progress.stage] = time.monotonic()
            logger.info("%s ...", progress.stage)
        began = begun[progress.stage]
        if progress.done >= progress.total and began is not None:
            logger.info("%s took %.1f s", progress.stage, time.monotonic() - began)
            begun[progress.stage] = None

    return log


@contextmanager
def prompt_progress(total: int, shown: bool | Callable[..., Any]) -> Iterator[Callable[[int], None]]:
    """Gives what is to be called at each prompt's end, with its number of tokens; a bar, if ``shown``, tells of it.

    ``shown`` may also be what makes a bar, such as ``tqdm``.
    """
    if callable(shown):
        with shown(total=total, desc="Prompts") as own:
            yield lambda new_tokens: own.update(1)
        return
    columns = (DESCRIPTION, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[speed]}"))
    began, tokens = time.monotonic(), 0
    with Bars(*columns, console=Console(stderr=True), disable=not shown) as bars:
        task = bars.add_task("Prompts", total=total, speed="")

        def ended(new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            speed = f"{tokens / (time.monotonic() - began):.1f} output tok/s" if tokens else ""
            bars.update(task, advance=1, speed=speed)

        yield ended
