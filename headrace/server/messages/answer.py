"""A generating request's outputs as Anthropic's answer: one message, or the events of a stream."""

from collections.abc import Sequence

from msgspec import UNSET

from headrace.server.generation import Job
from headrace.server.messages import bodies
from headrace.server.messages.blocks import Blocks
from headrace.server.messages.schema import MessagesRequest
from headrace.server.schema import ChatRequest
from headrace.server.sse import event
from headrace.server.writer import Writer
from headrace.types import CompletionOutput, RequestOutput


class MessageWriter(Writer):
    """``chat``: what ``body`` became."""

    def __init__(self, body: MessagesRequest, chat: ChatRequest, job: Job):
        super().__init__(chat, job)
        self._body = body
        self._blocks = Blocks(job.reading)
        self._edits = bodies.AppliedEdits() if body.context_management else UNSET

    def whole(self, outputs: Sequence[RequestOutput]) -> bodies.Message:
        [output] = outputs
        self.counter.add(0, output)
        [sequence] = output.outputs
        message = self._empty(self._usage())
        message.content = self._blocks.whole(sequence)
        stop = self._stop(sequence)
        message.stop_reason, message.stop_sequence = stop.stop_reason, stop.stop_sequence
        message.context_management = self._edits
        return message

    def begin(self) -> bytes:
        start = bodies.MessageStart(self._empty(bodies.MessageUsage(input_tokens=len(self.job.prompts[0]))))
        return framed(start) + framed(bodies.Ping())

    def events(self, prompt: int, output: RequestOutput) -> bytes:
        self.counter.add(prompt, output)
        [sequence] = output.outputs
        data = b"".join(map(framed, self._blocks.events(sequence)))
        if sequence.finished:
            stop, usage = self._stop(sequence), self._usage()
            data += framed(bodies.MessageDelta(delta=stop, usage=usage, context_management=self._edits))
            data += framed(bodies.MessageStop())
        return data

    def _empty(self, usage: bodies.MessageUsage) -> bodies.Message:
        message_id = self.job.id.replace("-", "_", 1)  # msg_…
        return bodies.Message(id=message_id, model=self.job.model, content=[], usage=usage)

    def _stop(self, sequence: CompletionOutput) -> bodies.Stop:
        """Why the answer ended, once its blocks are read."""
        if isinstance(sequence.stop_reason, str):
            return bodies.Stop("stop_sequence", sequence.stop_reason)
        reason = self._blocks.answers.finish_reason(sequence)
        if reason == "tool_calls":
            return bodies.Stop("tool_use", None)
        if reason == "length":
            full = self.counter.usage().completion_tokens < self._body.max_tokens
            return bodies.Stop("model_context_window_exceeded" if full else "max_tokens", None)
        return bodies.Stop("end_turn", None)

    def _usage(self) -> bodies.MessageUsage:
        usage = self.counter.usage()
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        thought = usage.completion_tokens_details
        return bodies.MessageUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens,
            output_tokens_details=thought if thought is UNSET else bodies.ThinkingDetails(thought.reasoning_tokens),
        )


def framed(body: bodies.Event) -> bytes:
    """An event, which says its name twice."""
    return event(body, str(type(body).__struct_config__.tag))
