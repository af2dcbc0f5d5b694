"""The asynchronous handle on a scripted engine: what its caller sees of messages that come faster than it reads."""

import asyncio
import threading
import time
from typing import Any, cast

import pytest
import zmq
import zmq.asyncio

from headrace.config import Config
from headrace.engine import client
from headrace.engine.client import EngineProcess
from headrace.errors import EngineDeadError, RequestError
from headrace.frontend.async_llm import AsyncLLM
from headrace.frontend.door import Door
from headrace.frontend.observer import FinishedRequest, Observer
from headrace.frontend.tokenizer import Tokenizer
from headrace.models import source
from headrace.models.source import ModelFiles
from headrace.types import (
    Fatal,
    FinishReason,
    FromEngine,
    OutputKind,
    Outputs,
    SamplingParams,
    Stats,
    Submit,
    ToEngine,
    TokenDelta,
)
from tests.unit.fake_engine import CharTokenizer, FakeEngine


class ScriptedProcess:
    """Stands for EngineProcess: what ``say`` was given since the last ``receive`` is received together."""

    def __init__(self) -> None:
        self.heard_at = 0.0
        self.sent: asyncio.Queue[ToEngine] = asyncio.Queue()
        self._said: asyncio.Queue[FromEngine] = asyncio.Queue()

    def say(self, *deltas: TokenDelta) -> None:
        stats = Stats(generation_tokens=sum(len(delta.token_ids) for delta in deltas))
        self._said.put_nowait(Outputs(time.monotonic(), list(deltas), stats))

    async def send(self, message: ToEngine) -> None:
        self.sent.put_nowait(message)

    async def receive(self) -> list[FromEngine]:
        said = [await self._said.get()]
        while not self._said.empty():
            said.append(self._said.get_nowait())
        return said

    async def stop(self) -> None:
        pass


@pytest.mark.parametrize("slow", [False, True])
async def test_a_stream_that_is_behind_gets_all_tokens_at_once(slow: bool) -> None:
    """Whether its reader asks for more before the engine has spoken, or after it has said its last word."""
    process, config = ScriptedProcess(), Config()
    door = Door(config, FakeEngine(config).info, Tokenizer(CharTokenizer().hf))
    async with AsyncLLM(config, ["m"], cast(EngineProcess, process), door) as llm:
        params = SamplingParams(max_tokens=9, output_kind=OutputKind.DELTA)
        stream = llm.generate([65], params, "r")
        first = asyncio.ensure_future(anext(stream))
        submit = cast(Submit, await process.sent.get())
        process.say(TokenDelta(submit.request_id, [66]))
        outputs = [await first]
        for token_id in range(67, 70):
            process.say(TokenDelta(submit.request_id, [token_id]))
        process.say(TokenDelta(submit.request_id, [70], finish_reason=FinishReason.LENGTH))
        while slow and llm.num_unfinished:
            await asyncio.sleep(0)
        outputs += [output async for output in stream]
    given = [(output.outputs[0].text, list(output.outputs[0].token_ids), output.finished) for output in outputs]
    assert given == [("B", [66], False), ("CDEF", [67, 68, 69, 70], True)]


async def test_a_request_may_want_more_tokens_in_a_chunk() -> None:
    process, config = ScriptedProcess(), Config()
    door = Door(config, FakeEngine(config).info, Tokenizer(CharTokenizer().hf))
    async with AsyncLLM(config, ["m"], cast(EngineProcess, process), door) as llm:
        params = SamplingParams(stream_interval=2, output_kind=OutputKind.DELTA)
        texts: list[str] = []

        async def read() -> None:
            async for output in llm.generate([65], params):
                texts.append(output.outputs[0].text)

        reading = asyncio.ensure_future(read())
        name = cast(Submit, await process.sent.get()).request_id
        for token_id in range(66, 71):
            process.say(TokenDelta(name, [token_id], finish_reason=FinishReason.LENGTH if token_id == 70 else None))
            for _ in range(20):
                await asyncio.sleep(0)
        await reading
    assert texts == ["B", "CD", "EF"]


