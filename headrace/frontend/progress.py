"""Start-up's progress, shown to whoever waits for it. Knows only the records that report it."""

import logging
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBars

from headrace.types import Progress

logger = logging.getLogger(__name__)


class StartupProgress:
    """Bars for the stages of start-up on a terminal, log lines elsewhere. A context manager."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bars = ProgressBars(*columns, console=console) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, progress: Progress) -> None:
        stage = progress.stage
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage)
            self._bars.update(self._tasks[stage], completed=progress.done, total=progress.total)
            return
        if stage not in self._begun:
            self._begun[stage] = time.monotonic()
            logger.info("%s ...", stage)
        if progress.done >= progress.total and self._begun[stage] > 0:
            logger.info("%s took %.1f s", stage, time.monotonic() - self._begun[stage])
            self._begun[stage] = 0.0  # reported
