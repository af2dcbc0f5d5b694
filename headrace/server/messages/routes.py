"""POST /v1/messages, its /count_tokens and its /render. Knows the engine only through chats."""

from fastapi import Request
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.validation import check_generates
from headrace.server.bodies import json_response
from headrace.server.chat import admit_chat, rendered
from headrace.server.context import context_of
from headrace.server.generate import as_generate_request
from headrace.server.generation import Job
from headrace.server.messages.answer import MessageWriter
from headrace.server.messages.conversation import chat_request, generating_request
from headrace.server.messages.errors import MessagesRoute, failure
from headrace.server.messages.schema import CountTokensRequest, MessagesRequest
from headrace.server.routing import new_router
from headrace.server.schema import ChatRequest

router = new_router(MessagesRoute)


@router.post("/v1/messages", tags=["generate"])
async def create_message(body: MessagesRequest, request: Request) -> Response:
    chat, job = await admit_message(request, body)
    return await MessageWriter(body, chat, job).response(request, failure=failure(request), end=b"")


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
    chat, job = await admit_message(request, body)
    return json_response(as_generate_request(chat, job, job.prompts[0]))


async def admit_message(request: Request, body: MessagesRequest) -> tuple[ChatRequest, Job]:
    """As ``admit_chat``, but agents ask every model alike: one that can't think keeps any budget for it, and
    ``max_tokens`` may be more than the context leaves, which then is the limit.
    """
    chat = generating_request(body)
    if context_of(request).marks is None:
        chat.thinking_token_budget = None
    try:
        return chat, await admit_chat(request, chat, "msg")
    except RequestError as error:
        if error.param != "max_tokens" or body.max_tokens < 1:
            raise
    chat.max_tokens = None
    return chat, await admit_chat(request, chat, "msg")
