"""``headrace bench sweep``."""

import argparse
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from headrace.bench.capacity import parse_slo, saturation_sentence, slo_sentence
from headrace.bench.experiment import Plan, Search
from headrace.bench.files import writing
from headrace.bench.numbers import above_zero, listed, natural, positive, rate
from headrace.bench.parameters import SUITES, read_links, read_parameters, suite_points
from headrace.bench.server import url_of
from headrace.bench.sweep import Sweep, averaged, saturations
from headrace.cli.parser import FlagParser
from headrace.command import as_typed, words_of
from headrace.errors import ConfigError
from headrace.remote import address

RUNS_OF_SERVE = 3  # vLLM's default for `sweep serve`; a suite has many points, and each is run once


def add_arguments(parser: FlagParser) -> None:
    parser.usage = "%(prog)s [serve] [FLAG …]"
    parser.add_argument("form", nargs="?", metavar="serve", help="As vLLM has it: no suites unless asked for.")
    add = parser.add_argument_group("what is measured").add_argument
    add("--base-url", metavar="URL", help="Address of a server that runs already.")
    add("--serve-cmd", metavar="COMMAND", help="Starts the server, anew for each --serve-params set.")
    add("--bench-cmd", metavar="COMMAND", default="headrace bench serve", help="Measures the server once.")
    add("--after-bench-cmd", metavar="COMMAND", help="Runs after each run, instead of resetting caches.")
    add = parser.add_argument_group("loads").add_argument
    add("--suite", "--type", metavar="NAME,…", help="rate, concurrency, input, output, or all. [all]")
    add("--rates", type=listed(rate), metavar="X,…", help="Requests/s of suite rate. [1,2,4,8,16,32,inf]")
    add(
        "--concurrencies",
        type=listed(positive),
        metavar="N,…",
        help="Requests at once of suite concurrency. [1 to 128]",
    )
    add("--input-lens", type=listed(positive), metavar="N,…", help="Prompt tokens of suite input. [128 to 16384]")
    add("--output-lens", type=listed(positive), metavar="N,…", help="Output tokens of suite output. [64 to 2048]")
    add("--slo", metavar="GOAL,…", help="Find the largest rate that keeps goals such as ttft_p99=200ms,tpot_p99=20ms.")
    add("--slo-start", type=above_zero, default=1.0, metavar="X", help="Requests/s tried first.")
    add("--slo-precision", type=above_zero, default=0.05, metavar="X", help="Relative error of the rate found.")
    add("--slo-seconds", type=above_zero, default=30.0, metavar="S", help="Seconds of arrivals in each trial.")
    add("--serve-params", metavar="FILE", help="JSON: sets of server flags.")
    add("--bench-params", metavar="FILE", help="JSON: sets of benchmark flags.")
    add("--link-vars", metavar="A=B,…", help="Only where server flag A and benchmark flag B are equal.")
    add("--num-runs", type=positive, metavar="N", help=f"Runs of each point. [1; {RUNS_OF_SERVE} for sweep serve]")
    add("--warmup-num-prompts", type=natural, default=0, metavar="N", help="Requests before the first run.")
    add = parser.add_argument_group("how it runs").add_argument
    add("-o", "--output-dir", default="results", metavar="DIR", help="Where experiments are kept.")
    add("-e", "--experiment-name", metavar="NAME", help="This one's folder there. [date and time]")
    add("--resume", action="store_true", help="Run what is missing in -e.")
    add("--dry-run", action="store_true", help="Print the commands, run none.")
    add("--show-stdout", action="store_true", help="Show what server and benchmark print.")
    add("--continue-on-error", action="store_true", help="Go on with the next run after a failed one.")
    add("--server-ready-timeout", type=above_zero, default=300.0, metavar="S", help="Seconds until it must be ready.")


def run(arguments: argparse.Namespace) -> int:
    plan = plan_of(arguments)
    if arguments.dry_run:
        print("\n".join(commands(plan)))
        return 0
    plan.open_folder(arguments.resume)
    sweep = Sweep(plan, partial(print, flush=True))
    try:
        with writing(plan.folder):
            sweep.run()
    finally:
        if sweep.results:
            conclude(sweep)
    return 1 if sweep.failures else 0


