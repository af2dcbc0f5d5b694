"""``headrace bench serve``: vLLM's flags, its table and its file; below the table what vLLM doesn't tell."""

import argparse
import math
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from headrace import remote
from headrace.bench import datasets, files, measures, metrics, serve
from headrace.bench.client import Target
from headrace.bench.load import Request
from headrace.bench.reading import as_csv, as_text, rows_of
from headrace.bench.serve import Plan, Run
from headrace.cli.bench import limits, serve_flags
from headrace.cli.bench.serve_flags import add_arguments
from headrace.cli.main import SIGINT_EXIT
from headrace.config.options import LoadOptions, ModelOptions
from headrace.errors import HeadraceError
from headrace.files import check_directory

if TYPE_CHECKING:
    from headrace.bench.roofline import Speed
    from headrace.frontend.tokenizer import Tokenizer

__all__ = ["add_arguments", "run"]

BUSY = 0.9  # of its time; a client process beyond that delays what it times
ANY_VOCABULARY = 256  # token ids that every model has


def run(arguments: argparse.Namespace) -> int:
    serve_flags.check(arguments)
    saves = any(getattr(arguments, name) for name in serve_flags.SAVING)
    directory = Path(arguments.result_dir or ".")
    if saves:
        check_directory((directory / (arguments.result_filename or "by default")).parent, "--result-dir")
    base, headers = serve_flags.base_url(arguments), serve_flags.headers_of(arguments)
    route = arguments.endpoint or serve_flags.api_of(arguments).endpoint
    url = f"{base}/{route.lstrip('/')}"
    target = Target(url, arguments.backend, headers, arguments.request_timeout, arguments.insecure)
    server = remote.connected(base, headers, arguments.insecure)
    card = {"id": arguments.model, "root": arguments.model} if arguments.model else remote.first_model(server)
    name, root = card["id"], card["root"]
    speed = limits.speed_of(arguments, root, server)
    tokenizer = None if arguments.skip_tokenizer_init else load_tokenizer(arguments, root)
    plan = Plan(
        target,
        requests_of(arguments, arguments.served_model_name or name, tokenizer),
        arguments.max_concurrency,
        arguments.num_client_processes,
        not arguments.disable_tqdm,
    )
    done, before, after = put_on(plan, server, arguments)
    count_tokens(done, tokenizer)
    result = heading(arguments, root, tokenizer, len(plan.requests)) | measures.measure(
        done.outcomes, done.duration, arguments.percentile_metrics, arguments.metric_percentiles, arguments.goodput
    )
    result |= metrics.speculation(before, after)
    result |= beyond(arguments, plan, done, server_metrics={"before": before, "after": after})
    said = judged(speed, result, before, after)
    print_result(arguments, plan, done, result)
    for sentence in said:
        print(sentence)
    trouble = save(arguments, directory, result) if saves else []
    for sentence in trouble:
        print(f"headrace: error: {sentence}.", file=sys.stderr)
    if done.interrupted:
        return SIGINT_EXIT
    return int(bool(trouble) or bool(result["failed"] and not arguments.allow_failures))


def load_tokenizer(arguments: argparse.Namespace, root: str) -> "Tokenizer":
    from headrace.frontend.tokenizer import Tokenizer
    from headrace.models import source

    name = arguments.tokenizer or root
    model = ModelOptions(
        model=name, tokenizer_mode=arguments.tokenizer_mode, trust_remote_code=arguments.trust_remote_code
    )
    load = LoadOptions(load_format="dummy")  # no weights
    return Tokenizer(source.load_tokenizer(source.resolve(model, load), model, load))


def requests_of(arguments: argparse.Namespace, model: str, tokenizer: "Tokenizer | None") -> list[Request]:
    samples = datasets.draw(arguments, tokenizer, tokenizer.vocab_size if tokenizer else ANY_VOCABULARY)
    api, fields = serve_flags.api_of(arguments), serve_flags.request_fields(arguments)
    times = serve.arrivals(serve_flags.rates_of(arguments, len(samples)), arguments.burstiness, arguments.seed)
    return [
        Request(
            index,
            {"model": model} | api.body(sample) | fields,
            sample.prompt_len,
            due if sample.at is None else sample.at,
            sample.conversation,
        )
        for index, (sample, due) in enumerate(zip(samples, times, strict=True))
    ]


