"""/v1/files and /v1/batches, as far as OpenAI's clients need them for batches; each belongs to the key that made it."""

from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from fastapi import Query, Request
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.responses import FileResponse, Response

from headrace.errors import RequestError
from headrace.server.batch.batches import Batch, Batches, new_batch
from headrace.server.batch.runner import Caller
from headrace.server.bodies import json_response, page
from headrace.server.context import context_of
from headrace.server.routing import new_router, owner_of

router = new_router()

CHUNK = 1 << 20  # bytes
ENVELOPE = 65_536  # bytes of an upload that aren't its file
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {"file": {"type": "string", "format": "binary"}, "purpose": {"enum": ["batch"]}},
                }
            }
        },
    }
}


class BatchRequest(BaseModel):
    """POST /v1/batches"""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None


def batches_of(request: Request) -> Batches:
    batches: Batches = request.app.state.batches
    return batches


# -- files ----------------------------------------------------------------------------------------------------------


class Upload(Request):
    """A request with a file in it, of bounded size; what doesn't fit into a little memory goes to disk."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        limit = context_of(self).config.server.max_stored_file_bytes + ENVELOPE
        size = 0
        async for chunk in super().stream():
            size += len(chunk)
            if size > limit:
                raise HTTPException(413, "The file is larger than all that --max-stored-file-bytes allows.")
            yield chunk


@router.post("/v1/files", tags=["batches"], openapi_extra=UPLOAD)
async def upload_file(request: Request) -> Response:
    """Keep a file of requests."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "multipart/form-data":
        raise RequestError("Send the file as multipart/form-data, in the part `file`.", "file")
    files = batches_of(request).files
    try:
        async with Upload(request.scope, request.receive).form(max_files=1, max_fields=8) as form:
            upload, purpose = form.get("file"), form.get("purpose")
            if not isinstance(upload, UploadFile):
                raise RequestError("The part `file` is missing.", "file")
            if purpose != "batch":
                raise RequestError("Files are kept for batches only: purpose must be batch.", "purpose")
            file = files.new(owner_of(request), (upload.filename or "file")[:255], "batch")
            try:
                while data := await upload.read(CHUNK):
                    files.append(file, data)
            except BaseException:
                files.remove(file)
                raise
    except MultiPartException as error:
        raise RequestError(f"The body is no multipart form: {error.message}.", "file") from None
    return json_response(file.about)


@router.get("/v1/files", tags=["batches"])
async def list_files(
    request: Request,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    found = [file for file in batches_of(request).files.of(owner_of(request)) if purpose in (None, file.purpose)]
    return json_response(page(found if order == "desc" else found[::-1], limit, after))


@router.get("/v1/files/{file_id}", tags=["batches"])
async def retrieve_file(file_id: str, request: Request) -> Response:
    return json_response(batches_of(request).files.find(file_id, owner_of(request)).about)


@router.get("/v1/files/{file_id}/content", tags=["batches"])
async def file_content(file_id: str, request: Request) -> Response:
    file = batches_of(request).files.find(file_id, owner_of(request))
    return FileResponse(file.path, media_type="application/octet-stream")


@router.delete("/v1/files/{file_id}", tags=["batches"])
async def delete_file(file_id: str, request: Request) -> Response:
    files = batches_of(request).files
    files.remove(files.find(file_id, owner_of(request)))
    return json_response({"id": file_id, "object": "file", "deleted": True})


# -- batches --------------------------------------------------------------------------------------------------------


@router.post("/v1/batches", tags=["batches"])
async def create_batch(body: BatchRequest, request: Request) -> Response:
    """Begin to answer a file's requests."""
    context, batches, owner = context_of(request), batches_of(request), owner_of(request)
    urls = request.app.state.batched
    if body.endpoint not in urls:
        raise RequestError(f"endpoint must be one of {', '.join(sorted(urls))}.", "endpoint")
    source = batches.files.find(body.input_file_id, owner, "input_file_id")
    if source.about.purpose != "batch":
        raise RequestError("The input file must have been uploaded with the purpose batch.", "input_file_id")
    caller = Caller(request.state.key, request.client.host if request.client else "")
    about = new_batch(body.endpoint, context.served_model(None), body.input_file_id, body.metadata)
    batches.begin(Batch(owner, about, source, caller))
    return json_response(about)


@router.get("/v1/batches", tags=["batches"])
async def list_batches(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
) -> Response:
    return json_response(page(batches_of(request).of(owner_of(request)), limit, after))


@router.get("/v1/batches/{batch_id}", tags=["batches"])
async def retrieve_batch(batch_id: str, request: Request) -> Response:
    return json_response(batches_of(request).find(batch_id, owner_of(request)).about)


@router.post("/v1/batches/{batch_id}/cancel", tags=["batches"])
async def cancel_batch(batch_id: str, request: Request) -> Response:
    return json_response(batches_of(request).cancel(batch_id, owner_of(request)))
