"""`headrace lab`: start a server, chat with it, measure it, keep everything that a reader needs, and write the page.

The folder holds server.log (DEBUG), chat.json, benchmark.json, metrics before and after, environment and versions,
and report.html. The server is any that speaks OpenAI's API; the benchmark is a command.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from headrace.bench import snapshot
from headrace.bench.api import APIS, BadReply, Reply
from headrace.bench.client import Client, Lost, Target
from headrace.bench.datasets import Sample
from headrace.bench.files import write_json
from headrace.bench.measures import statistics
from headrace.bench.parameters import measuring, with_defaults
from headrace.bench.report import report
from headrace.bench.server import key_of, run_command, serving, tail, url_of
from headrace.command import HEADRACE, as_typed
from headrace.errors import HeadraceError
from headrace.remote import WORK_SECONDS, bearer, first_model, key_environment

QUESTIONS = (
    "In two sentences, what does a water wheel do?",
    "Name three things that make a bridge stand.",
    "Why is the sky blue? Keep it short.",
    "Write one line of advice to a new engineer.",
    "How do tides come about? Answer briefly.",
)
WORKLOAD = {  # of the benchmark, unless its command says otherwise
    "dataset_name": "random",
    "num_prompts": 32,
    "random_input_len": 128,
    "random_output_len": 64,
    "max_concurrency": 8,
    "ignore_eos": True,
}
RESULT = "benchmark.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Lab:
    """What to start, what to measure it with, and where to keep what comes of it."""

    folder: Path
    serve: list[str]
    bench: list[str]
    chats: int
    chat_tokens: int
    ready_seconds: float
    show: bool


def run_lab(lab: Lab, say: Callable[[str], None]) -> int:
    """Returns how many parts failed; a failed part is told in the report. Raises HeadraceError if no server starts."""
    serve, url = with_debug_log(lab.serve), url_of(lab.serve)
    key = key_of(serve)
    bench = measuring(lab.bench, url, lab.folder / RESULT, WORKLOAD, {"save_detailed": True})
    write_json(lab.folder / snapshot.COMMANDS, {"serve_cmd": as_typed(serve), "bench_cmd": as_typed(bench)})
    say("taking down the environment")
    snapshot.save_environment(lab.folder)
    say(f"starting {as_typed(serve)}")
    log = lab.folder / snapshot.SERVER_LOG
    debug = {"VLLM_LOGGING_LEVEL": "DEBUG"}
    started = time.monotonic()
    with (
        serving(serve, url, log, ready_seconds=lab.ready_seconds, show=lab.show, environment=debug),
        snapshot.observed(url, key, lab.folder) as (server, _),
    ):
        say(f"ready after {time.monotonic() - started:.1f} s")
        chats = Target(url + APIS["openai-chat"].endpoint, "openai-chat", bearer(key), WORK_SECONDS)
        failures = [check_chat(lab, server, chats, say)] if lab.chats else []
        failures.append(measure(lab, bench, key, say))
    (lab.folder / REPORT).write_text(report(lab.folder))
    return sum(failures)


def with_debug_log(serve: Sequence[str]) -> list[str]:
    """The server's command, so that it logs all it can; others than ours are told by vLLM's environment variable."""
    ours = list(serve[:4]) == [*HEADRACE, "serve"]
    return with_defaults(serve, {"uvicorn_log_level": "debug"} if ours else {})


def measure(lab: Lab, bench: Sequence[str], key: str | None, say: Callable[[str], None]) -> bool:
    """Run the benchmark; whether it failed."""
    say(f"measuring: {as_typed(bench)}")
    log = lab.folder / "benchmark.log"
    code = run_command(bench, log, show=lab.show, environment=key_environment(key))
    if code:
        say(f"the benchmark ended with code {code}:\n{tail(log)}")
    return code != 0


def check_chat(lab: Lab, server: httpx.Client, target: Target, say: Callable[[str], None]) -> bool:
    """Ask questions one after another and keep what the answers took; whether that failed."""
    kept: dict[str, Any] = {"chats": []}
    try:
        model = first_model(server)["id"]
        for number in range(lab.chats):
            question = QUESTIONS[number % len(QUESTIONS)]
            kept["chats"].append(ask(target, model, question, lab.chat_tokens))
    except (HeadraceError, BadReply, Lost) as error:
        kept["error"] = f"The chat check ended early: {error}"
        say(kept["error"])
    for name in ("ttft", "total") if kept["chats"] else ():
        kept |= statistics(name, np.array([chat[f"{name}_ms"] for chat in kept["chats"]]), [99])
    if kept["chats"]:
        say("chat: TTFT median {median_ttft_ms:.0f} ms, whole answer {median_total_ms:.0f} ms".format(**kept))
    write_json(lab.folder / snapshot.CHAT, kept)
    return "error" in kept


def ask(target: Target, model: str, question: str, max_tokens: int) -> dict[str, Any]:
    """One streamed chat: its answer, its tokens, and milliseconds to the first of them and to the end.

    Raises Lost or BadReply with the reason if there is no answer.
    """
    fields, reply = {"model": model, "max_tokens": max_tokens, "temperature": 0.2}, Reply()

    async def send() -> float:
        async with Client(target) as client:
            started = time.perf_counter()
            await client.send(target.api.body(Sample(question, 0, None)) | fields, reply)
        return started

    started = asyncio.run(send())
    first = next((moment for moment, piece in zip(reply.times, reply.pieces, strict=True) if piece), None)
    if first is None:
        raise BadReply("the server answered a chat with no text.")
    times = {"ttft_ms": 1000 * (first - started), "total_ms": 1000 * (reply.times[-1] - started)}
    return {"prompt": question, "answer": "".join(reply.pieces), "tokens": reply.output_tokens or 0} | times
