"""A job's outputs as the events of a response, and the response itself: one way for streams, answers and background.

Knows items and events; does not know what becomes of them.
"""

import logging
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from msgspec import UNSET

from headrace.frontend.parsers.parser import Kind, Part, Piece
from headrace.server.answers import Answers, new_call_id
from headrace.server.bodies import TokenLogprob
from headrace.server.errors import describe
from headrace.server.generation import Job, merged_outputs
from headrace.server.logprobs import chat_logprobs, token_namer
from headrace.server.responses.bodies import (
    InputDetails,
    OutputDetails,
    ResponseBody,
    ResponseError,
    ResponseUsage,
    Status,
)
from headrace.server.responses.growing import GrowingCall, GrowingText, Step
from headrace.server.responses.items import Status as ItemStatus
from headrace.server.responses.schema import ENCRYPTED, ReasoningOptions, ResponsesRequest, TextOptions
from headrace.server.responses.tools import HOSTED, by_name
from headrace.server.sse import event
from headrace.server.writer import TokenCounter
from headrace.types import RequestOutput

logger = logging.getLogger(__name__)
ENDS: dict[str | None, Status] = {"length": "incomplete", "abort": "cancelled"}  # by finish reason; others complete it
REPEATED = (  # fields of a request that its response has too
    *("instructions", "max_output_tokens", "max_tool_calls", "previous_response_id", "prompt_cache_key"),
    *("safety_identifier", "user"),
)
CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}  # of a failed response, by HTTP status


def framed(name: str, number: int, fields: dict[str, Any]) -> bytes:
    return event({"type": name, "sequence_number": number} | fields, name)


def error_event(number: int, status: int, message: str, param: str | None) -> bytes:
    """The last event of a stream that breaks for a reason that is not the response's."""
    return framed("error", number, {"code": CODES.get(status, "server_error"), "message": message, "param": param})


def response_body(body: ResponsesRequest, job: Job) -> ResponseBody:
    """A response to ``body`` that has not begun."""
    text = body.text or TextOptions()
    return ResponseBody(
        id="resp_" + job.id.removeprefix("resp-"),
        created_at=job.created,
        status="queued" if body.background else "in_progress",
        background=bool(body.background),
        metadata=body.metadata or {},
        model=job.model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning=(body.reasoning or ReasoningOptions()).model_dump(),
        store=body.store is not False,
        temperature=job.params.temperature,
        text={"format": text.format or {"type": "text"}, "verbosity": text.verbosity or "medium"},
        tool_choice=body.tool_choice or "auto",
        tools=[tool for tool in body.tools or [] if tool["type"] not in HOSTED],
        top_logprobs=body.top_logprobs or 0,
        top_p=job.params.top_p,
        truncation=body.truncation or "disabled",
        **{name: getattr(body, name) for name in REPEATED},
    )


class ResponseWriter:
    """``response``: as far as it has come. ``failure``: why it failed."""

    def __init__(self, body: ResponsesRequest, job: Job):
        self.response = response_body(body, job)
        self.failure: Exception | None = None
        self._job = job
        self._answers = Answers(job.reading)
        self._counter = TokenCounter(body, job)
        self._encrypt = body.includes(ENCRYPTED)
        self._name = token_namer(job.context, body)
        self._functions = by_name(self.response.tools)
        self._number = 0  # of the next event
        self._kinds: list[Kind] = []  # of the items
        self._items: list[GrowingText | GrowingCall] = []  # the last one goes on
        self._logprobs: list[TokenLogprob] = []  # that no event has brought yet

    async def events(self) -> AsyncGenerator[bytes, None]:
        """All events, framed. Closing this early aborts the job."""
        response, reason = self.response, None
        yield self._state("created")
        yield self._state(response.status)
        try:
            async with aclosing(merged_outputs(self._job)) as outputs:
                async for _, output in outputs:
                    if response.status == "queued":
                        response.status = "in_progress"
                        yield self._state("in_progress")
                    for given in self._take(output):
                        yield given
                    reason = output.outputs[0].finish_reason
            last = self.end(ENDS.get(reason, "completed"))
        except Exception as error:
            last = self.fail(error)
        for given in last:
            yield given

    def fail(self, error: Exception) -> Iterator[bytes]:
        """End because of an error."""
        status, message, _ = describe(error)
        if status == 500:
            logger.error("Response %s failed.", self.response.id, exc_info=error)
        self.failure = error
        self.response.error = ResponseError(CODES.get(status, "server_error"), message)
        return self.end("failed")

    def end(self, status: Status) -> Iterator[bytes]:
        """Close what is open; the response is finished when its last event is given."""
        response = self.response
        yield from self._close("completed" if status == "completed" else "incomplete")
        response.status, response.usage = status, self._usage()
        if status == "completed":
            response.completed_at = int(time.time())
        elif status == "incomplete":
            response.incomplete_details = {"reason": "max_output_tokens"}
        yield self._state(status)

    def _take(self, output: RequestOutput) -> Iterator[bytes]:
        self._counter.add(0, output)
        (sequence,) = output.outputs
        piece = self._answers.piece(sequence)
        if sequence.logprobs is not None and self._brings_content(piece):
            num_top = self.response.top_logprobs
            self._logprobs += chat_logprobs(sequence.token_ids, sequence.logprobs, num_top, self._name).content
        for part in piece.parts:
            text = part.text
            if part.kind not in self._kinds[-1:]:
                yield from self._close("completed")
                yield from self._open(part)
                if part.kind in self._kinds[:-1]:
                    text = text.lstrip()  # what parts it from the item before
            if text:
                logprobs, self._logprobs = self._logprobs, []
                yield self._event(*self._items[-1].more(text, logprobs))

    def _brings_content(self, piece: Piece) -> bool:
        """Whether an output's tokens belong to a message; those without text to the one that goes on."""
        if self._job.reading.plain:
            return True
        if not piece.parts:
            return self._kinds[-1:] == ["content"]
        return any(part.kind == "content" for part in piece.parts)

    def _usage(self) -> ResponseUsage:
        usage = self._counter.usage()
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputDetails(self._counter.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputDetails(self._counter.reasoning_tokens),
            total_tokens=usage.total_tokens,
        )

    # -- events -----------------------------------------------------------------------------------------------------

    def _open(self, part: Part) -> Iterator[bytes]:
        self._kinds.append(part.kind)
        if isinstance(part.kind, int):
            function = self._functions.get(part.name or "", {"name": part.name, "namespace": UNSET})
            call_id = new_call_id(self._job.reading.short_ids)
            self._items.append(GrowingCall(function["name"], function["namespace"], call_id))
        else:
            self._items.append(GrowingText(part.kind, encrypt=self._encrypt))
        self.response.output.append(self._items[-1].item)
        yield from self._steps(self._items[-1].begin())

    def _close(self, status: ItemStatus) -> Iterator[bytes]:
        if self._items:
            logprobs: list[TokenLogprob] = []
            if self._kinds[-1] == "content":
                logprobs, self._logprobs = self._logprobs, []  # of tokens without text
            yield from self._steps(self._items[-1].end(status, logprobs))

    def _steps(self, steps: Iterator[Step]) -> Iterator[bytes]:
        for name, fields in steps:
            yield self._event(name, fields)

    def _event(self, name: str, fields: dict[str, Any]) -> bytes:
        return self._numbered(name, {"output_index": len(self.response.output) - 1} | fields)

    def _state(self, status: str) -> bytes:
        return self._numbered(status, {"response": self.response})

    def _numbered(self, name: str, fields: dict[str, Any]) -> bytes:
        self._number += 1
        return framed(f"response.{name}", self._number - 1, fields)
