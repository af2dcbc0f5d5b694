"""What the generating routes share: admitting a request, running its prompts, and counting its tokens.

Knows AsyncLLM and its outputs; does not know any route's bodies.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request

from headrace.engine.thinking import Thinker
from headrace.errors import RequestError
from headrace.frontend.door import Admitted, Prompt
from headrace.frontend.validation import check_generates
from headrace.server.bodies import CompletionTokensDetails, PromptTokensDetails, Usage
from headrace.server.context import Context
from headrace.server.errors import GenerationError
from headrace.server.protocol import ModelField, StreamFields
from headrace.server.refusals import refuse_unsupported
from headrace.server.sse import answer, cancelled
from headrace.types import MAX_N, RequestOutput, SamplingParams

logger = logging.getLogger(__name__)
NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9._-]")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One admitted request: its prompts are tokenized and every check has passed, and nothing is queued yet."""

    id: str
    created: int  # unix seconds
    model: str  # the name to answer under
    admitted: list[Admitted]
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None

    @property
    def prompts(self) -> list[list[int]]:
        """The prompts' token ids; those of embeddings are placeholders."""
        return [admitted.token_ids for admitted in self.admitted]


def check_body(context: Context, body: ModelField) -> None:
    """Raise RequestError if ``body`` names another model, one that can't generate, or asks for what is not served."""
    context.served_model(body.model)
    check_generates(context.engine.info)
    refuse_unsupported(body)


async def admit(
    context: Context,
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
    if len(prompts) * params.num_sequences > MAX_N:
        message = f"{len(prompts)} prompts × {params.num_sequences} is more than {MAX_N} sequences."
        raise RequestError(message, "best_of" if params.best_of else "n")
    prepare = context.engine.prepare
    admitted = [
        await prepare(
            prompt, params, add_special_tokens=add_special_tokens, truncate_prompt_tokens=truncate_prompt_tokens
        )
        for prompt in prompts
    ]
    job = Job(
        id=new_id(prefix, request.headers.get("x-request-id") or body.request_id),
        created=int(time.time()),
        model=context.served_model(body.model),
        admitted=admitted,
        params=params,
        priority=body.priority or 0,
        cache_salt=body.cache_salt,
    )
    if context.config.server.enable_log_requests:
        logger.info(
            "Received request %s: prompt tokens: %s, params: %s",
            job.id,
            [len(t) for t in job.prompts],
            without_texts(params),
        )
    return job


def without_texts(params: SamplingParams) -> SamplingParams:
    """What of ``params`` may be logged."""
    return params.clone(stop=[], bad_words=[], structured_outputs=None, extra_args=None)


def new_id(prefix: str, label: str | None = None) -> str:
    """A new id; the caller's ``label`` is only shown in it, so nobody can choose another's id."""
    label = NOT_IN_LABELS.sub("", label or "")[:64]
    return "-".join(part for part in (prefix, label, secrets.token_hex(8)) if part)


# -- running --------------------------------------------------------------------------------------------------------


def start(context: Context, job: Job, prompt: int) -> AsyncGenerator[RequestOutput, None]:
    """The outputs of one prompt of a job; closing the iterator aborts it."""
    request_id = job.id if len(job.admitted) == 1 else f"{job.id}-{prompt}"
    return context.engine.run(job.admitted[prompt], request_id, priority=job.priority, cache_salt=job.cache_salt)


async def final_outputs(context: Context, request: Request, *jobs: Job) -> list[RequestOutput]:
    """The last output of each job's each prompt; everything is aborted if the client leaves or one prompt fails."""

    async def last(job: Job, prompt: int) -> RequestOutput:
        async with aclosing(start(context, job, prompt)) as outputs:
            async for output in outputs:
                check_output(output)
        return output

    async def every() -> list[RequestOutput]:
        tasks = [asyncio.ensure_future(last(job, prompt)) for job in jobs for prompt in range(len(job.admitted))]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                await cancelled(task)

    return await answer(request, every())


async def merged_outputs(context: Context, job: Job) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """(prompt index, output) of all prompts as they come."""
    if len(job.admitted) == 1:
        async with aclosing(start(context, job, 0)) as outputs:
            async for output in outputs:
                yield 0, check_output(output)
        return
    ready: asyncio.Queue[tuple[int, RequestOutput] | Exception | None] = asyncio.Queue(maxsize=len(job.admitted))

    async def pump(prompt: int) -> None:
        try:
            async with aclosing(start(context, job, prompt)) as outputs:
                async for output in outputs:
                    await ready.put((prompt, check_output(output)))
            await ready.put(None)
        except Exception as error:
            await ready.put(error)

    tasks = [asyncio.ensure_future(pump(prompt)) for prompt in range(len(job.admitted))]
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


def check_output(output: RequestOutput) -> RequestOutput:
    """Raise GenerationError if the engine gave up on a sequence."""
    for sequence in output.outputs:
        if sequence.finish_reason == "error":
            raise GenerationError("The engine failed on this request; the server's log says why.")
    return output


# -- usage ----------------------------------------------------------------------------------------------------------


class TokenCounter:
    """Counts the tokens of a request's prompts and sequences as outputs come, and those of reasoning among them."""

    def __init__(self, context: Context, body: StreamFields, job: Job):
        options, server = body.stream_options, context.config.server
        forced = server.enable_force_include_usage
        self.at_end = forced or bool(options and options.include_usage)
        self.continuous = forced or bool(self.at_end and options and options.continuous_usage_stats)
        self._with_details = server.enable_prompt_tokens_details
        self._marks, self._job = context.marks, job
        self._prompt_tokens: dict[int, int] = {}
        self._cached_tokens: dict[int, int] = {}
        self._completion_tokens = 0
        self._thinkers: dict[tuple[int, int], Thinker | None] = {}  # by prompt and sequence

    @property
    def reasoning_tokens(self) -> int:
        return sum(thinker.num_tokens for thinker in self._thinkers.values() if thinker)

    def add(self, prompt: int, output: RequestOutput, *, count_completion: bool = True) -> None:
        """``output`` holds the tokens that are new since the last one of this prompt."""
        self._prompt_tokens[prompt] = len(output.prompt_token_ids)
        if output.num_cached_tokens is not None:
            self._cached_tokens[prompt] = output.num_cached_tokens
        if count_completion:
            for sequence in output.outputs:
                self._completion_tokens += len(sequence.token_ids)
                if thinker := self._thinker(prompt, sequence.index):
                    thinker.accept_all(sequence.token_ids)
            self._completion_tokens += output.num_rejected_tokens

    def usage(self) -> Usage:
        prompt_tokens = sum(self._prompt_tokens.values())
        usage = Usage(prompt_tokens, prompt_tokens + self._completion_tokens, self._completion_tokens)
        if self._with_details:
            usage.prompt_tokens_details = PromptTokensDetails(sum(self._cached_tokens.values()))
        if self._marks is not None:
            usage.completion_tokens_details = CompletionTokensDetails(self.reasoning_tokens)
        return usage

    def running_usage(self) -> Usage | UnsetType:
        return self.usage() if self.continuous else UNSET

    def _thinker(self, prompt: int, sequence: int) -> Thinker | None:
        if self._marks is None:
            return None
        if (prompt, sequence) not in self._thinkers:
            place = self._job.params.reasoning or self._marks.place_after(self._job.prompts[prompt])
            thinking = self._marks.thinking(place)
            self._thinkers[prompt, sequence] = Thinker(thinking) if thinking else None
        return self._thinkers[prompt, sequence]
