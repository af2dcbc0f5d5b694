"""Anthropic's Messages API: POST /v1/messages, its /count_tokens and its /render.

A request becomes the ChatRequest that asks for the same, and goes its way from there.
"""

from fastapi import Request
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.validation import check_generates
from headrace.server.answers import Reading
from headrace.server.bodies import json_response
from headrace.server.chat import admit_chat, rendered
from headrace.server.context import Context, context_of
from headrace.server.generate import as_generate_request
from headrace.server.generation import Job, final_outputs
from headrace.server.messages.answer import MessageWriter
from headrace.server.messages.conversation import chat_request, generating_request
from headrace.server.messages.errors import MessagesRoute, failure
from headrace.server.messages.schema import CountTokensRequest, MessagesRequest
from headrace.server.protocol import ChatRequest
from headrace.server.routing import new_router
from headrace.server.sse import EventStream

router = new_router(MessagesRoute)


@router.post("/v1/messages", tags=["generate"])
async def create_message(body: MessagesRequest, request: Request) -> Response:
    context = context_of(request)
    chat, job, reading = await admit_message(context, request, body)
    writer = MessageWriter(context, body, chat, job, reading)
    if body.stream:
        silence = context.config.server.sse_keep_alive_interval
        return EventStream(writer.stream(context), silence, failure=failure(request), end=b"")
    (output,) = await final_outputs(context, request, job)
    return json_response(writer.message(output))


@router.post("/v1/messages/count_tokens", tags=["tokens"])
async def count_tokens(body: CountTokensRequest, request: Request) -> Response:
    """The tokens of the prompt that these messages, with their system text and tools, become."""
    context = context_of(request)
    context.served_model(body.model)
    check_generates(context.engine.info)
    prompt = await rendered(context, chat_request(body))
    tokens = await context.tokens_of(prompt, False)
    return json_response({"input_tokens": len(tokens), "context_management": {"original_input_tokens": len(tokens)}})


@router.post("/v1/messages/render", tags=["tokens"])
async def render_message(body: MessagesRequest, request: Request) -> Response:
    context = context_of(request)
    chat, job, _ = await admit_message(context, request, body)
    return json_response(as_generate_request(context, chat, job, job.prompts[0]))


async def admit_message(context: Context, request: Request, body: MessagesRequest) -> tuple[ChatRequest, Job, Reading]:
    """As ``admit_chat``, but agents ask every model alike: one that can't think keeps any budget for it, and
    ``max_tokens`` may be more than the context leaves, which then is the limit.
    """
    chat = generating_request(body)
    if context.marks is None:
        chat.thinking_token_budget = None
    try:
        job, _, reading = await admit_chat(context, request, chat, "msg")
    except RequestError as error:
        if error.param != "max_tokens" or body.max_tokens < 1:
            raise
        chat.max_tokens = None
        job, _, reading = await admit_chat(context, request, chat, "msg")
    return chat, job, reading