def put_on(plan: Plan, server: httpx.Client, arguments: argparse.Namespace) -> tuple[Run, str | None, str | None]:
    """Run a plan, with what comes before and after it. Also returns the server's metrics before and after."""
    first = plan.requests[0]
    if arguments.ready_check_timeout_sec > 0:
        serve.wait_ready(plan.target, first, arguments.ready_check_timeout_sec)
    if arguments.num_warmups > 0:
        serve.warm_up(plan.target, first, arguments.num_warmups)
    before = remote.text_of(server, "/metrics")
    if arguments.profile:
        remote.profile(server, "start")
    done = serve.run(plan)
    after = remote.text_of(server, "/metrics")
    if arguments.profile:
        try:
            remote.profile(server, "stop")
        except HeadraceError as error:  # the figures are worth more than the trace
            print(f"headrace: warning: {error}", file=sys.stderr)
    return done, before, after


def count_tokens(done: Run, tokenizer: "Tokenizer | None") -> None:
    """Count the output tokens of servers that don't: in the text, or else a token a piece."""
    for outcome in done.outcomes:
        if outcome.output_len is None:
            text = outcome.text if tokenizer else ""
            outcome.output_len = len(tokenizer.encode(text, False)) if tokenizer and text else len(outcome.itls) + 1


def heading(
    arguments: argparse.Namespace, root: str, tokenizer: "Tokenizer | None", num_prompts: int
) -> dict[str, Any]:
    """vLLM's keys that say what was run."""
    result = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": arguments.backend,
        "backend": arguments.backend,
        "label": arguments.label,
        "model_id": root,
        "tokenizer_id": (arguments.tokenizer or root) if tokenizer else None,
        "num_prompts": num_prompts,
        **dict(arguments.metadata),
        "request_rate": "inf" if math.isinf(arguments.request_rate) else arguments.request_rate,
        "burstiness": "inf" if math.isinf(arguments.burstiness) else arguments.burstiness,
        "max_concurrency": arguments.max_concurrency,
    }
    if arguments.ramp_up_strategy:
        result |= {f"ramp_up_{key}": vars(arguments)[f"ramp_up_{key}"] for key in ("strategy", "start_rps", "end_rps")}
    return result


def beyond(arguments: argparse.Namespace, plan: Plan, done: Run, **detailed: Any) -> dict[str, Any]:
    """Keys that vLLM's results don't have."""
    result: dict[str, Any] = {
        "num_client_processes": done.processes,
        "client_busy": done.busy,
        "unsent": len(plan.requests) - len(done.outcomes),
        "interrupted": done.interrupted,
        "failures": dict(Counter(outcome.error for outcome in done.outcomes if outcome.error)),
    }
    if any(request.at for request in plan.requests):
        result["schedule"] = measures.schedule(done.outcomes, arguments.metric_percentiles)
    return result | (detailed if arguments.save_detailed else {})


def judged(speed: "Speed | str", result: dict[str, Any], before: str | None, after: str | None) -> list[str]:
    """Add to ``result`` how near it is to the device's limits; returns lines that say so, or why that isn't known."""
    if isinstance(speed, str):
        return [speed]
    if not result["completed"]:
        return []
    from headrace.bench import reached

    load = reached.served(result, metrics.cached_share(before, after))
    result |= reached.reached(speed, load)
    return reached.lines_of(result, load)


def print_result(arguments: argparse.Namespace, plan: Plan, done: Run, result: dict[str, Any]) -> None:
    pooling, percentiles = not plan.target.api.streamed, arguments.metric_percentiles
    lines = measures.table(result, arguments.percentile_metrics, percentiles, pooling)
    if "schedule" in result:
        lines += measures.schedule_lines(result["schedule"], percentiles, pooling)
    if done.processes > 1:
        lines.append(f"Sent by {done.processes} client processes.")
    if done.busy > BUSY:
        lines.append(
            f"A client process computed {100 * done.busy:.0f}% of the time, so latencies hold delays of its own: "
            "take more --num-client-processes."
        )
    if done.interrupted:
        lines.append(f"Interrupted: {result['unsent']} requests were not sent.")
    if result["failed"]:
        lines += ["Failed requests by reason:", *measures.reasons(result["failures"])]
    print(*lines, sep="\n")


def save(arguments: argparse.Namespace, directory: Path, result: dict[str, Any]) -> list[str]:
    """Save the result, with details also the figures of each request as text and CSV. Returns what went wrong."""
    path = directory / (arguments.result_filename or files.result_name(result))
    siblings = {}
    if arguments.save_detailed:
        rows = rows_of(result)
        siblings = {".requests.csv": as_csv(rows), ".requests.txt": as_text(rows)}
    else:
        result = {key: value for key, value in result.items() if key not in measures.DETAILS}
    trouble = files.save_result(path, result, arguments.append_result, siblings)
    if not trouble:
        print(f"Saved {path}")
    return trouble
