"""Reads Nsight Systems' reports: the SQLite export, or a .nsys-rep that ``nsys export`` turns into one.

Tables and columns are those of NVIDIA's "SQLite Schema Reference"; times are nanoseconds there. Tables are made only if
there is something to put in them.
"""

import shutil
import sqlite3
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from headrace.errors import ConfigError
from headrace.profiling.trace import Activity, Range, Trace, step_at, step_ranges

SUFFIXES = (".sqlite", ".nsys-rep")
KERNELS, CALLS = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME"
ACTIVITIES = {  # tables of what devices did, and what in each row names it
    KERNELS: "(SELECT value FROM StringIds WHERE id = a.demangledName)",
    # the numbers are those of CUpti_ActivityMemcpyKind
    "CUPTI_ACTIVITY_KIND_MEMCPY": "'Memcpy ' || CASE a.copyKind WHEN 1 THEN 'HtoD' WHEN 2 THEN 'DtoH' "
    "WHEN 8 THEN 'DtoD' WHEN 10 THEN 'PtoP' ELSE a.copyKind END",
    "CUPTI_ACTIVITY_KIND_MEMSET": "'Memset'",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "'CUDA graph as a whole (--cuda-graph-trace=node tells its kernels apart)'",
}
PROCESS = ~0xFFFFFF  # of a global thread id: what all threads of a process share
PUSH_POP, START_END = 59, 60  # types of NVTX events that have an end


def read_nsight(path: Path) -> Trace:
    """The trace in an export. Raises ConfigError if it isn't one, or if ``nsys`` is needed and missing."""
    if path.suffix == ".nsys-rep":
        path = export(path)
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return Report(database).trace()
    except sqlite3.Error as error:
        raise ConfigError(f"{path} is no SQLite export of Nsight Systems: {error}.") from None


def export(report: Path) -> Path:
    """``nsys``'s own conversion of its report, made beside it."""
    target = report.with_suffix(".sqlite")
    if shutil.which("nsys") is None:
        raise ConfigError(
            f"reading {report} needs nsys, which isn't installed here: run `nsys export --type sqlite {report}` where "
            f"it is, and give the .sqlite file."
        )
    command = ["nsys", "export", "--type=sqlite", "--force-overwrite=true", f"--output={target}", str(report)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"nsys can't export {report}: {' '.join((done.stderr or done.stdout).split())}.")
    return target


class Report:
    """An open export."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        rows = database.execute("SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c")
        self._columns = {(table, column) for table, column in rows}
        self._tables = {table for table, _ in self._columns}

    def trace(self) -> Trace:
        steps = {process: step_ranges(ranges) for process, ranges in self._ranges().items()}
        launched = self._launches() if any(steps.values()) else {}
        activities = []
        for name, begun, ended, device, stream, process, correlation in self._activities():
            step = step_at(steps.get(process, []), launched.get((process, correlation)))
            start, end = begun / 1000, ended / 1000
            activities.append(Activity(name, start, end, end - start, device, stream, step))
        names: list[str] = []
        if ("TARGET_INFO_GPU", "name") in self._columns:
            names = [name for (name,) in self._database.execute("SELECT name FROM TARGET_INFO_GPU ORDER BY id")]
        return Trace(activities, True, [step for found in steps.values() for step in found], names)

    def _activities(self) -> Iterator[tuple[str, int, int, int, int, int, int]]:
        """Name, start, end, device, stream, process and correlation of all that the devices did."""
        for table, name in ACTIVITIES.items():
            if table not in self._tables:
                continue
            stream, process = (
                f"a.{column}" if (table, column) in self._columns else "0" for column in ("streamId", "globalPid")
            )
            yield from self._database.execute(
                f"SELECT {name}, a.start, a.end, a.deviceId, {stream}, {process}, a.correlationId FROM {table} a"
            )

    def _launches(self) -> dict[tuple[int, int], float]:
        """When the host made each call, in microseconds, by process and correlation."""
        if CALLS not in self._tables:
            return {}
        calls = self._database.execute(f"SELECT globalTid, correlationId, start FROM {CALLS}")
        return {(self._process(thread), call): start / 1000 for thread, call, start in calls}

    def _ranges(self) -> dict[int, list[Range]]:
        """The named ranges of each process."""
        found: dict[int, list[Range]] = defaultdict(list)
        if "NVTX_EVENTS" not in self._tables:
            return found
        text, join = "n.text", ""
        if ("NVTX_EVENTS", "textId") in self._columns:
            text, join = "coalesce(n.text, s.value)", "LEFT JOIN StringIds s ON s.id = n.textId"
        rows = self._database.execute(
            f"SELECT n.globalTid, n.start, n.end, {text} FROM NVTX_EVENTS n {join} "
            f"WHERE n.eventType IN ({PUSH_POP}, {START_END}) AND n.end IS NOT NULL"
        )
        for thread, start, end, name in rows:
            found[self._process(thread)].append(Range(start / 1000, end / 1000, name or ""))
        return found

    def _process(self, thread: int) -> int:
        """The process of a global thread id; 0 in older exports, whose kernels don't tell theirs."""
        return thread & PROCESS if (KERNELS, "globalPid") in self._columns else 0
