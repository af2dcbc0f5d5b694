"""POST /inference/v1/abort_requests: ends requests of /inference/v1/generate, of the same API key only."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request
from starlette.responses import Response

from headrace.server.context import context_of
from headrace.server.generation import Job, given_id
from headrace.server.routing import new_router, owner_of
from headrace.server.schema import Body, StreamFields

router = new_router()


class AbortRequest(Body):
    """POST /inference/v1/abort_requests"""

    request_ids: list[str]


class Abortable:
    """The requests under way by what their callers may call them: the id that the answer shows, or their own."""

    def __init__(self) -> None:
        self._ids: defaultdict[tuple[str, str], set[str]] = defaultdict(set)  # by owner and name

    @contextmanager
    def named(self, request: Request, body: StreamFields, job: Job) -> Iterator[None]:
        """``job`` can be aborted inside."""
        names = [(owner_of(request), name) for name in (job.id, given_id(request, body)) if name]
        for name in names:
            self._ids[name].add(job.id)
        try:
            yield
        finally:
            for name in names:
                self._ids[name].discard(job.id)
                if not self._ids[name]:
                    del self._ids[name]

    def ids(self, owner: str, names: list[str]) -> list[str]:
        return [job_id for name in dict.fromkeys(names) for job_id in self._ids.get((owner, name), ())]


def abortable_of(request: Request) -> Abortable:
    abortable: Abortable = request.app.state.abortable
    return abortable


@router.post("/inference/v1/abort_requests", tags=["tokens"], response_class=Response)
async def abort_requests(body: AbortRequest, request: Request) -> Response:
    """End requests, whose answers hold what there is by then; one that is not under way is none to end."""
    await context_of(request).engine.abort(abortable_of(request).ids(owner_of(request), body.request_ids))
    return Response()
