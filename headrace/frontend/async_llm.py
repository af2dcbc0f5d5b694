"""The asynchronous handle on an engine process: prompts in, streams of RequestOutputs out.

Owns the requests under way and the engine's process; does not know HTTP. One task reads the engine's messages and
wakes whoever waits for them; texts are tokenized in threads.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from headrace.config import Config
from headrace.engine.client import EngineProcess
from headrace.errors import (
    EngineDeadError,
    HeadraceError,
    ProfilerActiveError,
    ProfilerError,
    QueueFullError,
    RequestError,
    ShuttingDownError,
)
from headrace.frontend.beam import new_track
from headrace.frontend.door import Admitted, Door, Prompt, load_tokenizer
from headrace.frontend.grammar import check_grammar_async
from headrace.frontend.observer import Observer
from headrace.frontend.pooling import PoolingTrack, with_tensor
from headrace.frontend.tokenizer import Tokenizer
from headrace.frontend.tracker import Track, Tracker
from headrace.frontend.validation import tokenization
from headrace.models import source
from headrace.types import (
    Abort,
    Outputs,
    PoolingParams,
    PoolingRequestOutput,
    Profile,
    Profiled,
    Progress,
    RequestOutput,
    ResetPrefixCache,
    SamplingParams,
    Stats,
)

if TYPE_CHECKING:
    from headrace.frontend.async_engine import AsyncLLMEngine

TOKENIZER_THREADS = 4
T = TypeVar("T")


async def in_own_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What ``work`` returns or raises, in a thread that nobody waits for who leaves: a download may take hours."""
    done: Future[T] = Future()

    def run() -> None:
        if not done.set_running_or_notify_cancel():
            return
        try:
            done.set_result(work(*arguments))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(done)


