"""``headrace run-batch``: answer a file of requests, without a server."""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from headrace import logs
from headrace.cli.main import SIGINT_EXIT
from headrace.cli.parser import ENGINE_GROUPS, FlagParser, add_option, add_options, options_from
from headrace.config import OPTIONS, Config
from headrace.errors import ConfigError

# Options of a server that shape its answers, and so a batch's.
SHARED = (
    *("enable_prompt_tokens_details", "enable_force_include_usage", "return_tokens_as_token_ids"),
    *("enable_log_requests", "max_request_bytes", "disable_log_stats"),
)


def add_arguments(parser: FlagParser) -> None:
    add = parser.add_argument
    add("-i", "--input-file", required=True, metavar="FILE", help="Requests in OpenAI's batch format, or their URL.")
    add("-o", "--output-file", required=True, metavar="FILE", help="Where the answers go, or a URL to PUT them to.")
    add("--output-tmp-dir", default=".", metavar="DIR", help="Where they stay until they are PUT.")
    add(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Keep what an earlier run has answered. [on]",
    )
    add("--response-role", choices=["assistant"], default="assistant", help="The role of chats' answers.")
    add("--enable-metrics", action="store_true", help="Serve Prometheus metrics meanwhile, at --host and --port.")
    add("--host", "--url", default="0.0.0.0", metavar="ADDRESS", help="Address that they are served at.")
    add("--port", default="8000", metavar="N", help="Port that they are served at.")
    section = parser.add_argument_group("answers and logs")
    for name in SHARED:
        add_option(section, OPTIONS[name])
    add_options(parser, ENGINE_GROUPS)
    parser.usage = "%(prog)s -i FILE -o FILE [MODEL] [FLAG …]"


def run(arguments: argparse.Namespace) -> int:
    options = {name: value for name, value in options_from(arguments).items() if name != "api_key"}
    logs.configure()
    config = Config.from_kwargs(**options, disable_ui=True, disable_fastapi_docs=True)
    if arguments.enable_metrics and config.server.disable_log_stats:
        raise ConfigError("--enable-metrics has nothing to show with --disable-log-stats: leave one of them out.")
    if arguments.input_file == arguments.output_file:
        raise ConfigError("--input-file and --output-file are the same: name another output.")
    from headrace.server.batch.transfer import download, is_url, upload

    output = Path(arguments.output_tmp_dir, name_of(url)) if is_url(url := arguments.output_file) else Path(url)
    with tempfile.TemporaryDirectory(prefix="headrace-batch-") as folder:
        source = Path(arguments.input_file)
        if is_url(arguments.input_file):
            source = Path(folder, "input.jsonl")
            download(arguments.input_file, source)
        code = answer(arguments, config, source, output)
    if code == 0 and is_url(url):
        upload(output, url)
        output.unlink()
    return code


def name_of(url: str) -> str:
    """The file name for an output that goes to ``url``: the same in each run, even where each signs its URL anew."""
    parts = urlsplit(url)
    digest = hashlib.sha256(f"{parts.netloc}{parts.path}".encode()).hexdigest()[:8]
    return f"{Path(parts.path).stem or 'output'}-{digest}.jsonl"


def answer(arguments: argparse.Namespace, config: Config, source: Path, output: Path) -> int:
    """Answer what is open; returns the exit code."""
    from headrace.server.batch.job import Job
    from headrace.server.batch.offline import Interrupted, run_job

    address = (arguments.host, OPTIONS["port"].parse(arguments.port))
    model, limit = config.model.model or "", config.server.max_request_bytes
    with Job(source, output, model=model, limit=limit, resume=arguments.resume) as job:
        try:
            if job.answered < job.total:
                run_job(config, job, address if arguments.enable_metrics else None)
        except Interrupted as error:
            print(
                f"{error} {job.answered} of {job.total} lines are answered: run this again to go on.", file=sys.stderr
            )
            return SIGINT_EXIT
        job.complete()
        failures = f", {job.failed} of them with an error" if job.failed else ""
        print(
            f"{job.total} {'line is' if job.total == 1 else 'lines are'} answered{failures}: {output}", file=sys.stderr
        )
    return 0
