"""POST /v1/completions and its /render: text (or token ids) in, text out."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.door import Prompt
from headrace.frontend.embeds import read_embeds
from headrace.frontend.validation import check_embeds_enabled
from headrace.server.bodies import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    Usage,
    json_response,
    prompt_logprobs_of,
)
from headrace.server.context import Context, context_of
from headrace.server.generate import as_generate_request
from headrace.server.generation import Job, TokenCounter, admit, check_body, final_outputs, merged_outputs
from headrace.server.logprobs import completion_logprobs, token_namer
from headrace.server.protocol import CompletionRequest
from headrace.server.routing import new_router
from headrace.server.sampling import completion_params, echo_only
from headrace.server.sse import EventStream, event
from headrace.types import CompletionOutput, PositionLogprobs, RequestOutput

router = new_router()


@router.post("/v1/completions", tags=["generate"])
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    return await complete(body, request)


@router.post("/v1/completions/render", tags=["tokens"])
async def render_completion(body: CompletionRequest, request: Request) -> Response:
    context = context_of(request)
    job = await admit_completion(context, request, body)
    if any(admitted.embeds for admitted in job.admitted):
        raise RequestError("A prompt of embeddings has no token ids to render.", "prompt_embeds")
    return json_response([as_generate_request(context, body, job, tokens) for tokens in job.prompts])


async def complete(body: CompletionRequest, request: Request) -> Response:
    context = context_of(request)
    job = await admit_completion(context, request, body)
    writer = CompletionWriter(context, body, job)
    if body.stream:
        return EventStream(stream(job, writer, context), context.config.server.sse_keep_alive_interval)
    outputs = await final_outputs(context, request, job)
    return json_response(writer.completion(outputs, context.system_fingerprint))


async def admit_completion(context: Context, request: Request, body: CompletionRequest) -> Job:
    check_body(context, body)
    prompts = await read_prompts(context, body)
    params = completion_params(body, context.config, context.engine.info.default_sampling)
    return await admit(
        context,
        request,
        body,
        "cmpl",
        prompts,
        params,
        add_special_tokens=body.add_special_tokens,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )


async def read_prompts(context: Context, body: CompletionRequest) -> list[Prompt]:
    """The request's prompts; as in vLLM those of embeddings come first, and an empty text beside them is none."""
    if not body.prompt_embeds:
        if body.prompt is None:
            raise RequestError("prompt is required.", "prompt")
        return list(body.prompt)
    check_embeds_enabled(context.config)
    if body.echo:
        raise RequestError("echo can't go with prompt_embeds, which have no text.", "echo")
    info = context.engine.info
    read = [await context.in_thread("Reading prompt_embeds", read_embeds, text, info) for text in body.prompt_embeds]
    return [*({"prompt_embeds": embeds} for embeds in read), *(text for text in body.prompt or [] if text)]


async def stream(job: Job, writer: "CompletionWriter", context: Context) -> AsyncGenerator[bytes, None]:
    counter = writer.counter
    async with aclosing(merged_outputs(context, job)) as outputs:
        async for prompt, output in outputs:
            choices = [c for c in writer.choices(prompt, output) if not writer.is_empty(c)]
            if choices:
                usage = counter.running_usage()
                yield b"".join(event(writer.chunk([choice], usage)) for choice in choices)
    if counter.at_end:
        yield event(writer.chunk([], counter.usage()))


class CompletionWriter:
    """Turns outputs into choices: whole ones, or the new part of each where the outputs are deltas.

    Choices are numbered prompt by prompt. Remembers how long each one's text is by now.
    """

    def __init__(self, context: Context, body: CompletionRequest, job: Job):
        self.counter = TokenCounter(context, body, job)
        self._body = body
        self._job = job
        self._tokenizer = context.engine.tokenizer
        self._name = token_namer(context, body)
        self._echo_only = echo_only(body)
        self._lengths: dict[int, int] = {}  # of each choice's text so far; a choice not in here has not begun
        self._prompt_logprobs: dict[int, list[PositionLogprobs | None]] = {}

    def completion(self, outputs: Sequence[RequestOutput], system_fingerprint: str) -> Completion:
        """The answer whose prompts' last outputs are ``outputs``."""
        job = self._job
        return Completion(
            id=job.id,
            created=job.created,
            model=job.model,
            choices=[choice for prompt, output in enumerate(outputs) for choice in self.choices(prompt, output)],
            system_fingerprint=system_fingerprint,
            usage=self.counter.usage(),
        )

    def chunk(self, choices: list[CompletionChoice], usage: Usage | UnsetType) -> CompletionChunk:
        job = self._job
        return CompletionChunk(id=job.id, created=job.created, model=job.model, choices=choices, usage=usage)

    def choices(self, prompt: int, output: RequestOutput) -> list[CompletionChoice]:
        self.counter.add(prompt, output, count_completion=not self._echo_only)
        if output.prompt_logprobs is not None:
            self._prompt_logprobs[prompt] = output.prompt_logprobs
        return [self._choice(prompt, output, sequence) for sequence in output.outputs]

    def is_empty(self, choice: CompletionChoice) -> bool:
        """Whether a chunk would tell the client nothing: the detokenizer holds text back."""
        return not (choice.text or choice.finish_reason or choice.logprobs or choice.token_ids)

    def _choice(self, prompt: int, output: RequestOutput, sequence: CompletionOutput) -> CompletionChoice:
        body, job = self._body, self._job
        index = prompt * job.params.n + sequence.index
        first = index not in self._lengths
        text = "" if self._echo_only else sequence.text
        token_ids = [] if self._echo_only else list(sequence.token_ids)
        logprobs = self._logprobs(prompt, sequence, token_ids, index, echo=first and bool(body.echo))
        if first and body.echo:
            text = self._prompt_text(prompt) + text
            token_ids = job.prompts[prompt] + token_ids
        self._lengths[index] = self._lengths.get(index, 0) + len(text)
        ids_wanted, embeds = bool(body.return_token_ids), job.admitted[prompt].embeds
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=logprobs,
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            token_ids=token_ids if ids_wanted else None,
            prompt_token_ids=job.prompts[prompt] if ids_wanted and first and not embeds else None,
            prompt_logprobs=UNSET if body.stream else prompt_logprobs_of(output.prompt_logprobs),
        )

    def _prompt_text(self, prompt: int) -> str:
        given = (self._body.prompt or [])[prompt]  # of embeddings nothing is echoed
        if isinstance(given, str) and self._body.truncate_prompt_tokens is None:
            return given
        return self._tokenizer.decode(self._job.prompts[prompt], skip_special_tokens=False)

    def _logprobs(
        self, prompt: int, sequence: CompletionOutput, token_ids: list[int], index: int, *, echo: bool
    ) -> CompletionLogprobs | None:
        """Of the new tokens, after those of the prompt where it is echoed."""
        if self._body.logprobs is None:
            return None
        positions: list[PositionLogprobs | None] = []
        positions += (sequence.logprobs or [])[: len(token_ids)]
        if echo:
            token_ids = self._job.prompts[prompt] + token_ids
            positions = self._prompt_logprobs[prompt] + positions
        return completion_logprobs(token_ids, positions, self._lengths.get(index, 0), self._name)
