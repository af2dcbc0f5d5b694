"""Items of a response while their text comes: each step as the type of an event and its fields. Knows no outputs."""

import base64
from collections.abc import Iterator
from typing import Any, Literal

from msgspec import UnsetType

from headrace.server.bodies import TokenLogprob
from headrace.server.responses.items import FunctionCall, Message, Reasoning, Status, new_item_id

Step = tuple[str, dict[str, Any]]


class GrowingText:
    """A message or reasoning. Its item gets the text when it ends: to lengthen it each time takes ever longer.

    ``encrypt``: reasoning goes into ``encrypted_content`` too.
    """

    def __init__(self, kind: Literal["content", "reasoning"], *, encrypt: bool):
        self.item: Message | Reasoning
        if kind == "content":
            self.item = Message(id=new_item_id(Message), role="assistant", content=[], status="in_progress")
            self._type = "output_text"
            fields: dict[str, Any] = {"annotations": [], "logprobs": []}
        else:
            self.item = Reasoning(id=new_item_id(Reasoning), content=[], status="in_progress")
            self._type, fields = "reasoning_text", {}
        self._part: dict[str, Any] = {"type": self._type, "text": ""} | fields
        self._place = {"item_id": self.item.id, "content_index": 0}
        self._texts: list[str] = []
        self._encrypt = encrypt

    def begin(self) -> Iterator[Step]:
        yield "output_item.added", {"item": self.item}
        self.item.content = [self._part]
        yield "content_part.added", self._place | {"part": self._part}

    def more(self, text: str, logprobs: list[TokenLogprob]) -> Step:
        self._texts.append(text)
        fields: dict[str, Any] = {"delta": text}
        if "logprobs" in self._part:
            self._part["logprobs"] += logprobs
            fields["logprobs"] = logprobs
        return f"{self._type}.delta", self._place | fields

    def end(self, status: Status, logprobs: list[TokenLogprob]) -> Iterator[Step]:
        self._part["text"] = "".join(self._texts)
        if "logprobs" in self._part:
            self._part["logprobs"] += logprobs
        self.item.status = status
        if isinstance(self.item, Reasoning) and self._encrypt:
            self.item.encrypted_content = base64.b64encode(self._part["text"].encode()).decode()
        said = {name: self._part[name] for name in ("text", "logprobs") if name in self._part}
        yield f"{self._type}.done", self._place | said
        yield "content_part.done", self._place | {"part": self._part}
        yield "output_item.done", {"item": self.item}


class GrowingCall:
    def __init__(self, name: str, namespace: str | UnsetType, call_id: str):
        self.item = FunctionCall(
            id=new_item_id(FunctionCall),
            call_id=call_id,
            name=name,
            namespace=namespace,
            arguments="",
            status="in_progress",
        )
        self._texts: list[str] = []

    def begin(self) -> Iterator[Step]:
        yield "output_item.added", {"item": self.item}

    def more(self, text: str, logprobs: list[TokenLogprob]) -> Step:
        self._texts.append(text)
        return "function_call_arguments.delta", {"item_id": self.item.id, "delta": text}

    def end(self, status: Status, logprobs: list[TokenLogprob]) -> Iterator[Step]:
        item = self.item
        item.arguments, item.status = "".join(self._texts), status
        fields = {"item_id": item.id, "name": item.name, "arguments": item.arguments}
        yield "function_call_arguments.done", fields
        yield "output_item.done", {"item": item}
