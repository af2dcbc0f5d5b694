"""POST /v1/embeddings, /pooling and /classify, and what all routes of pooling models share: bodies, runs, usage.

Knows AsyncLLM and its outputs. Names and shapes are vLLM's.
"""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import AliasChoices, Field
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.validation import MAX_INPUTS
from headrace.server.bodies import Usage, json_response
from headrace.server.chat import rendered
from headrace.server.context import context_of
from headrace.server.errors import GenerationError
from headrace.server.generation import check_body, given_id, log_request, new_id
from headrace.server.routing import new_router
from headrace.server.schema import ChatFields, Count, RequestFields, prompts
from headrace.server.sse import gathered, until_disconnected
from headrace.types import PoolingParams, PoolingRequestOutput

router = new_router()

Prompt = str | list[int] | tuple[str, str]


class PoolingFields(RequestFields):
    """What all pooling routes have in common."""

    truncate_prompt_tokens: Count | None = None
    truncation_side: Literal["right"] | None = None
    use_activation: bool | None = Field(None, validation_alias=AliasChoices("use_activation", "normalize"))


class InputFields(PoolingFields):
    """Inputs, or one conversation."""

    input: Annotated[list[str | list[int]], prompts(MAX_INPUTS)] | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None  # null: to a text, as the template of a conversation writes its own
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
    result = await pooled(request, body, "pooling", body.task, await inputs_of(request, body))
    arrays = result.arrays(body.encoding_format)
    return result.listing([{"object": "pooling", "data": array} for array in arrays])


@router.post("/v1/embeddings", tags=["pooling"])
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Texts in, vectors out, as OpenAI's clients expect."""
    result = await pooled(request, body, "embd", "embed", await inputs_of(request, body))
    arrays = result.arrays(body.encoding_format)
    return result.listing([{"object": "embedding", "embedding": array} for array in arrays])


@router.post("/classify", tags=["pooling"])
async def classify(body: ClassifyRequest, request: Request) -> Response:
    result = await pooled(request, body, "classify", "classify", await inputs_of(request, body))
    labels, data = context_of(request).engine.info.labels, []
    for output in result.outputs:
        probs = output.outputs.data
        data.append({"label": labels[int(probs.argmax())], "probs": probs.tolist(), "num_classes": len(probs)})
    return result.listing(data)


# -- shared ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PoolingResult:
    """What became of the prompts of one request. ``model``: the name to answer under."""

    id: str
    model: str
    outputs: list[PoolingRequestOutput]

    @property
    def num_tokens(self) -> int:
        return sum(len(output.prompt_token_ids) for output in self.outputs)

    def arrays(self, encoding_format: str) -> list[Any]:
        """Each output's array as JSON numbers, or as base64 of its float32 numbers, little-endian."""
        arrays = [output.outputs.data for output in self.outputs]
        if encoding_format == "float":
            return [array.tolist() for array in arrays]
        return [base64.b64encode(array.astype("<f4").tobytes()).decode() for array in arrays]

    def listing(self, entries: list[dict[str, Any]]) -> Response:
        """The answer that all routes but /rerank give: a numbered list."""
        data = [{"index": index} | entry for index, entry in enumerate(entries)]
        head = {"id": self.id, "object": "list", "created": int(time.time()), "model": self.model, "data": data}
        return json_response(head | {"usage": Usage(self.num_tokens, self.num_tokens, 0)})


async def inputs_of(request: Request, body: InputFields) -> Sequence[Prompt]:
    """The body's inputs; a conversation as the text its template makes of it."""
    if (body.input is None) == (body.messages is None):
        raise RequestError("The body needs either input or messages.", "input")
    if body.messages is None:
        return body.input or []
    chat = ChatFields(**{"add_generation_prompt": False} | body.model_dump())
    return [await rendered(context_of(request), chat)]


async def pooled(
    request: Request, body: PoolingFields, prefix: str, task: str | None, prompts: Sequence[Prompt]
) -> PoolingResult:
    """Nothing is queued before every prompt has passed its checks.

    Everything is aborted if the client leaves or one prompt fails.
    """
    context = context_of(request)
    check_body(context, body)
    special, dimensions = True, None
    if isinstance(body, InputFields):
        dimensions = body.dimensions
        special = body.messages is None if body.add_special_tokens is None else body.add_special_tokens
    params = PoolingParams(
        task=task,
        dimensions=dimensions,
        use_activation=body.use_activation,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )
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
    return PoolingResult(job_id, context.served_model(body.model), outputs)
