"""`headrace bench sweep`: a benchmark for every server configuration and every load, each run in a file of its own.

The folder has vLLM's layout: ``SERVE--<parameters>-BENCH--<parameters>/run=0.json``, ``summary.json`` beside the runs,
``summary.csv`` on top. A run whose file is there is not repeated, which is how an interrupted sweep resumes. The
benchmark is a command; of it we know some flags and the keys of its result.
"""

import csv
import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import Any

import httpx

from headrace.bench import snapshot
from headrace.bench.capacity import Trial, judge, largest_rate, saturation
from headrace.bench.experiment import Combination, Plan, Search
from headrace.bench.files import read_json, write_json
from headrace.bench.parameters import SUITES, WORKLOAD, Parameters, file_name
from headrace.bench.server import need_server, run_command, serving, tail
from headrace.command import as_typed, flag_value
from headrace.errors import ConfigError, HeadraceError
from headrace.remote import WORK_SECONDS, bearer, connected, key_environment

RESET_ROUTES = ("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache")  # vLLM's, in its development mode
FEWEST_PROMPTS = 10  # of a trial of --slo
SUITE_KEY = "suite"
RUN_KEY = "run_number"  # vLLM's, in each run's result


class Sweep:
    """Runs a plan. ``results`` are the runs' so far, those of an earlier start of the same sweep included."""

    def __init__(self, plan: Plan, say: Callable[[str], None]):
        self.plan = plan
        self.results: list[dict[str, Any]] = []
        self.searches: list[dict[str, Any]] = []
        self.failures = 0
        self._say = say
        self._warned = False
        self._longest: int | None = None  # sequence that the present server takes

    def run(self) -> None:
        """Measure everything; whatever ends it, the summaries of what was measured are written.

        Raises HeadraceError for the first failure unless the plan is to keep going.
        """
        if not (self.plan.folder / snapshot.ENVIRONMENT).exists():
            snapshot.save_environment(self.plan.folder)
        try:
            for serve_set in self.plan.serve_sets:
                with self._tolerate(f"the server {serve_set.name}"):
                    self._measure(serve_set)
        finally:
            self.write_summaries()

    def _measure(self, serve_set: Parameters) -> None:
        """All runs on one server, which is not even started if their results are there."""
        combinations, numbers = self.plan.combinations(serve_set), range(self.plan.num_runs)
        runs = [(combination, number) for combination in combinations for number in numbers]
        if not self.plan.search and all(combination.run_file(number).exists() for combination, number in runs):
            self.results += [result_of(*run) for run in runs]
            return
        with self._server(serve_set) as process:
            for combination in combinations:
                self._measure_combination(combination, process)
            if self.plan.search:
                self._find_rate(serve_set, self.plan.search)

    def _measure_combination(self, combination: Combination, process: subprocess.Popen[bytes] | None) -> None:
        if reason := self._too_long(combination.bench):
            self._say(f"{combination.bench.name}: left out, {reason}")
            return
        if self.plan.warmup_prompts and not combination.run_file(0).exists():
            flags = combination.bench.flags | {"num_prompts": self.plan.warmup_prompts}
            warmup = replace(combination.bench, flags=flags)
            self._bench(warmup, self.plan.num_runs, combination.folder / "warmup.json")
        for number in range(self.plan.num_runs):
            with self._tolerate(combination.bench.name):
                self.results.append(self._run(combination, number))
            if process is not None and process.poll() is not None:
                raise HeadraceError(f"the server ended with code {process.returncode} during {combination.bench.name}")

    def _run(self, combination: Combination, number: int) -> dict[str, Any]:
        """A run's result, with the parameters that made it; measured unless an earlier start did."""
        path, bench_set = combination.run_file(number), combination.bench
        if not path.exists():
            result = self._bench(bench_set, number, path.with_suffix(".partial.json"))
            label = " ".join(filter(None, (combination.serve.name, bench_set.name)))
            result["label"] = result.get("label") or label or None
            origin = {SUITE_KEY: bench_set.suite} if bench_set.suite else {}
            parameters = combination.serve.flags | bench_set.flags | origin | {RUN_KEY: number}
            write_json(path, result | {key: value for key, value in parameters.items() if key not in result})
        result = result_of(combination, number)
        count = f" ({number + 1} of {self.plan.num_runs})" if self.plan.num_runs > 1 else ""
        self._say(f"{result['label'] or 'run'}{count}: {in_short(result)}")
        return result

    def _bench(self, bench_set: Parameters, number: int, output: Path) -> dict[str, Any]:
        """Run the benchmark's command; its result, or HeadraceError and a ``.failure.json`` with what there is."""
        command = self.plan.bench_command(bench_set, number, output)
        log = output.with_name(output.name.split(".")[0] + ".log")
        failure = log.with_suffix(".failure.json")
        code = run_command(command, log, show=self.plan.show, environment=key_environment(self.plan.key))
        result = read_json(output) if output.exists() else None
        if output.name != "warmup.json":
            output.unlink(missing_ok=True)
            for sibling in output.parent.glob(f"{output.stem}.*"):  # lists that the benchmark keeps beside its result
                sibling.rename(sibling.with_name(sibling.name.replace(".partial.", ".")))
        if code or result is None:
            write_json(failure, {"command": as_typed(command), "returncode": code, "log": tail(log), "result": result})
            raise HeadraceError(f"the benchmark {bench_set.name} ended with code {code}; {log} ends:\n{tail(log)}")
        failure.unlink(missing_ok=True)
        self._clean_up(own_seeds=bool(bench_set.suite))
        return dict(result)

    def _clean_up(self, own_seeds: bool) -> None:
        """Let no run profit from what the server remembers of the one before; say so, once, if it may."""
        if self.plan.after_bench:
            log = self.plan.folder / "after-bench.log"
            if code := run_command(self.plan.after_bench, log, show=self.plan.show):
                raise HeadraceError(f"--after-bench-cmd ended with code {code}; {log} ends:\n{tail(log)}")
        elif self.plan.serve:
            with connected(self.plan.url, bearer(self.plan.key)) as server:
                replies = [server.post(route, timeout=WORK_SECONDS) for route in RESET_ROUTES]
            if not replies[0].is_success and not own_seeds and not self._warned:
                self._warned = True
                self._say(f"{RESET_ROUTES[0]} is not there: a run with the prompts of another finds them in the cache")

    def _find_rate(self, serve_set: Parameters, search: Search) -> None:
        """The largest rate on this server that keeps the SLO; every trial is a run with a file of its own."""

        def attempt(rate: float) -> Trial:
            prompts = max(FEWEST_PROMPTS, math.ceil(rate * search.seconds))
            flags = {"request_rate": f"{rate:g}", "num_prompts": prompts}
            defaults = WORKLOAD | SUITES["rate"].fixed | {"seed": round(100 * rate)}
            load = Parameters(f"slo-rate={rate:g}", flags, "slo", defaults)
            result = self._run(self.plan.combined(serve_set, load), 0)
            self.results.append(result)
            trial = judge(result, rate, search.objectives)
            self._say(f"  {rate:g} requests/s: {trial.broken or 'kept'}")
            return trial

        rate, trials = largest_rate(attempt, search.start, search.precision)
        slo = ",".join(map(str, search.objectives))
        found = {"serve": serve_set.name, "slo": slo, "largest_rate": rate, "trials": [asdict(t) for t in trials]}
        self.searches.append(found)

    @contextmanager
    def _server(self, serve_set: Parameters) -> Iterator[subprocess.Popen[bytes] | None]:
        """The server of a parameter set, or the one that runs already; its metrics before and after are kept."""
        plan, name, process = self.plan, file_name(f"SERVE--{serve_set.name}"), None
        with ExitStack() as stack:
            if plan.serve is None:
                need_server(plan.url)
            else:
                command, log = plan.server_command(serve_set), plan.folder / f"{name}.log"
                self._say(f"starting {as_typed(command)}")
                development = {"VLLM_SERVER_DEV_MODE": "1"}  # has the routes that reset caches
                server = serving(
                    command, plan.url, log, ready_seconds=plan.ready_seconds, show=plan.show, environment=development
                )
                process = stack.enter_context(server)
            _, models = stack.enter_context(snapshot.observed(plan.url, plan.key, plan.folder, f"{name}."))
            self._longest = models[0].get("max_model_len") if models else None
            yield process

    @contextmanager
    def _tolerate(self, what: str) -> Iterator[None]:
        """Count a failure and say it, if the plan is to keep going."""
        try:
            yield
        except ConfigError:
            raise
        except (HeadraceError, httpx.HTTPError) as error:
            if not self.plan.keep_going:
                raise
            self.failures += 1
            self._say(f"{what} failed: {error}")

    def _too_long(self, bench_set: Parameters) -> str | None:
        """Why a suite's point can't fit the server's model, where both lengths are known."""
        command = self.plan.bench_command(bench_set, 0, self.plan.folder / "x.json")
        lengths = [flag_value(command, f"--random-{side}-len") for side in ("input", "output")]
        if not bench_set.suite or self._longest is None or None in lengths:
            return None
        needed = sum(map(int, filter(None, lengths)))
        return f"it needs {needed} tokens, the model takes {self._longest}" if needed > self._longest else None

    def write_summaries(self) -> None:
        """``summary.json`` of each combination and of all, and ``summary.csv``: a line a run, lists left out."""
        for place, runs in grouped(self.results, "_place").items():
            write_json(self.plan.folder / place / "summary.json", [scalars(run) for run in runs])
        runs = [scalars(result) for result in self.results]
        write_json(
            self.plan.folder / "summary.json",
            {"runs": runs, "saturation": saturations(averaged(self.results)), "slo": self.searches},
        )
        columns = list(dict.fromkeys(key for run in runs for key in run))
        with (self.plan.folder / "summary.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(runs)


def result_of(combination: Combination, number: int) -> dict[str, Any]:
    result: dict[str, Any] = read_json(combination.run_file(number))
    return result | {"_place": combination.folder.name}


def grouped(results: Sequence[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result.get(key, ""), []).append(result)
    return groups


def averaged(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result for each combination: the mean of its runs' numbers, the rest as in the first."""
    return [
        runs[0]
        | {key: mean(run[key] for run in runs) for key in runs[0] if all(is_number(run.get(key)) for run in runs)}
        for runs in grouped(results, "_place").values()
    ]


def saturations(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each server's suites of growing load, the point where it saturates; the last one if it does not.

    ``points`` are ``averaged`` results.
    """
    found = []
    for suite in ("rate", "concurrency"):
        chosen = [point | {"_server": point["_place"].split("-BENCH--")[0]} for point in points]
        chosen = [point for point in chosen if point.get(SUITE_KEY) == suite]
        for runs in grouped(chosen, "_server").values():
            index = saturation(runs)
            point = runs[-1 if index is None else index]
            facts = {"at": point["label"], "output_throughput": point["output_throughput"]}
            found.append({"suite": suite, "saturated": index is not None} | facts)
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def scalars(result: dict[str, Any]) -> dict[str, Any]:
    """A result without its lists, objects and our own marks."""
    return {key: value for key, value in result.items() if not isinstance(value, list | dict) and key[0] != "_"}


def in_short(result: dict[str, Any]) -> str:
    parts = [f"{result['request_throughput']:.2f} requests/s", f"{result['output_throughput']:.1f} output tokens/s"]
    parts += [
        f"{metric.upper()} {result[f'median_{metric}_ms']:.1f} ms (p99 {result.get(f'p99_{metric}_ms', math.nan):.1f})"
        for metric in ("ttft", "tpot")
        if f"median_{metric}_ms" in result
    ]
    return ", ".join(parts)