class Bell:
    """An asyncio.Event for one who waits: a tenth of its memory, half of its time."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung, self._waiter = False, None  # type: tuple[bool, asyncio.Future[None] | None]

    def ring(self) -> None:
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def heard(self) -> None:
        """Wait until it has rung since the last time."""
        if not self._rung:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._rung = False


class AsyncLLM:
    """A served model. Make one with ``await AsyncLLM.start(config)``; end it with ``await shutdown()``."""

    def __init__(self, config: Config, served_names: list[str], engine: EngineProcess, door: Door):
        self.config, self.served_names = config, served_names
        self.door, self.info = door, door.info
        self._engine = engine
        self.observers: list[Observer] = []
        self._tracker = Tracker(self.observers)
        self._news: dict[str, Bell] = {}  # by request id: rings when there is something to give
        self._threads = ThreadPoolExecutor(TOKENIZER_THREADS, "tokenizer")
        self._stats = Stats()
        self._profiling = asyncio.Lock()  # held while the engine begins or ends a profile
        self._profiled: asyncio.Future[Profiled] | None = None
        self._draining = False
        self._death: str | None = None
        self._dead = asyncio.Event()
        self._reader = asyncio.ensure_future(self._read())

    @classmethod
    async def start(cls, config: Config, on_progress: Callable[[Progress], None] | None = None) -> "AsyncLLM":
        """Find the model, start its engine and wait until it is ready, loading the tokenizer meanwhile.

        Raises ``ConfigError`` if it can't be served as asked, ``EngineDeadError`` if the engine fails.
        """
        files = await in_own_thread(source.resolve, config.model, config.load)
        tokenizing = asyncio.create_task(in_own_thread(load_tokenizer, files, config))
        try:
            engine, info = await EngineProcess.start(config, files, on_progress or (lambda progress: None))
        except BaseException:
            tokenizing.cancel()
            raise
        try:
            door = Door(config, info, await tokenizing)
        except BaseException:
            await engine.stop()
            raise
        return cls(config, config.model.served_model_name or [files.name], engine, door)

    @staticmethod
    def from_engine_args(engine_args: Any) -> "AsyncLLMEngine":
        """An ``AsyncLLM`` to be, by vLLM's ``AsyncEngineArgs``: it starts when it is awaited, or first used."""
        from headrace.frontend.async_engine import AsyncLLMEngine  # which is made of this class

        return AsyncLLMEngine.from_engine_args(engine_args)

    # -- requests ---------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        return self.door.needed_tokenizer()

    async def get_tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.tokenizer.hf

    @property
    def num_unfinished(self) -> int:
        return len(self._tracker.tracks)

    async def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams,
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> Admitted:
        """Tokenize a prompt and make every check; nothing is queued. Raises what ``generate`` would."""
        self._check_open()
        arguments = (prompt, params, add_special_tokens, truncate_prompt_tokens)
        if isinstance(prompt, list):
            admitted = self.door.admit(*arguments)
        else:
            admitted = await asyncio.get_running_loop().run_in_executor(self._threads, self.door.admit, *arguments)
        if admitted.grammar is not None:
            await check_grammar_async(admitted.grammar)
        self._check_queue(len(admitted.token_ids))
        return admitted

    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
        **others: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Outputs as ``sampling_params.output_kind`` asks for them. Closing the generator early aborts the request.

        ``others``: what else vLLM's method takes.
        Raises ``RequestError``, ``QueueFullError`` or ``ShuttingDownError`` before anything is queued, and
        ``EngineDeadError`` if the engine dies.
        """
        own = {"add_special_tokens": add_special_tokens, "truncate_prompt_tokens": truncate_prompt_tokens}
        admitted = await self.prepare(prompt, sampling_params, **tokenization(others, **own))
        async with aclosing(self.run(admitted, request_id, priority=priority, cache_salt=cache_salt)) as outputs:
            async for output in outputs:
                yield output

    async def run(
        self, admitted: Admitted, request_id: str | None = None, *, priority: int = 0, cache_salt: str | None = None
    ) -> AsyncGenerator[RequestOutput, None]:
        """The outputs of what ``prepare`` has admitted, as ``generate`` gives them."""
        self._check_open()
        self._check_queue(len(admitted.token_ids))
        track = new_track(request_id or uuid.uuid4().hex, admitted, self.door, priority, cache_salt)
        async with self._under_way(track) as news:
            finished = False
            while not finished:
                await self._heard(track, news)
                finished = track.finished  # before the caller takes its time, in which there may be more
                output = track.output(self.config.frontend.stream_interval)
                if output is not None:
                    yield output

    async def prepare_pooling(
        self,
        prompts: Sequence[Prompt | tuple[str, str]],
        params: PoolingParams,
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> list[Admitted]:
        """Tokenize prompts, or pairs of texts, and make every check; nothing is queued."""
        self._check_open()

        def admit_all() -> list[Admitted]:
            cut = (add_special_tokens, truncate_prompt_tokens)
            return [self.door.admit_pooling(prompt, params, *cut) for prompt in prompts]

        ready = await asyncio.get_running_loop().run_in_executor(self._threads, admit_all)
        self._check_queue(sum(len(admitted.token_ids) for admitted in ready))
        return ready

    async def pool(
        self, admitted: Admitted, request_id: str | None = None, *, priority: int = 0, cache_salt: str | None = None
    ) -> PoolingRequestOutput:
        """Compute what ``prepare_pooling`` has admitted. Raises ``EngineDeadError`` if the engine dies meanwhile."""
        track = PoolingTrack(request_id or uuid.uuid4().hex, admitted, self.door, priority, cache_salt)
        async with self._under_way(track) as news:
            while not track.finished:
                await self._heard(track, news)
        return track.result()

    async def encode(
        self, prompt: Prompt, pooling_params: PoolingParams | None = None, request_id: str | None = None, **others: Any
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """The one result of a pooling request, as vLLM's clients expect to iterate over it."""
        params = PoolingParams() if pooling_params is None else pooling_params
        [admitted] = await self.prepare_pooling([prompt], params, **tokenization(others))
        yield with_tensor(await self.pool(admitted, request_id))

    @asynccontextmanager
    async def _under_way(self, track: Track) -> AsyncGenerator[Bell, None]:
        """Submit a request; who leaves before its end aborts it. The bell rings when there is something to give."""
        request_id = track.request_id
        if request_id in self._tracker.tracks:
            raise RequestError(f"The request id {request_id} is in use.", "request_id")
        self._tracker.add(track)
        news = self._news[request_id] = Bell()
        try:
            for submit in track.submits():
                await self._engine.send(submit)
            yield news
        finally:
            del self._news[request_id]
            if self._tracker.tracks.get(request_id) is track:
                await self.abort(request_id)

    async def _heard(self, track: Track, news: Bell) -> None:
        """Wait for a request's news. Raises whatever ended it too early."""
        await news.heard()
        if self._death is not None and not track.finished:
            raise self._end_error()
        if track.error is not None:
            raise RequestError(track.error, "structured_outputs")

    async def abort(self, request_ids: list[str] | str) -> None:
        """End requests; their generators give what there is, with finish reason abort."""
        for request_id in [request_ids] if isinstance(request_ids, str) else request_ids:
            engine_ids = self._tracker.abort(request_id)
            if news := self._news.get(request_id):
                news.ring()
            if engine_ids and self._death is None:
                await self._engine.send(Abort(engine_ids))

    async def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """As ``LLM.reset_prefix_cache``."""
        await self._engine.send(ResetPrefixCache(reset_running_requests))
        return True

    async def start_profile(self) -> None:
        """Begin to record a profile, as --profiler-config says. Raises ``ProfilerActiveError``, ``ProfilerError``."""
        await self._profile(start=True)

    async def stop_profile(self) -> list[str]:
        """End the profile, if one is being recorded; the last one's files, on the engine's host."""
        return (await self._profile(start=False)).files

    async def _profile(self, start: bool) -> Profiled:
        async with self._profiling:
            if self._death is not None:
                raise self._end_error()
            self._profiled = asyncio.get_running_loop().create_future()
            await self._engine.send(Profile(start))
            profiled = await self._profiled
        if profiled.error is not None:
            raise ProfilerActiveError(profiled.error) if profiled.was_active else ProfilerError(profiled.error)
        return profiled

    def _check_open(self) -> None:
        if self._death is not None:
            raise self._end_error()
        if self._draining:
            raise ShuttingDownError("The server is shutting down and takes no new requests.")

    def _check_queue(self, num_tokens: int) -> None:
        """Refuse what would wait behind more than the configured number of requests or tokens."""
        most_requests = self.config.scheduler.max_num_queued_reqs
        most_tokens = self.config.scheduler.max_num_queued_tokens
        if most_requests is None and most_tokens is None:
            return
        silent = [track for track in self._tracker.tracks.values() if not track.metrics.first_token_ts]
        num_begun = self.num_unfinished - len(silent)
        num_running = max(0, self._stats.num_running - num_begun)  # of the silent ones, by the engine's last word
        if most_requests is not None and len(silent) - num_running >= most_requests:
            over = "max_num_queued_reqs"
        elif most_tokens is not None and sum(len(t.admitted.token_ids) for t in silent) + num_tokens > most_tokens:
            over = "max_num_queued_tokens"
        else:
            return
        for observer in self.observers:
            observer.on_rejected(over)
        raise QueueFullError(f"The queue is full (--{over.replace('_', '-')}); try again soon.")

    # -- the engine -------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                for message in await self._engine.receive():  # all before any stream writes: a late one writes once
                    if isinstance(message, Outputs):
                        await self._take(message)
                    elif isinstance(message, Profiled) and self._profiled is not None and not self._profiled.done():
                        self._profiled.set_result(message)
        except EngineDeadError as error:
            self._die(str(error))
        except Exception as error:  # a bug here must not leave requests waiting for ever
            self._die(f"The reader of the engine's messages failed: {type(error).__name__}: {error}")
            raise

    async def _take(self, outputs: Outputs) -> None:
        changed, stopped, following = self._tracker.take(outputs.deltas, time.monotonic())
        for request_id in changed:
            if news := self._news.get(request_id):
                news.ring()
        if outputs.stats is not None:
            self._tracker.take_stats(outputs.stats)
            self._stats = outputs.stats
        if stopped:
            await self._engine.send(Abort(stopped))
        for submit in following:
            await self._engine.send(submit)

    def _die(self, reason: str) -> None:
        self._death = reason
        self._dead.set()
        if self._profiled is not None and not self._profiled.done():
            self._profiled.set_exception(self._end_error())
        for news in self._news.values():
            news.ring()

    def _end_error(self) -> HeadraceError:
        if self._draining:
            return ShuttingDownError("The server shut down before the request was finished.")
        return EngineDeadError(self._death or "The engine is gone.")

    def health(self) -> str | None:
        """None if all is well, else the reason. Looks at what is known; asks nobody."""
        if self._death is not None:
            return self._death
        silence = time.monotonic() - self._engine.heard_at
        busy = self.num_unfinished and not self._profiling.locked()  # writing a profile takes its time
        if busy and silence > self.config.frontend.engine_iteration_timeout:
            return f"The engine has work but has said nothing for {silence:.0f} s."
        return None

    async def check_health(self) -> None:
        """Raise ``EngineDeadError`` unless ``health`` is None."""
        if reason := self.health():
            raise EngineDeadError(reason)

    async def wait_dead(self) -> str:
        """The reason, once the engine has died."""
        await self._dead.wait()
        return self._death or ""

    # -- the end ----------------------------------------------------------------------------------------------------

    def start_draining(self) -> None:
        """Take no new requests."""
        self._draining = True

    async def wait_idle(self, timeout: float) -> bool:
        """Whether all requests finished within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.num_unfinished and time.monotonic() < deadline and self._death is None:
            await asyncio.sleep(0.05)
        return not self.num_unfinished

    async def shutdown(self) -> None:
        """End open requests with an error and the engine with them. May be called more than once."""
        self._draining = True
        if self._death is None:
            self._die("The engine was shut down.")
        self._reader.cancel()
        await self._engine.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> "AsyncLLM":
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.shutdown()
