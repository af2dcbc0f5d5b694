"""POST /tokenize and /detokenize, and GET /tokenizer_info, which a server has with --enable-tokenizer-info-endpoint."""

import json
from typing import Annotated, Any

from fastapi import Body, Request
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.server.bodies import json_response
from headrace.server.chat import rendered
from headrace.server.context import context_of
from headrace.server.refusals import refuse_unsupported
from headrace.server.routing import new_router
from headrace.server.schema import DetokenizeRequest, TokenizeBody, TokenizeRequest

router = new_router()
info_router = new_router()


@router.post("/tokenize", tags=["tokens"])
async def tokenize(body: Annotated[TokenizeBody, Body()], request: Request) -> Response:
    context = context_of(request)
    context.served_model(body.model)
    refuse_unsupported(body)
    tokenizer = context.engine.tokenizer
    text = body.prompt if isinstance(body, TokenizeRequest) else await rendered(context, body)
    tokens = await context.tokens_of(text, body.add_special_tokens)
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


@info_router.get("/tokenizer_info", tags=["tokens"])
async def tokenizer_info(request: Request) -> Response:
    """The tokenizer's class and settings as its tokenizer_config.json has them, and the chat template in use."""
    context = context_of(request)
    hf = context.engine.tokenizer.hf
    settings = {name: value for name, value in hf.init_kwargs.items() if not is_path(name)}
    template = context.chat_template or hf.chat_template
    return json_response(in_json({"tokenizer_class": type(hf).__name__} | settings | {"chat_template": template}))


def is_path(name: str) -> bool:
    """Whether a setting says where files lie on the server, which is nobody's business."""
    return name.endswith(("_file", "_path", "_dir"))


def in_json(value: Any) -> Any:
    """``value`` with each added token as its text."""
    return json.loads(json.dumps(value, default=lambda token: getattr(token, "content", str(token))))
