"""How many tokens a second the API process turns into streamed text, and what each costs it.

    python benchmarks/api_side.py [--rates 20000 40000] [--streams 256] [--tokens 600]

Three processes: a real server; a real engine and scheduler whose runner computes nothing but gives random tokens at the
offered rate; and this one, which reads that many streamed /v1/completions at once and checks the text of each.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from headrace.types import EngineInfo, KVCacheLayout, KVGroup, LedgerEntry, Plan, Sampled, StepCost

MODEL_LEN, BLOCK, NUM_BLOCKS = 8192, 16, 65_536
TOKEN_IDS = random.Random(0).choices(range(300, 20_000), k=4096)  # words, and parts of words, of the default model


class PacedRunner:
    """Stands for the device: ``rate`` tokens a second."""

    steps_in_flight = 2

    def __init__(self, rate: float):
        self.rate, self.done_at = rate, 0.0

    def execute(self, plan: Plan) -> Callable[[], Sampled]:
        self.done_at = done_at = max(self.done_at, time.perf_counter()) + len(plan.sampled) / self.rate
        tokens = [TOKEN_IDS[(row * 17 + plan.step) % len(TOKEN_IDS)] for row in range(len(plan.sampled))]

        def wait() -> Sampled:
            time.sleep(max(0.0, done_at - time.perf_counter()))
            return Sampled(tokens)

        return wait

    def prepare(self) -> bool:
        return False


def run_engine(rate: float, max_num_seqs: int) -> None:
    """The engine process as it is, but for the model."""
    from llguidance import LLTokenizer

    from headrace.engine.core import Engine
    from headrace.engine.grammar import Grammars
    from headrace.engine.scheduler import Limits, Scheduler

    def build_engine(*_: Any) -> Engine:
        limits = Limits(MODEL_LEN, max_num_seqs, MODEL_LEN)
        layout = KVCacheLayout(BLOCK, NUM_BLOCKS, [KVGroup([0], None)], 1)
        scheduler = Scheduler(limits, layout, True, Grammars(lambda: LLTokenizer("byte"), 512, []))
        info = EngineInfo(
            *("None", "none", "none", 49_152, MODEL_LEN, [2], BLOCK, NUM_BLOCKS, NUM_BLOCKS * BLOCK, 128.0, {}),
            [LedgerEntry("nothing", 0.0)],
            StepCost(0, 0, 0, 0, 0),
        )
        return Engine(scheduler, PacedRunner(rate), info, 0)

    sys.modules["headrace.engine.start"] = types.SimpleNamespace(build_engine=build_engine)  # type: ignore[assignment]
    from headrace.engine import process

    process.main()


def run_server(port: int, *engine: str) -> None:
    from headrace.config import Config
    from headrace.engine import client
    from headrace.server import launch

    client.PROGRAM = (os.path.abspath(__file__), "--role", "engine", *engine)
    sys.exit(launch.run_server(Config.from_kwargs(host="127.0.0.1", port=port)))


class Stream(asyncio.Protocol):
    """One request, and all that came back."""

    def __init__(self, request: bytes):
        self.request, self.received = request, bytearray()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


def events(received: bytes) -> list[dict[str, Any]]:
    """The JSON of each server-sent event of an HTTP answer."""
    body = received.partition(b"\r\n\r\n")[2]
    lines = re.findall(rb"data: (.*)\n\n", re.sub(rb"\r\n[0-9a-f]+\r\n", b"", b"\r\n" + body))
    assert lines[-1] == b"[DONE]", received[-200:]
    return [json.loads(line) for line in lines[:-1]]


def http_request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def measure(port: int, streams: int, tokens: int) -> dict[str, float]:
    body = {"prompt": [1000] * 8, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    request = http_request(body | {"stream_options": {"include_usage": True}})
    loop = asyncio.get_running_loop()
    cpu, own, started = cpu_seconds(port), time.process_time(), time.perf_counter()
    opened = [await loop.create_connection(lambda: Stream(request), "127.0.0.1", port) for _ in range(streams)]
    await asyncio.gather(*(stream.ended for _, stream in opened))
    elapsed, own = time.perf_counter() - started, time.process_time() - own
    cpu = cpu_seconds(port) - cpu
    chunks = 0
    for _, stream in opened:
        *parts, last = events(bytes(stream.received))
        chunks += len(parts)
        assert last["usage"]["completion_tokens"] == tokens and parts[-1]["choices"][0]["finish_reason"] == "length"
    total = streams * tokens
    return {
        "tokens_per_second": total / elapsed,
        "tokens_per_chunk": total / chunks,
        "api_cpu_us_per_token": cpu / total * 1e6,
        "api_cpu_share": cpu / elapsed,
        "client_cpu_share": own / elapsed,
    }


def cpu_seconds(port: int) -> float:
    return metric(port, "process_cpu_seconds_total")


def metric(port: int, name: str) -> float:
    """What the API process says about itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return float(re.search(rf"^{name}(?:{{.*}})? (\S+)", answer.read().decode(), re.M)[1])  # type: ignore[index]


@contextmanager
def serving(rate: float, max_num_seqs: int) -> Iterator[int]:
    """The port of a server whose engine runs that many requests at once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, os.path.abspath(__file__), "--role", "server", "--port", str(port)]
    command += ["--rates", str(rate), "--streams", str(max_num_seqs)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                    break
                except urllib.error.URLError:
                    assert server.poll() is None, "the server ended"
                    time.sleep(0.1)
            yield port
        finally:
            server.send_signal(signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[20_000, 40_000], help="tokens a second to offer")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=600, help="of each stream")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument("--role", choices=["server", "engine"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role == "engine":
        return run_engine(arguments.rates[0], arguments.streams)
    if arguments.role == "server":
        return run_server(arguments.port, "--rates", str(arguments.rates[0]), "--streams", str(arguments.streams))
    print("offered tok/s | received tok/s | tokens a chunk | API CPU, µs a token | API, cores | client, cores")
    rows = []
    for rate in arguments.rates:
        with serving(rate, arguments.streams) as port:
            uvloop.run(measure(port, 8, 20))  # warm-up
            rows.append(row := {"offered": rate, **uvloop.run(measure(port, arguments.streams, arguments.tokens))})
        print("{:13.0f} | {:14.0f} | {:14.2f} | {:19.1f} | {:10.2f} | {:13.2f}".format(*row.values()), flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file)
    return None


if __name__ == "__main__":
    main()
