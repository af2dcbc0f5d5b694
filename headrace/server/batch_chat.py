"""POST /v1/chat/completions/batch: several conversations with the same fields in, one answer with all choices out."""

from functools import reduce
from typing import Annotated, Any

import msgspec
from fastapi import Request
from pydantic import Field
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.server.bodies import ChatCompletion, Usage, json_response
from headrace.server.chat import ChatWriter, admit_chat
from headrace.server.generation import final_outputs
from headrace.server.routing import new_router
from headrace.server.schema import MAX_PROMPTS, ChatRequest
from headrace.types import MAX_N

router = new_router()

ONE_CONVERSATION = ("stream", "prompt_logprobs", "return_prompt_text")  # the answer to several has no place for these


class BatchChatRequest(ChatRequest):
    """POST /v1/chat/completions/batch"""

    messages: Annotated[  # type: ignore[assignment]
        list[Annotated[list[dict[str, Any]], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)
    ]


@router.post("/v1/chat/completions/batch", tags=["generate"])
async def create_batch_chat_completion(body: BatchChatRequest, request: Request) -> Response:
    """Choices are numbered conversation by conversation; ``usage`` counts all of them."""
    for name in ONE_CONVERSATION:
        if getattr(body, name):
            raise RequestError(f"A batch of conversations can't have {name}; send them one by one.", name)
    count = body.n or 1
    if len(body.messages) * count > MAX_N:
        raise RequestError(f"{len(body.messages)} conversations × n={count} is more than {MAX_N} sequences.", "n")
    bodies: list[ChatRequest] = [body.model_copy(update={"messages": messages}) for messages in body.messages]
    jobs = [await admit_chat(request, each) for each in bodies]
    outputs = await final_outputs(request, *jobs)
    writers = map(ChatWriter, bodies, jobs)
    answers = [writer.whole([output]) for writer, output in zip(writers, outputs, strict=True)]
    return json_response(joined(answers, count))


def joined(answers: list[ChatCompletion], count: int) -> ChatCompletion:
    """One answer with the choices of all, each of which has ``count``."""
    for place, answer in enumerate(answers):
        for choice in answer.choices:
            choice.index += place * count
    return msgspec.structs.replace(
        answers[0],
        choices=[choice for answer in answers for choice in answer.choices],
        usage=msgspec.convert(reduce(added, (msgspec.to_builtins(answer.usage) for answer in answers)), Usage),
        prompt_token_ids=None,
    )


def added(first: Any, second: Any) -> Any:
    """Two counts, or two objects of counts of which the same may be missing."""
    if isinstance(first, dict):
        return {name: added(value, second[name]) for name, value in first.items()}
    return None if first is None else first + second
