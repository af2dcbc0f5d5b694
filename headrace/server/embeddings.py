"""POST /v1/embeddings: texts in, vectors out, as OpenAI's clients expect. Knows nothing of how they are made."""

from fastapi import Request
from starlette.responses import Response

from headrace.server.pooling import InputFields, encoded, inputs_of, listing, pooled, pooling_params
from headrace.server.routing import new_router

router = new_router()


class EmbeddingRequest(InputFields):
    """POST /v1/embeddings"""


@router.post("/v1/embeddings", tags=["pooling"])
async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    params = pooling_params(body, "embed", dimensions=body.dimensions)
    job_id, outputs = await pooled(request, body, "embd", await inputs_of(request, body), params)
    data = [
        {"index": index, "object": "embedding", "embedding": encoded(output.outputs.data, body.encoding_format)}
        for index, output in enumerate(outputs)
    ]
    return listing(request, body, job_id, outputs, data)
