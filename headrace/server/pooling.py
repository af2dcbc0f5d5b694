"""POST /v1/embeddings, /pooling and /classify, and what all routes of pooling models share: bodies, runs, usage.

Knows AsyncLLM and its outputs. Names and shapes are vLLM's.
"""

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Request
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.validation import MAX_INPUTS
from headrace.server.bodies import Usage, json_response
from headrace.server.chat import rendered
from headrace.server.context import Context, context_of
from headrace.server.errors import GenerationError
from headrace.server.generation import check_body, given_id, log_request, new_id
from headrace.server.protocol import ChatFields, Count, RequestFields, prompts
from headrace.server.routing import new_router
from headrace.server.sse import gathered, until_disconnected
from headrace.types import PoolingParams, PoolingRequestOutput

router = new_router()

Prompt = str | list[int] | tuple[str, str]


class PoolingFields(RequestFields):
    """What all pooling routes have in common."""

    truncate_prompt_tokens: Count | None = None
    use_activation: bool | None = None


class InputFields(PoolingFields):
    """Inputs, or one conversation."""

    input: Annotated[list[str | list[int]], prompts(MAX_INPUTS)] | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] = "float"
    embed_dtype: Literal["float32"] = "float32"
    endianness: Literal["native", "little"] = "little"


class PoolingRequest(InputFields):
    """POST /pooling"""

    task: str | None = None


class EmbeddingRequest(InputFields):
    """POST /v1/embeddings"""


class ClassifyRequest(InputFields):
    """POST /classify"""


@router.post("/pooling", tags=["pooling"])
async def pooling(body: PoolingRequest, request: Request) -> Response:
    params = pooling_params(body, body.task, dimensions=body.dimensions)
    job_id, outputs = await pooled(request, body, "pooling", await inputs_of(request, body), params)
    data = [
        {"index": index, "object": "pooling", "data": encoded(output.outputs.data, body.encoding_format)}
        for index, output in enumerate(outputs)
    ]
    return listing(request, body, job_id, outputs, data)


@router.post("/v1/embeddings", tags=["pooling"])
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Texts in, vectors out, as OpenAI's clients expect."""
    params = pooling_params(body, "embed", dimensions=body.dimensions)
    job_id, outputs = await pooled(request, body, "embd", await inputs_of(request, body), params)
    data = [
        {"index": index, "object": "embedding", "embedding": encoded(output.outputs.data, body.encoding_format)}
        for index, output in enumerate(outputs)
    ]
    return listing(request, body, job_id, outputs, data)


@router.post("/classify", tags=["pooling"])
async def classify(body: ClassifyRequest, request: Request) -> Response:
    params = pooling_params(body, "classify")
    job_id, outputs = await pooled(request, body, "classify", await inputs_of(request, body), params)
    labels, data = context_of(request).engine.info.labels, []
    for index, output in enumerate(outputs):
        probs = output.outputs.data
        label = labels[int(probs.argmax())]
        data.append({"index": index, "label": label, "probs": probs.tolist(), "num_classes": len(probs)})
    return listing(request, body, job_id, outputs, data)


# -- shared ---------------------------------------------------------------------------------------------------------


def pooling_params(body: PoolingFields, task: str | None, dimensions: int | None = None) -> PoolingParams:
    return PoolingParams(
        task=task,
        dimensions=dimensions,
        use_activation=body.use_activation,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )


async def inputs_of(request: Request, body: InputFields) -> Sequence[Prompt]:
    """The body's inputs; a conversation as the text its template makes of it."""
    if (body.input is None) == (body.messages is None):
        raise RequestError("The body needs either input or messages.", "input")
    if body.messages is None:
        return body.input or []
    chat = ChatFields(messages=body.messages, add_generation_prompt=False)
    return [await rendered(context_of(request), chat)]


async def pooled(
    request: Request,
    body: PoolingFields,
    prefix: str,
    prompts: Sequence[Prompt],
    params: PoolingParams,
) -> tuple[str, list[PoolingRequestOutput]]:
    """(id of the answer, what became of each prompt); nothing is queued before every prompt has passed its checks.

    Everything is aborted if the client leaves or one prompt fails.
    """
    context = context_of(request)
    check_body(context, body)
    special = not isinstance(body, InputFields) or (body.add_special_tokens and body.messages is None)
    ready = await context.engine.prepare_pooling(prompts, params, special)
    job_id = new_id(prefix, given_id(request, body))
    log_request(context, job_id, [admitted.token_ids for admitted in ready], params)
    pool, priority, salt = context.engine.pool, body.priority or 0, body.cache_salt
    work = [
        pool(admitted, f"{job_id}-{index}", priority=priority, cache_salt=salt) for index, admitted in enumerate(ready)
    ]
    outputs = await until_disconnected(request.receive, gathered(work))
    if any(output.outputs.data is None for output in outputs):
        raise GenerationError("The engine gave up on this request; the server's log says why.")
    return job_id, outputs


def encoded(data: Any, encoding_format: str) -> Any:
    """An array as JSON numbers, or as base64 of its float32 numbers, little-endian."""
    return data.tolist() if encoding_format == "float" else base64.b64encode(data.astype("<f4").tobytes()).decode()


def usage_of(context: Context, outputs: Sequence[PoolingRequestOutput]) -> Usage:
    total = sum(len(output.prompt_token_ids) for output in outputs)
    return Usage(total, total, 0)


def listing(
    request: Request, body: PoolingFields, job_id: str, outputs: Sequence[PoolingRequestOutput], data: list[Any]
) -> Response:
    """The answer that all routes but /rerank give."""
    context = context_of(request)
    usage = msgspec.to_builtins(usage_of(context, outputs))
    head = {"id": job_id, "object": "list", "created": int(time.time()), "model": context.served_model(body.model)}
    return json_response(head | {"data": data, "usage": usage})
