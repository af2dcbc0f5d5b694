"""POST /v2/embed, as Cohere's clients expect it (https://docs.cohere.com/v2/reference/embed); score.py has /v2/rerank.

Knows how Cohere names things, and no more: the vectors come from pooling.py.
"""

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import Request
from pydantic import Field
from starlette.responses import Response

from headrace.frontend.validation import MAX_INPUTS
from headrace.server.bodies import json_response
from headrace.server.context import context_of
from headrace.server.pooling import EmbeddingRequest, PoolingResult, pooled
from headrace.server.routing import new_router
from headrace.server.schema import Count, RequestFields

router = new_router()

Kind = Literal["float", "base64", "binary", "ubinary"]
# What models' own prompts are called for Cohere's kinds of input, beside the kind itself.
PROMPT_NAMES = {"search_query": ["query"], "search_document": ["document", "passage", "corpus"]}


class CohereEmbedRequest(RequestFields):
    """POST /v2/embed"""

    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    input_type: str = ""
    embedding_types: list[Kind] = ["float"]
    output_dimension: Count | None = None
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    truncate: Literal["NONE", "END"] = "END"


@router.post("/v2/embed", tags=["pooling"])
async def embed(body: CohereEmbedRequest, request: Request) -> Response:
    """``input_type`` puts the checkpoint's own prompt for such inputs, if there is one, before each text."""
    prompts = context_of(request).engine.info.prompts
    names = [body.input_type, *PROMPT_NAMES.get(body.input_type, [])]
    before = next((prompts[name] for name in names if name in prompts), "")
    cut = (body.max_tokens or -1) if body.truncate == "END" else None
    own = {"dimensions": body.output_dimension, "truncate_prompt_tokens": cut}
    same = EmbeddingRequest(**body.model_dump(exclude={"texts"}) | own)
    result = await pooled(request, same, "embd", "embed", [before + text for text in body.texts])
    answer = {
        "id": result.id,
        "embeddings": {kind: encoded(result, kind) for kind in body.embedding_types},
        "texts": body.texts,
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": result.num_tokens}},
        "response_type": "embeddings_by_type",
    }
    return json_response(answer)


def encoded(result: PoolingResult, kind: Kind) -> list[Any]:
    """The vectors as ``kind``: "ubinary" packs the signs of eight numbers into a byte, "binary" takes 128 from it."""
    if kind == "float" or kind == "base64":
        return result.arrays(kind)
    less = 128 if kind == "binary" else 0
    return [(np.packbits(output.outputs.data > 0).astype(int) - less).tolist() for output in result.outputs]
