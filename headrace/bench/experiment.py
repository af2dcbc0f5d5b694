"""What a sweep runs and where it keeps it: the commands of every run, and the folder's own account of them.

Runs nothing itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.bench.capacity import Objective
from headrace.bench.files import read_json, write_json, writing
from headrace.bench.parameters import Parameters, file_name, linked, measuring, with_flags
from headrace.bench.server import key_of, need_free, need_server
from headrace.bench.snapshot import COMMANDS
from headrace.command import as_typed, flag_value, need_command
from headrace.errors import ConfigError

SEEDS_PER_RUN = 1000  # by which a suite's seeds differ between its runs


@dataclass(frozen=True)
class Search:
    """The search for the largest rate that keeps an SLO."""

    objectives: list[Objective]
    start: float  # requests/s of the first trial
    precision: float  # of the rate, relative
    seconds: float  # of arrivals in a trial


@dataclass(frozen=True)
class Combination:
    """A set of the server's flags with one of the benchmark's, and the folder of its runs."""

    serve: Parameters
    bench: Parameters
    folder: Path

    def run_file(self, number: int) -> Path:
        return self.folder / f"run={number}.json"


@dataclass(frozen=True)
class Plan:
    """What a sweep runs, and where it keeps the results. A plan without ``serve`` measures the server at ``url``."""

    folder: Path
    bench: list[str]
    serve: list[str] | None
    url: str
    serve_sets: list[Parameters]
    bench_sets: list[Parameters]
    links: list[tuple[str, str]]
    num_runs: int
    warmup_prompts: int
    after_bench: list[str] | None
    search: Search | None
    ready_seconds: float
    show: bool
    keep_going: bool

    @property
    def key(self) -> str | None:
        """The server's API key."""
        return key_of(self.serve or [])

    def combinations(self, serve_set: Parameters) -> list[Combination]:
        """Those of one server."""
        return [self.combined(serve_set, bench) for bench in self.bench_sets if linked(serve_set, bench, self.links)]

    def combined(self, serve_set: Parameters, bench_set: Parameters) -> Combination:
        name = file_name(f"SERVE--{serve_set.name}-BENCH--{bench_set.name}")
        return Combination(serve_set, bench_set, self.folder / name)

    def server_command(self, serve_set: Parameters) -> list[str]:
        return with_flags(self.serve or [], serve_set.flags)

    def bench_command(self, bench_set: Parameters, number: int, output: Path) -> list[str]:
        """The command of run ``number`` with a set of flags, which leaves its result in ``output``."""
        defaults = dict(bench_set.defaults)
        if "seed" in defaults:
            defaults["seed"] += SEEDS_PER_RUN * number
        command = measuring(self.bench, self.url, output, defaults, bench_set.flags)
        if self.search:
            wanted = set((flag_value(command, "--metric-percentiles") or "99").split(","))
            wanted |= {goal.statistic[1:] for goal in self.search.objectives if goal.statistic[0] == "p"}
            command = with_flags(command, {"metric_percentiles": ",".join(sorted(wanted, key=float))})
        return command

    def open_folder(self, resume: bool) -> None:
        """Make the folder, or check that the sweep in it is this one.

        Raises ConfigError if it is not, or not meant; and what a sweep can't begin without, lest an empty folder stay.
        """
        for words in filter(None, (self.serve, self.bench, self.after_bench)):
            need_command(words)
        path = self.folder / COMMANDS
        commands: dict[str, Any] = {"serve_cmd": as_typed(self.serve or []), "bench_cmd": as_typed(self.bench)}
        if path.exists():
            if not resume:
                raise ConfigError(f"{self.folder} holds results already: add --resume, or choose another -e.")
            if read_json(path) != commands:
                raise ConfigError(f"{self.folder} is the sweep of other commands ({path} has them): choose another -e.")
            return
        if resume:
            raise ConfigError(f"there is no sweep to resume in {self.folder}: leave --resume out, or correct -o or -e.")
        (need_free if self.serve else need_server)(self.url)
        with writing(self.folder):
            write_json(path, commands)
