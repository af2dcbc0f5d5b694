"""A chat's sequences as messages: their texts taken apart into reasoning, content and tool calls.

Streamed and whole answers come from the same parser, so they say the same. Knows no prompt and no route.
"""

import secrets
import string
from dataclasses import dataclass, field

from msgspec import UNSET

from headrace.frontend.parsers.formats import Calls, ReasoningFormat
from headrace.frontend.parsers.parser import CallPiece, Parser, Part, Piece
from headrace.server.bodies import CalledFunction, ChatDelta, ChatMessage, ToolCall
from headrace.types import CompletionOutput

SHORT_ID = string.ascii_letters + string.digits


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How one chat's answers are read."""

    sections: tuple[Calls, ...] = ()
    reasoning: ReasoningFormat | None = None
    tools: dict[str, object] = field(default_factory=dict)
    inside: bool = False
    most_calls: int | None = None
    short_ids: bool = False
    show_reasoning: bool = True

    @property
    def plain(self) -> bool:
        """Whether answers are content and nothing else."""
        return not self.sections and self.reasoning is None


class Answers:
    """The messages of a chat's sequences, by their index."""

    def __init__(self, reading: Reading):
        self._reading = reading
        self._parsers: dict[int, Parser] = {}

    def delta(self, sequence: CompletionOutput) -> ChatDelta:
        """What is new in a sequence."""
        if self._reading.plain:
            return ChatDelta(content=sequence.text)
        piece = self.piece(sequence)
        calls = [self._call(call) for call in piece.calls]
        delta = ChatDelta(tool_calls=calls or UNSET)
        if reasoning := piece.reasoning:
            delta.reasoning = delta.reasoning_content = reasoning
        if content := piece.content:
            delta.content = content
        return delta

    def piece(self, sequence: CompletionOutput) -> Piece:
        """What is new in a sequence, part by part: for those who don't want it as a delta."""
        if self._reading.plain:
            return Piece([Part("content", sequence.text)] if sequence.text else [])
        piece = self._parser(sequence.index).add(sequence.text, last=sequence.finish_reason is not None)
        if not self._reading.show_reasoning:
            piece.parts = [part for part in piece.parts if part.kind != "reasoning"]
        return piece

    def message(self, role: str, echo: str, sequence: CompletionOutput) -> ChatMessage:
        """A whole sequence, given once; ``echo`` goes before its content."""
        delta = self.delta(sequence)
        content = echo + (delta.content or "")
        calls = delta.tool_calls or []
        for call in calls:
            call.index = UNSET
        return ChatMessage(
            role=role,
            content=content or (None if calls or delta.reasoning else ""),
            tool_calls=calls,
            reasoning=delta.reasoning or None,
            reasoning_content=delta.reasoning_content,
        )

    def finish_reason(self, sequence: CompletionOutput) -> str | None:
        """Why a sequence ended, after its ``delta``: an answer with calls that are whole ends for them."""
        parser = self._parsers.get(sequence.index)
        called = parser is not None and parser.num_calls and not parser.cut
        return "tool_calls" if called and sequence.finish_reason == "stop" else sequence.finish_reason

    def _parser(self, index: int) -> Parser:
        if index not in self._parsers:
            reading = self._reading
            self._parsers[index] = Parser(
                reading.sections,
                reading.reasoning,
                reading.tools,
                inside=reading.inside,
                most_calls=reading.most_calls,
            )
        return self._parsers[index]

    def _call(self, piece: CallPiece) -> ToolCall:
        if piece.name is None:
            return ToolCall(index=piece.index, function=CalledFunction(arguments=piece.arguments))
        function = CalledFunction(name=piece.name, arguments=piece.arguments)
        return ToolCall(index=piece.index, id=new_call_id(self._reading.short_ids), type="function", function=function)


def new_call_id(short: bool) -> str:
    """A new id; a short one is nine letters and digits, the only kind that Mistral's chat templates take."""
    return "".join(secrets.choice(SHORT_ID) for _ in range(9)) if short else f"chatcmpl-tool-{secrets.token_hex(8)}"


def says_something(delta: ChatDelta) -> bool:
    return bool(delta.content or delta.reasoning or delta.tool_calls)