def plan_of(arguments: argparse.Namespace) -> Plan:
    if arguments.form not in (None, "serve"):
        raise ConfigError(f"unexpected argument {arguments.form!r}: flags alone may follow, or `serve` and flags.")
    if (arguments.serve_cmd is None) == (arguments.base_url is None):
        raise ConfigError("say what to measure: --serve-cmd starts a server, --base-url names one that runs.")
    if arguments.serve_params and not arguments.serve_cmd:
        raise ConfigError("--serve-params needs --serve-cmd, the command that they change.")
    if arguments.resume and not arguments.experiment_name:
        raise ConfigError("--resume needs -e, the name of the experiment to resume.")
    if arguments.slo_precision < 0.01:
        raise ConfigError("--slo-precision must be at least 0.01: runs of the same rate differ by more.")
    suites = suites_of(arguments)
    bench_sets = read_parameters(arguments.bench_params, "--bench-params")
    if suites:
        points = suite_points(suites, overrides(arguments))
        bench_sets = points + (bench_sets if arguments.bench_params else [])
    elif arguments.slo and not arguments.bench_params:
        bench_sets = []
    search = None
    if arguments.slo:
        goals = parse_slo(arguments.slo)
        search = Search(goals, arguments.slo_start, arguments.slo_precision, arguments.slo_seconds)
    serve = None if arguments.serve_cmd is None else words_of(arguments.serve_cmd, "--serve-cmd")
    after = arguments.after_bench_cmd
    return Plan(
        folder=Path(arguments.output_dir) / (arguments.experiment_name or datetime.now().strftime("%Y%m%d_%H%M%S")),
        bench=words_of(arguments.bench_cmd, "--bench-cmd"),
        serve=serve,
        url=url_of(serve) if serve else address(arguments.base_url),
        serve_sets=read_parameters(arguments.serve_params, "--serve-params"),
        bench_sets=bench_sets,
        links=read_links(arguments.link_vars),
        num_runs=arguments.num_runs or (RUNS_OF_SERVE if arguments.form else 1),
        warmup_prompts=arguments.warmup_num_prompts,
        after_bench=words_of(after, "--after-bench-cmd") if after else None,
        search=search,
        ready_seconds=arguments.server_ready_timeout,
        show=arguments.show_stdout,
        keep_going=arguments.continue_on_error,
    )


def suites_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The suites to run: those asked for; all if nothing else says what to run."""
    asked = arguments.suite
    if asked is None:
        other = arguments.form or arguments.bench_params or arguments.slo
        return tuple(overrides(arguments)) or (() if other else tuple(SUITES))
    names = tuple(SUITES) if asked == "all" else tuple(asked.split(","))
    if unknown := set(names) - set(SUITES):
        raise ConfigError(f"there is no suite {unknown.pop()!r}: --suite takes {', '.join(SUITES)}, or all.")
    if ignored := set(overrides(arguments)) - set(names):
        raise ConfigError(f"the points of suite {ignored.pop()} are given, but --suite leaves it out.")
    return names


def overrides(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The points that the command line gives, by suite."""
    given = (arguments.rates, arguments.concurrencies, arguments.input_lens, arguments.output_lens)
    return {suite: points for suite, points in zip(SUITES, given, strict=True) if points}


def commands(plan: Plan) -> list[str]:
    """Every command that a sweep would run; a search's depend on what is measured, so only its first is here."""
    lines = []
    for serve_set in plan.serve_sets:
        if plan.serve:
            lines.append(as_typed(plan.server_command(serve_set)))
        for combination in plan.combinations(serve_set):
            for number in range(plan.num_runs):
                command = plan.bench_command(combination.bench, number, combination.run_file(number))
                lines.append("  " + as_typed(command))
        if plan.search:
            lines.append(
                f"  … and trials of request rates from {plan.search.start:g}/s on, until the SLO's limit is found"
            )
    return lines


def conclude(sweep: Sweep) -> None:
    """Print the table of all combinations, where suites saturate, and the rates that keep the SLO."""
    from rich.console import Console

    results = averaged(sweep.results)
    Console(highlight=False, soft_wrap=True).print(table(results))
    lines = [saturation_sentence(point) for point in saturations(results)]
    for search in sweep.searches:
        lines += [slo_sentence(search), *trial_lines(search)]
    folder = sweep.plan.folder
    print(*lines, f"Results: {folder}; `headrace bench report {folder}` makes a page of them.", sep="\n")


def table(results: list[dict[str, Any]]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from headrace.bench.report import columns_of

    columns = [column for column in columns_of(results) if column.short]
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown.add_column("run", overflow="fold", min_width=16)
    for column in columns:
        shown.add_column(column.short, justify="right", no_wrap=True)
    for result in results:
        cells = [f"{result[c.key]:,.{c.digits}f}" if c.key in result else "" for c in columns]
        shown.add_row(str(result.get("label") or result["_place"]), *cells)
    return shown


def trial_lines(search: dict[str, Any]) -> list[str]:
    """All rates of a search, with what was measured."""
    return [
        f"  {trial['rate']:>8g}/s  {', '.join(f'{key} {value:.1f}' for key, value in trial['measured'].items())}  "
        f"{trial['broken'] or 'kept'}"
        for trial in search["trials"]
    ]
