"""POST /tokenize and /detokenize."""

from typing import Annotated

from fastapi import Body, Request
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.server.bodies import json_response
from headrace.server.chat import rendered
from headrace.server.context import context_of
from headrace.server.protocol import DetokenizeRequest, TokenizeBody, TokenizeRequest
from headrace.server.routing import new_router

router = new_router()


@router.post("/tokenize", tags=["tokens"])
async def tokenize(body: Annotated[TokenizeBody, Body()], request: Request) -> Response:
    context = context_of(request)
    context.served_model(body.model)
    tokenizer = context.engine.tokenizer
    text = body.prompt if isinstance(body, TokenizeRequest) else await rendered(context, body)
    tokens = await context.in_thread("Tokenizing", tokenizer.encode, text, body.add_special_tokens)
    answer = {
        "count": len(tokens),
        "max_model_len": context.engine.info.max_model_len,
        "tokens": tokens,
        "token_strs": tokenizer.token_strings(tokens) if body.return_token_strs else None,
    }
    return json_response(answer)


@router.post("/detokenize", tags=["tokens"])
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    context = context_of(request)
    context.served_model(body.model)
    limit = context.engine.info.vocab_size
    beyond = next((token for token in body.tokens if token >= limit), None)
    if beyond is not None:
        raise RequestError(f"Token id {beyond} is not in the vocabulary of {limit:,} tokens.", "tokens")
    text = await context.in_thread("Detokenizing", context.engine.tokenizer.decode, body.tokens, False)
    return json_response({"prompt": text})