async def test_only_tokens_of_answers_are_counted_and_every_preemption_is() -> None:
    """Though a stop string ends an answer when the engine has gone on, and never tells of its end."""
    told: list[FinishedRequest] = []
    counted: list[int] = []
    observer = Observer()
    observer.on_finished = told.append  # type: ignore[method-assign]
    observer.on_stats = lambda stats: counted.append(stats.generation_tokens)  # type: ignore[method-assign]
    process, config = ScriptedProcess(), Config()
    door = Door(config, FakeEngine(config).info, Tokenizer(CharTokenizer().hf))
    async with AsyncLLM(config, ["m"], cast(EngineProcess, process), door) as llm:
        llm.observers.append(observer)
        stream = llm.generate([65], SamplingParams(stop=["C"], output_kind=OutputKind.FINAL_ONLY))
        answer = asyncio.ensure_future(anext(stream))
        name = cast(Submit, await process.sent.get()).request_id
        for delta in ([66], [], [67], [68], [69]):
            process.say(TokenDelta(name, delta, num_preemptions=not delta))
        assert (await answer).outputs[0].token_ids == [66, 67]
        while len(counted) < 5:
            await asyncio.sleep(0)
    assert (sum(counted), told[0].generation_tokens, told[0].preemptions) == (2, 2, 1)


async def test_what_is_refused_does_not_reach_the_engine() -> None:
    process, config = ScriptedProcess(), Config()
    door = Door(config, FakeEngine(config).info, Tokenizer(CharTokenizer().hf))
    async with AsyncLLM(config, ["m"], cast(EngineProcess, process), door) as llm:
        with pytest.raises(RequestError, match="--scheduling-policy priority"):
            await anext(llm.generate([65], SamplingParams(), priority=1))
        with pytest.raises(RequestError, match=r"prompt\[0\] is invalid: expected `int`"):
            await anext(llm.generate([True], SamplingParams()))
        with pytest.raises(RequestError, match=r"must be SamplingParams, got {'temperature': 0}"):
            await anext(llm.generate([65], cast(SamplingParams, {"temperature": 0})))
        assert not llm.num_unfinished and process.sent.empty()


async def test_an_engine_process_hands_over_all_it_has_said_before_it_died(tmp_path: Any) -> None:
    class Process:
        returncode = 1

        async def wait(self) -> int:
            return 1

    engine = EngineProcess(cast(Any, Process()), tmp_path, zmq.asyncio.Context())
    with zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(f"ipc://{tmp_path}/out")
        for message in (Outputs(1.0), Outputs(2.0), Fatal("no more")):
            push.send(engine._encoder.encode(message))
        heard: list[Any] = []
        while len(heard) < 2:
            heard += await engine.receive()
        assert [message.time for message in heard] == [1.0, 2.0]
        with pytest.raises(EngineDeadError, match="no more"):
            await engine.receive()
        await engine.stop()


@pytest.mark.parametrize("length", [1, 10**5])
async def test_an_engine_process_that_dies_before_it_has_heard_all(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "PROGRAM", ("-c", "raise SystemExit(3)"))
    config = Config.from_kwargs(chat_template="x" * length)
    with pytest.raises(EngineDeadError, match="The engine process exited with code 3"):
        await EngineProcess.start(config, ModelFiles("m", "m", "hf"), lambda progress: None)


def test_who_leaves_a_start_waits_for_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    waited: list[bool] = []

    def resolve(*_: object) -> None:
        begun.set()
        waited.append(go_on.wait(20))

    async def leave() -> None:
        starting = asyncio.ensure_future(AsyncLLM.start(Config()))
        while not begun.is_set():
            await asyncio.sleep(0.01)
        starting.cancel()
        await asyncio.wait({starting})

    monkeypatch.setattr(source, "resolve", resolve)
    asyncio.run(leave())
    assert not waited
    go_on.set()
