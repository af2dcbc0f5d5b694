"""The flags of ``headrace bench serve``, with vLLM's names and defaults, and what they mean for a request."""

import argparse
import math
from typing import Any

import msgspec
import numpy as np

from headrace.bench import datasets
from headrace.bench.api import APIS, Api
from headrace.bench.measures import TITLES
from headrace.bench.numbers import from_zero, listed, natural, number, port, positive, rate, reader
from headrace.cli.bench import limits
from headrace.cli.parser import FlagParser
from headrace.errors import ConfigError
from headrace.remote import address, api_key, bearer

GENERATING = ["ttft", "tpot", "itl"]
PROMISES = ("ttft", "tpot", "e2el")  # what --goodput can ask for
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty")
SAVING = ("save_result", "append_result", "save_detailed", "result_dir", "result_filename")  # each asks for a file
ELSEWHERE = {  # flags of vLLM's that are refused, and why
    "lora_modules": "adapters are not served yet: leave it out",
    "lora_assignment": "adapters are not served yet: leave it out",
    "probe_request_rate": "there are no side probes: leave it out",
} | dict.fromkeys(
    ("plot_timeline", "timeline_itl_thresholds", "plot_dataset_stats"),
    "figures are drawn from saved results: `headrace bench plot`",
)


def add_arguments(parser: FlagParser) -> None:
    parser.usage = "%(prog)s [FLAG …]"
    add_server(parser)
    add_load(parser)
    add_request(parser)
    add_output(parser)
    datasets.add_arguments(parser)
    limits.add_arguments(parser)
    for name in ELSEWHERE:
        parser.add_argument(f"--{name.replace('_', '-')}", nargs="*", help=argparse.SUPPRESS)


def add_server(parser: FlagParser) -> None:
    server = parser.add_argument_group("server")
    add = server.add_argument
    add("--backend", "--endpoint-type", default="openai", metavar="API", help="openai-chat, vllm-rerank, …")
    add("--base-url", metavar="URL", help="Address of the server, instead of --host and --port.")
    add("--host", default="127.0.0.1", metavar="NAME", help="Its host.")
    add("--port", type=port, default=8000, metavar="N", help="Its port.")
    add("--endpoint", metavar="PATH", help="Route on it. [by --backend]")
    add("--model", metavar="NAME", help="Model to ask for, and its tokenizer. [the first that the server has]")
    add("--served-model-name", metavar="NAME", help="What the server calls the model.")
    add("--tokenizer", metavar="NAME", help="Tokenizer: a directory or a hub id. [the model's]")
    add("--tokenizer-mode", default="auto", choices=("auto", "slow"), help="Which class to load.")
    add("--trust-remote-code", action="store_true", help="Run Python code that comes with the tokenizer.")
    add("--skip-tokenizer-init", action="store_true", help="Use none: prompts are token ids.")
    add("--header", nargs="*", action="extend", type=header, default=[], metavar="K=V", help="Sent with every request.")
    add("--insecure", action="store_true", help="Don't check the server's certificate.")
    add("--ready-check-timeout-sec", type=from_zero, default=0.0, metavar="X", help="Seconds to wait for the server.")
    add("--profile", action="store_true", help="Let the server profile the run (/start_profile, /stop_profile).")


def add_load(parser: FlagParser) -> None:
    add = parser.add_argument_group("load").add_argument
    add("--request-rate", type=rate, default=math.inf, metavar="X", help="Requests a second; inf: all at once.")
    add("--burstiness", type=rate, default=1.0, metavar="X", help="1: Poisson arrivals; more is more even.")
    add("--max-concurrency", type=positive, metavar="N", help="Most requests on their way at once.")
    add("--ramp-up-strategy", choices=("linear", "exponential"), help="How the rate grows, instead of --request-rate.")
    add("--ramp-up-start-rps", type=rate, metavar="X", help="Rate that it grows from.")
    add("--ramp-up-end-rps", type=rate, metavar="X", help="Rate that it grows to.")
    add("--num-warmups", type=natural, default=0, metavar="N", help="Requests sent before, unmeasured.")
    add("--num-client-processes", type=positive, default=1, metavar="N", help="Processes that send.")
    add("--request-timeout", type=rate, default=3600.0, metavar="X", help="Most seconds without a byte.")
    add("--allow-failures", action="store_true", help="Exit with 0 even if requests failed.")


def add_request(parser: FlagParser) -> None:
    add = parser.add_argument_group("request").add_argument
    for name in SAMPLING:
        kind = int if name == "top_k" else number
        add(f"--{name.replace('_', '-')}", type=kind, metavar="X", help="[the server's]")
    add("--ignore-eos", action="store_true", help="Generate on after an end-of-sequence token.")
    add("--use-beam-search", action="store_true", help="Ask for beam search.")
    add("--logprobs", type=int, metavar="N", help="Ask for the log-probabilities of N tokens at each place.")
    add("--extra-body", type=json_object, default={}, metavar="JSON", help="Further fields of every request.")


