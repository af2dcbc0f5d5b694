"""/v1/responses: made, streamed, kept, read again, cancelled and deleted. Knows the engine only through the writer."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal

from fastapi import Query, Request
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.server.bodies import json_response, page
from headrace.server.chat import rendered
from headrace.server.context import context_of
from headrace.server.generate import as_generate_request
from headrace.server.responses.background import Background
from headrace.server.responses.chat import admit_response, chat_request
from headrace.server.responses.items import Item, input_items
from headrace.server.responses.schema import ResponsesRequest
from headrace.server.responses.store import Record, Store
from headrace.server.responses.writer import ResponseWriter, error_event
from headrace.server.routing import new_router, owner_of
from headrace.server.sse import EventStream, until_disconnected

router = new_router()


@router.post("/v1/responses", tags=["generate"])
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    owner, store = owner_of(request), store_of(request)
    if body.background and not context_of(request).config.server.max_stored_responses:
        message = "This server keeps no responses (--max-stored-responses 0), so it makes none in the background."
        raise RequestError(message, "background")
    items, history = items_of(store, owner, body)
    writer = ResponseWriter(body, await admit_response(request, body, history + items))
    record = Record(owner, writer.response, items)
    if body.background:
        record.events = [] if body.stream else None
        Background(store, record, writer, request.state.unfinished)
        return followed(record, 0) if body.stream else json_response(writer.response)
    if body.stream:
        return event_stream(kept(store, record, writer))
    await until_disconnected(request.receive, exhausted(kept(store, record, writer)))
    if writer.failure is not None:
        raise writer.failure
    return json_response(writer.response)


@router.post("/v1/responses/render", tags=["tokens"])
async def render_response(body: ResponsesRequest, request: Request) -> Response:
    items, history = items_of(store_of(request), owner_of(request), body)
    job = await admit_response(request, body, history + items)
    return json_response(as_generate_request(body, job, job.prompts[0]))


@router.post("/v1/responses/input_tokens", tags=["tokens"])
async def count_input_tokens(body: ResponsesRequest, request: Request) -> Response:
    context = context_of(request)
    items, history = items_of(store_of(request), owner_of(request), body)
    text = await rendered(context, chat_request(context, body, history + items))
    tokens = await context.tokens_of(text, False)
    return json_response({"object": "response.input_tokens", "input_tokens": len(tokens)})


@router.get("/v1/responses/{response_id}", tags=["generate"])
async def retrieve_response(
    response_id: str,
    request: Request,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1)] = -1,
) -> Response:
    record = store_of(request).find(response_id, owner_of(request))
    if not stream:
        return json_response(record.response)
    if record.events is None:
        raise RequestError("Only responses that were made with background and stream can be streamed again.", "stream")
    return followed(record, starting_after + 1)


@router.post("/v1/responses/{response_id}/cancel", tags=["generate"])
async def cancel_response(response_id: str, request: Request) -> Response:
    record = store_of(request).find(response_id, owner_of(request))
    if not record.response.background:
        raise RequestError("Only responses that were made with background can be cancelled.", "response_id")
    if record.cancel is not None:
        await record.cancel()
    return json_response(record.response)


@router.delete("/v1/responses/{response_id}", tags=["generate"])
async def delete_response(response_id: str, request: Request) -> Response:
    store = store_of(request)
    record = store.find(response_id, owner_of(request))
    store.remove(record)
    if record.cancel is not None:
        await record.cancel()
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items", tags=["generate"])
async def list_input_items(
    response_id: str,
    request: Request,
    order: Literal["asc", "desc"] = "desc",
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: str | None = None,
) -> Response:
    """All that the model was shown but its instructions: what came before this response, and its own input."""
    store, owner = store_of(request), owner_of(request)
    record = store.find(response_id, owner)
    items = store.history(record.response.previous_response_id, owner) + record.items
    return json_response(page(items if order == "asc" else items[::-1], limit, after))


# -- what they share ------------------------------------------------------------------------------------------------


def store_of(request: Request) -> Store:
    store: Store = request.app.state.responses
    return store


def items_of(store: Store, owner: str, body: ResponsesRequest) -> tuple[list[Item], list[Item]]:
    """The items of the request itself, and those before them. Raises ``RequestError``."""
    previous = body.previous_response_id
    if previous and not store.find(previous, owner, "previous_response_id").response.finished:
        raise RequestError(f"Response {previous} is not finished yet.", "previous_response_id")
    return input_items(body.input, lambda item_id: store.item(item_id, owner)), store.history(previous, owner)


def followed(record: Record, place: int) -> EventStream:
    return event_stream(record.follow(place), place)


def event_stream(frames: AsyncGenerator[bytes, None], place: int = 0) -> EventStream:
    """``place``: the first event's number. Should the stream break, its last event follows those that were sent."""

    async def counted() -> AsyncGenerator[bytes, None]:
        nonlocal place
        async with aclosing(frames):
            async for frame in frames:
                place += 1
                yield frame

    def failure(status: int, message: str, param: str | None) -> bytes:
        return error_event(place, status, message, param)

    return EventStream(counted(), failure=failure, end=b"")


async def kept(store: Store, record: Record, writer: ResponseWriter) -> AsyncGenerator[bytes, None]:
    """A writer's events; the response can be looked up before its last event is told."""
    async with aclosing(writer.events()) as events:
        async for event in events:
            if record.response.finished and record.response.store:
                store.add(record)
            yield event


async def exhausted(frames: AsyncGenerator[bytes, None]) -> None:
    async with aclosing(frames):
        async for _ in frames:
            pass
