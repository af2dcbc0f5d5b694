"""A server that is a process, with a scripted engine: forked from one that has imported everything once."""

import asyncio
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

from headrace.config import Config
from headrace.frontend.door import Admitted
from headrace.server import launch, tls
from tests.unit.fake_engine import FakeEngine

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])


class Engine(FakeEngine):
    """Takes a moment for each token and dies of "die"; the model "slow" takes long to start.

    From the first "wait" on, requests wait after their first token for a SIGUSR1, or for the shutdown.
    """

    @classmethod
    async def start(cls, config: Config, on_progress: Any = None) -> "Engine":
        engine = await super().start(config, on_progress)
        engine.reply, engine.gate, engine.go_on = "Hello", lambda: asyncio.sleep(0.1), asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, engine.go_on.set)
        if config.model.model == "slow":
            print("starting", file=sys.stderr, flush=True)
            await asyncio.sleep(60)
        return engine  # type: ignore[return-value]

    def run(self, admitted: Admitted, *arguments: Any, **options: Any) -> Any:
        prompt = self.tokenizer.decode(admitted.token_ids)
        if prompt == "die":
            asyncio.get_running_loop().call_later(0.2, self.die, "It was killed.")
        if "wait" in prompt:
            self.gate = self.go_on.wait
        return super().run(admitted, *arguments, **options)

    async def shutdown(self, timeout: float = 0) -> None:
        await super().shutdown(timeout)
        self.go_on.set()


def serve(options: dict[str, Any], log: Connection) -> None:
    """Serve in this process, which ends with it; ``log`` gets what it writes."""
    os.dup2(log.fileno(), 2)
    launch.AsyncLLM = Engine  # type: ignore[misc, assignment]
    tls.LOOK_SECONDS = 0.1
    sys.exit(launch.run_server(Config.from_kwargs(**options)))
