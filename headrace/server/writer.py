"""What the writers of all generated answers share: whole or streamed, and the tokens counted on the way.

Knows jobs and their outputs; what an answer looks like is the subclasses' own.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from headrace.engine.thinking import Thinker
from headrace.server.bodies import CompletionTokensDetails, PromptTokensDetails, Usage, json_response
from headrace.server.generation import Job, final_outputs, merged_outputs
from headrace.server.schema import StreamFields
from headrace.server.sse import DONE, EventStream, StreamFailure, openai_failure
from headrace.types import RequestOutput


class Writer(ABC):
    """Turns a job's outputs into its answer: one body, or the events of a stream."""

    def __init__(self, body: StreamFields, job: Job):
        self.job = job
        self.counter = TokenCounter(body, job)
        self._streams = bool(body.stream)

    @abstractmethod
    def whole(self, outputs: Sequence[RequestOutput]) -> object:
        """The body that answers with the last output of each prompt."""

    @abstractmethod
    def events(self, prompt: int, output: RequestOutput) -> bytes:
        """What a prompt's next output brings, framed; nothing if there is nothing to tell."""

    def begin(self) -> bytes:
        """The events before the first output."""
        return b""

    def end(self) -> bytes:
        """The events after the last output."""
        return b""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        if data := self.begin():
            yield data
        async with aclosing(merged_outputs(self.job)) as outputs:
            async for prompt, output in outputs:
                if data := self.events(prompt, output):
                    yield data
        if data := self.end():
            yield data

    async def response(
        self, request: Request, *, failure: StreamFailure = openai_failure, end: bytes = DONE
    ) -> Response:
        """Runs the job: a stream, where the request asks for one, which ``failure`` and ``end`` are for."""
        if self._streams:
            return EventStream(self.stream(), failure=failure, end=end)
        return json_response(self.whole(await final_outputs(request, self.job)))


class TokenCounter:
    """Counts the tokens of a request's prompts and sequences as outputs come, and those of reasoning among them."""

    def __init__(self, body: StreamFields, job: Job):
        options, server = body.stream_options, job.context.config.server
        forced = server.enable_force_include_usage
        self.at_end = forced or bool(options and options.include_usage)
        self.continuous = forced or bool(self.at_end and options and options.continuous_usage_stats)
        self._with_details = server.enable_prompt_tokens_details
        self._marks, self._job = job.context.marks, job
        self._cached_tokens: dict[int, int] = {}  # by prompt
        self._completion_tokens = 0
        self._thinkers: dict[tuple[int, int], Thinker | None] = {}  # by prompt and sequence

    @property
    def cached_tokens(self) -> int:
        return sum(self._cached_tokens.values())

    @property
    def reasoning_tokens(self) -> int:
        return sum(thinker.num_tokens for thinker in self._thinkers.values() if thinker)

    def add(self, prompt: int, output: RequestOutput, *, count_completion: bool = True) -> None:
        """``output`` holds the tokens that are new since the last one of this prompt."""
        if output.num_cached_tokens is not None:
            self._cached_tokens[prompt] = output.num_cached_tokens
        if count_completion:
            for sequence in output.outputs:
                self._completion_tokens += len(sequence.token_ids)
                if thinker := self._thinker(prompt, sequence.index):
                    thinker.accept_all(sequence.token_ids)
            self._completion_tokens += output.num_rejected_tokens

    def usage(self) -> Usage:
        prompt_tokens = sum(map(len, self._job.prompts))
        usage = Usage(prompt_tokens, prompt_tokens + self._completion_tokens, self._completion_tokens)
        if self._with_details:
            usage.prompt_tokens_details = PromptTokensDetails(self.cached_tokens)
        if self._marks is not None:
            usage.completion_tokens_details = CompletionTokensDetails(self.reasoning_tokens)
        return usage

    def running_usage(self) -> Usage | UnsetType:
        return self.usage() if self.continuous else UNSET

    def _thinker(self, prompt: int, sequence: int) -> Thinker | None:
        if self._marks is None:
            return None
        if (prompt, sequence) not in self._thinkers:
            place = self._job.params.reasoning or self._marks.place_after(self._job.prompts[prompt])
            thinking = self._marks.thinking(place)
            self._thinkers[prompt, sequence] = Thinker(thinking) if thinking else None
        return self._thinkers[prompt, sequence]
