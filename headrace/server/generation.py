"""What the generating routes share: admitting a request and running its prompts.

Knows AsyncLLM and its outputs; does not know any route's bodies, nor how an answer is written.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.requests import Request

from headrace.errors import RequestError
from headrace.frontend.door import Admitted, Prompt
from headrace.frontend.validation import check_generates, check_priority
from headrace.server.answers import Reading
from headrace.server.context import Context, context_of
from headrace.server.errors import GenerationError
from headrace.server.refusals import refuse_unsupported
from headrace.server.schema import RequestFields, StreamFields
from headrace.server.sse import cancelled, until_disconnected
from headrace.types import MAX_N, RequestOutput, SamplingParams

logger = logging.getLogger(__name__)
NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One admitted request: its prompts are tokenized and every check has passed, and nothing is queued yet."""

    context: Context
    id: str
    created: int  # unix seconds
    model: str  # the name to answer under
    admitted: list[Admitted]
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    reading: Reading = field(default_factory=Reading)  # how a chat's answers are read

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts' token ids; those of embeddings are placeholders."""
        return [admitted.token_ids for admitted in self.admitted]


def check_body(context: Context, body: RequestFields) -> None:
    """Raise RequestError if ``body`` names another model or asks for what is not served."""
    context.served_model(body.model)
    refuse_unsupported(body)
    check_priority(body.priority or 0, context.config)


def check_generating(context: Context, body: StreamFields) -> None:
    """As ``check_body``; raises for a model that can't generate, too."""
    check_body(context, body)
    check_generates(context.engine.info)


async def admit(
    request: Request,
    body: StreamFields,
    prefix: str,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    *,
    add_special_tokens: bool = False,
    truncate_prompt_tokens: int | None = None,
) -> Job:
    """Tokenize and check the prompts of a request; raises what AsyncLLM.prepare raises, and RequestError."""
    context = context_of(request)
    if len(prompts) * params.num_sequences > MAX_N:
        message = f"{len(prompts)} prompts × {params.num_sequences} is more than {MAX_N} sequences."
        raise RequestError(message, "best_of" if params.best_of else "n")
    admitted = [
        await context.engine.prepare(
            prompt, params, add_special_tokens=add_special_tokens, truncate_prompt_tokens=truncate_prompt_tokens
        )
        for prompt in prompts
    ]
    job = Job(
        context=context,
        id=new_id(prefix, given_id(request, body)),
        created=int(time.time()),
        model=context.served_model(body.model),
        admitted=admitted,
        params=params,
        priority=body.priority or 0,
        cache_salt=body.cache_salt,
    )
    without_texts = params.clone(stop=[], bad_words=[], structured_outputs=None, extra_args=None)
    log_request(context, job.id, job.prompts, without_texts)
    return job


def log_request(context: Context, job_id: str, prompts: Iterable[list[int]], params: object) -> None:
    if context.config.server.enable_log_requests:
        logger.info("Received request %s: prompt tokens: %s, params: %s", job_id, list(map(len, prompts)), params)


def given_id(request: Request, body: RequestFields) -> str | None:
    """What the caller calls its request."""
    return request.headers.get("x-request-id") or body.request_id


def new_id(prefix: str, label: str | None = None) -> str:
    """A new id; the caller's ``label`` is only shown in it, so nobody can choose another's id."""
    label = NOT_IN_LABELS.sub("", label or "")[:64]
    return "-".join(part for part in (prefix, label, secrets.token_hex(8)) if part)


# -- running --------------------------------------------------------------------------------------------------------


def start(job: Job, prompt: int) -> AsyncGenerator[RequestOutput, None]:
    """The outputs of one prompt of a job; closing the iterator aborts it."""
    request_id = job.id if len(job.admitted) == 1 else f"{job.id}-{prompt}"
    run = job.context.engine.run
    return run(job.admitted[prompt], request_id, priority=job.priority, cache_salt=job.cache_salt)


async def merged_outputs(*jobs: Job) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """(place, output) of all prompts of all jobs as they come; the rest is aborted if one fails or this is closed."""
    runs = [(job, prompt) for job in jobs for prompt in range(len(job.prompts))]
    if len(runs) == 1:
        async with aclosing(start(*runs[0])) as outputs:
            async for output in outputs:
                yield 0, checked(output)
        return
    ready: asyncio.Queue[tuple[int, RequestOutput] | Exception | None] = asyncio.Queue(maxsize=len(runs))

    async def pump(place: int) -> None:
        try:
            async with aclosing(start(*runs[place])) as outputs:
                async for output in outputs:
                    await ready.put((place, checked(output)))
            await ready.put(None)
        except Exception as error:
            await ready.put(error)

    tasks = [asyncio.ensure_future(pump(place)) for place in range(len(runs))]
    try:
        running = len(tasks)
        while running:
            item = await ready.get()
            if isinstance(item, Exception):
                raise item
            elif item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            await cancelled(task)


async def final_outputs(request: Request, *jobs: Job) -> list[RequestOutput]:
    """The last output of each prompt of each job; everything is aborted if the client leaves or one prompt fails."""

    async def last() -> list[RequestOutput]:
        async with aclosing(merged_outputs(*jobs)) as outputs:
            found = {place: output async for place, output in outputs}
        return [found[place] for place in sorted(found)]

    return await until_disconnected(request.receive, last())


def checked(output: RequestOutput) -> RequestOutput:
    """Raise GenerationError if the engine gave up on a sequence."""
    if any(sequence.finish_reason == "error" for sequence in output.outputs):
        raise GenerationError("The engine failed on this request; the server's log says why.")
    return output
