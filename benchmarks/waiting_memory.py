"""Memory that a waiting request takes in the API process and in the engine process.

    python benchmarks/waiting_memory.py [--requests 10000]

One slow request runs; the others, of 8 tokens, wait behind it: as streamed completions on a connection each, and, in a
second run, as calls of AsyncLLM.generate in this process, which leaves the web server's part out.
"""

import argparse
import asyncio
import json
import os
import re
import resource
import time
from pathlib import Path
from typing import Any

import api_side
import uvloop
from api_side import Stream, http_request, metric, serving

from headrace.config import Config
from headrace.engine import client
from headrace.frontend.async_llm import AsyncLLM
from headrace.types import OutputKind, SamplingParams

RATE = 20  # tokens a second, so that the engine looks at its messages as often


def resident(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024  # type: ignore[index]


def processes(port: int) -> dict[str, int]:
    """The process that listens on ``port``, and its child."""
    commands = {int(path.parent.name): path.read_bytes().split(b"\0") for path in Path("/proc").glob("[0-9]*/cmdline")}
    (server,) = (pid for pid, words in commands.items() if b"server" in words and str(port).encode() in words)
    children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
    return {"API": server, "engine": int(children[0])}


async def measure(port: int, count: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    pids = processes(port)
    opened: list[Any] = []

    async def wait_for(total: int) -> None:
        body = {"prompt": [1000] * 8, "max_tokens": 4000, "ignore_eos": True, "stream": True}
        while len(opened) < total:
            opened.append(await loop.create_connection(lambda: Stream(http_request(body)), "127.0.0.1", port))
        while await asyncio.to_thread(metric, port, "vllm:num_requests_waiting") < total - 1:
            await asyncio.sleep(0.5)

    await wait_for(200)  # what the first ones make the process load is not theirs
    before = {name: resident(pid) for name, pid in pids.items()}
    started = time.perf_counter()
    await wait_for(200 + count)
    seconds = time.perf_counter() - started
    found = {name: (resident(pid) - before[name]) / count for name, pid in pids.items()}
    for transport, _ in opened:
        transport.abort()
    while await asyncio.to_thread(metric, port, "vllm:num_requests_waiting"):
        await asyncio.sleep(0.5)
    left = {f"{name}, left": (resident(pid) - before[name]) / count for name, pid in pids.items()}
    return found | left | {"seconds": seconds}


async def measure_handle(count: int) -> float:
    """Bytes a request of AsyncLLM takes by itself."""
    client.PROGRAM = (api_side.__file__, "--role", "engine", "--rates", str(RATE), "--streams", "1")
    params = SamplingParams(max_tokens=4000, ignore_eos=True, output_kind=OutputKind.DELTA)
    tasks: list[asyncio.Future[Any]] = []
    async with await AsyncLLM.start(Config()) as llm:

        async def last() -> None:
            async for _ in llm.generate([1000] * 8, params.clone()):
                pass

        async def wait_for(total: int) -> int:
            tasks.extend(asyncio.ensure_future(last()) for _ in range(total - len(tasks)))
            while llm.num_unfinished < total:
                await asyncio.sleep(0.5)
            return resident(os.getpid())

        before = await wait_for(200)
        used = await wait_for(200 + count) - before
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    return used / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a connection each, here and in the server
    with serving(RATE, 1) as port:
        found: dict[str, Any] = uvloop.run(measure(port, arguments.requests))
    found["handle"] = uvloop.run(measure_handle(arguments.requests))
    for name in ("API", "engine"):
        print(f"{name} process: {found[name]:.0f} bytes a request; {found[name + ', left']:.0f} after all have left")
    print(f"AsyncLLM alone: {found['handle']:.0f} bytes a request")
    print(f"taken in within {found['seconds']:.1f} s")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
