"""The parent's side of an engine process: starts it, talks to it, notices its death. Knows no text and no requests."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from headrace.config import Config
from headrace.engine.process import Boot
from headrace.errors import ConfigError, EngineDeadError
from headrace.models.source import ModelFiles
from headrace.types import EngineInfo, Fatal, FromEngine, Outputs, Profiled, Progress, Shutdown, ToEngine

PROGRAM: tuple[str, ...] = ("-m", "headrace.engine.process")  # what Python runs as the engine
STOP_SECONDS = 5.0  # that the engine gets to leave by itself


class EngineProcess:
    """One engine process, and the two sockets to it. Use ``start``."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path, context: zmq.asyncio.Context):
        self.process = process
        self._directory = directory
        self._context = context
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
        self._push, self._pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
        for socket, name in ((self._push, "in"), (self._pull, "out")):
            socket.set_hwm(0)
            socket.linger = 0
            socket.bind(_address(directory, name))
        self.heard_at = time.monotonic()  # when the engine last said anything
        self.last_words: Fatal | None = None
        self._exit = asyncio.ensure_future(process.wait())

    @classmethod
    async def start(
        cls, config: Config, files: ModelFiles, on_progress: Callable[[Progress], None]
    ) -> tuple["EngineProcess", EngineInfo]:
        """Start an engine and wait until it is ready. Raises ``ConfigError``, or ``EngineDeadError`` if it dies."""
        directory = Path(tempfile.mkdtemp(prefix="headrace-"))  # private to this user, as the sockets must be
        alone = () if {"", os.getcwd()} & set(sys.path) else ("-P",)  # -m would put a stranger's directory in front
        process = await asyncio.create_subprocess_exec(sys.executable, *alone, *PROGRAM, stdin=asyncio.subprocess.PIPE)
        engine = cls(process, directory, zmq.asyncio.Context())
        try:
            boot = Boot(config.to_json(), files, _address(directory, "in"), _address(directory, "out"))
            assert process.stdin is not None  # it is a pipe
            with suppress(ConnectionError):  # it is dead, of which receive will tell
                process.stdin.write(msgspec.json.encode(boot) + b"\n")
                await process.stdin.drain()
            info = None
            while info is None:
                for heard in await engine.receive():
                    if isinstance(heard, Progress):
                        on_progress(heard)
                    elif isinstance(heard, EngineInfo):
                        info = heard
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and process.returncode is None:
                process.kill()  # it listens to nobody before it is ready, and has nothing to finish
                await process.wait()
            await engine.stop()
            if isinstance(error, EngineDeadError) and engine.last_words and engine.last_words.user_error:
                raise ConfigError(engine.last_words.message) from None
            raise
        return engine, info

    async def send(self, message: ToEngine) -> None:
        await self._push.send(self._encoder.encode(message))

    async def receive(self) -> list[Outputs | Progress | EngineInfo | Profiled]:
        """All the engine has said since the last call, waiting for a first message: who fell behind catches up at once.

        Raises ``EngineDeadError`` once it has died and said all it had to say.
        """
        while True:
            arriving = asyncio.ensure_future(self._pull.recv())
            await asyncio.wait({arriving, self._exit}, return_when=asyncio.FIRST_COMPLETED)
            if not arriving.done():
                try:
                    await asyncio.wait_for(asyncio.shield(arriving), 0.2)  # last words may still be on their way
                except TimeoutError:
                    arriving.cancel()
                    raise EngineDeadError(self.death()) from None
            said = [self._decoder.decode(arriving.result())]
            with suppress(zmq.Again):
                while True:
                    said.append(self._decoder.decode(await self._pull.recv(zmq.NOBLOCK)))
            self.heard_at = time.monotonic()
            self.last_words = next((message for message in said if isinstance(message, Fatal)), self.last_words)
            if heard := [message for message in said if not isinstance(message, Fatal)]:
                return heard

    def death(self) -> str:
        """Why the engine is gone, in one sentence."""
        if self.last_words is not None:
            return f"The engine failed: {self.last_words.message.rstrip('.')}."
        code = self.process.returncode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"exited with code {code}"
        return f"The engine process {how}."

    async def stop(self) -> None:
        """End the process, gently if it listens, and clean up. May be called more than once."""
        if self.process.returncode is None and not self._push.closed:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self.send(Shutdown())  # which waits for one that never came as far as to connect
                    await asyncio.shield(self._exit)
            except TimeoutError:
                self.process.kill()
            await self._exit
        if not self._push.closed:
            self._push.close()
            self._pull.close()
            self._context.term()
        shutil.rmtree(self._directory, ignore_errors=True)


def _address(directory: Path, name: str) -> str:
    return f"ipc://{directory}/{name}"