def add_output(parser: FlagParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add("--percentile-metrics", type=metrics, metavar="LIST", help=f"{', '.join(TITLES)}. [ttft,tpot,itl]")
    percentile = reader(float, lambda value: 0 <= value <= 100, "percentile between 0 and 100")
    add("--metric-percentiles", type=listed(percentile), default=[99.0], metavar="LIST", help="Of these metrics. [99]")
    many: dict[str, Any] = {"action": "extend", "default": []}
    add("--goodput", nargs="+", type=promise, metavar="METRIC:MS", help="Count requests within limits.", **many)
    add("--save-result", action="store_true", help="Write the figures to a JSON file.")
    add("--append-result", action="store_true", help="Add them to the file as a further line.")
    add("--save-detailed", action="store_true", help="Write those of every request too, also as .csv and .txt.")
    add("--result-dir", metavar="DIR", help="Where files go. [.]")
    add("--result-filename", metavar="NAME", help="[by backend, rate, model and date]")
    add("--metadata", nargs="*", type=pair, metavar="K=V", help="Facts to write into the file.", **many)
    add("--label", metavar="TEXT", help="Name of the run, in the file and in its name.")
    add("--disable-tqdm", action="store_true", help="Show no progress.")


def check(arguments: argparse.Namespace) -> None:
    """Fill in what depends on the backend. Raises ConfigError for flags that don't go together."""
    for name, why in ELSEWHERE.items():
        if getattr(arguments, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is not for Headrace: {why}.")
    pooling = not api_of(arguments).streamed
    if pooling and request_fields(arguments) != arguments.extra_body:
        raise ConfigError(f"--backend {arguments.backend} generates nothing: leave the flags of sampling out.")
    if pooling and arguments.percentile_metrics is None:
        arguments.percentile_metrics = ["e2el"]
    arguments.percentile_metrics = arguments.percentile_metrics or GENERATING
    arguments.goodput = dict(arguments.goodput)
    ramp = arguments.ramp_up_start_rps, arguments.ramp_up_end_rps
    if len({value is None for value in (arguments.ramp_up_strategy, *ramp)}) == 2:
        raise ConfigError("--ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps need each other.")
    if arguments.ramp_up_strategy and arguments.request_rate != math.inf:
        raise ConfigError("--request-rate and --ramp-up-strategy both say how fast to send: leave one out.")


def api_of(arguments: argparse.Namespace) -> Api:
    if arguments.backend not in APIS:
        raise ConfigError(f"there is no --backend {arguments.backend!r}; there are {', '.join(APIS)}.")
    return APIS[arguments.backend]


def base_url(arguments: argparse.Namespace) -> str:
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    return address(arguments.base_url or f"http://{host}:{arguments.port}")


def headers_of(arguments: argparse.Namespace) -> dict[str, str]:
    return bearer(api_key()) | dict(arguments.header)


def request_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """What every request's body has beside the prompt."""
    fields = {name: value for name in SAMPLING if (value := getattr(arguments, name)) is not None}
    fields |= {name: True for name in ("ignore_eos", "use_beam_search") if getattr(arguments, name)}
    if arguments.logprobs is not None:
        chat = arguments.backend == "openai-chat"
        fields |= {"logprobs": True, "top_logprobs": arguments.logprobs} if chat else {"logprobs": arguments.logprobs}
    return fields | arguments.extra_body


def rates_of(arguments: argparse.Namespace, count: int) -> np.ndarray:
    """The rate at which each of ``count`` requests comes, per second."""
    if arguments.ramp_up_strategy is None:
        return np.full(count, arguments.request_rate)
    space = np.geomspace if arguments.ramp_up_strategy == "exponential" else np.linspace
    return space(arguments.ramp_up_start_rps, arguments.ramp_up_end_rps, count)


# -- values of flags ------------------------------------------------------------------------------------------------


def pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form KEY=VALUE")
    return key, value


def header(text: str) -> tuple[str, str]:
    if not (text.isascii() and text.isprintable()):
        raise argparse.ArgumentTypeError(f"{text!r} has characters that no header can have")
    return pair(text)


def promise(text: str) -> tuple[str, float]:
    metric, colon, limit = text.partition(":")
    if metric not in PROMISES or not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form METRIC:MS with one of {', '.join(PROMISES)}")
    return metric, rate(limit)


def metrics(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if unknown := set(names) - set(TITLES):
        raise argparse.ArgumentTypeError(f"there is no metric {min(unknown)!r}; there are {', '.join(TITLES)}")
    return names


def json_object(text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
