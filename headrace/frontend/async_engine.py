"""vLLM's AsyncLLMEngine: an AsyncLLM that is made without waiting and starts when it is first asked for something.

Owns the start and the end; all else is the AsyncLLM's.
"""

import asyncio
import inspect
import uuid
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from headrace.config import Config
from headrace.errors import HeadraceError
from headrace.frontend.async_llm import AsyncLLM


class AsyncLLMEngine:
    """``AsyncLLMEngine.from_engine_args(AsyncEngineArgs(…))``; awaited, it is the ``AsyncLLM``, ready.

    Its methods are those of ``AsyncLLM``. Each raises ``ConfigError`` or ``EngineDeadError`` if the start failed.
    """

    def __init__(self, config: Config):
        self.config = config
        self._starting: asyncio.Task[AsyncLLM] | None = None

    @classmethod
    def from_engine_args(cls, engine_args: Any) -> "AsyncLLMEngine":
        """Raises ``ConfigError`` if an option can't be honoured."""
        return cls(engine_args.create_engine_config())

    def __await__(self) -> Generator[Any, None, AsyncLLM]:
        if self._starting is None:
            self._starting = asyncio.ensure_future(AsyncLLM.start(self.config))
        return asyncio.shield(self._starting).__await__()

    def __getattr__(self, name: str) -> Any:
        method = getattr(AsyncLLM, name, None)
        if inspect.isasyncgenfunction(method):
            return partial(self._stream, name)
        if inspect.iscoroutinefunction(method):
            return partial(self._call, name)
        raise AttributeError(f"AsyncLLMEngine has no {name!r}; await it for the AsyncLLM itself.")

    async def _stream(self, name: str, *arguments: Any, **options: Any) -> AsyncGenerator[Any, None]:
        async with aclosing(getattr(await self, name)(*arguments, **options)) as outputs:
            async for output in outputs:
                yield output

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return await getattr(await self, name)(*arguments, **options)

    @property
    def errored(self) -> bool:
        """Whether the start failed, or the engine has died."""
        if self._starting is None or not self._starting.done():
            return False
        return self._starting.exception() is not None or self._starting.result().health() is not None

    @property
    def is_running(self) -> bool:
        return self._starting is not None and self._starting.done() and not self.errored

    def shutdown(self) -> "asyncio.Future[None]":
        """End the engine process: at once if this is awaited, else as soon as the caller awaits anything."""

        async def end() -> None:
            if self._starting is not None:
                with suppress(HeadraceError):  # of a start that failed, as its requests were told
                    await (await self).shutdown()

        return asyncio.ensure_future(end())


def random_uuid() -> str:
    """32 hexadecimal digits, as vLLM's users name requests by."""
    return uuid.uuid4().hex
