"""POST /v1/completions and its /render: text (or token ids) in, text out."""

from collections.abc import Sequence

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
from headrace.server.generation import Job, admit, check_generating
from headrace.server.logprobs import completion_logprobs, token_namer
from headrace.server.routing import new_router
from headrace.server.sampling import completion_params, echo_only
from headrace.server.schema import CompletionRequest
from headrace.server.sse import event
from headrace.server.writer import Writer
from headrace.types import CompletionOutput, PositionLogprobs, RequestOutput

router = new_router()


@router.post("/v1/completions", tags=["generate"])
async def create_completion(body: CompletionRequest, request: Request) -> Response:
    return await CompletionWriter(body, await admit_completion(request, body)).response(request)


@router.post("/v1/completions/render", tags=["tokens"])
async def render_completion(body: CompletionRequest, request: Request) -> Response:
    job = await admit_completion(request, body)
    if any(admitted.embeds for admitted in job.admitted):
        raise RequestError("A prompt of embeddings has no token ids to render.", "prompt_embeds")
    return json_response([as_generate_request(body, job, tokens) for tokens in job.prompts])


async def admit_completion(request: Request, body: CompletionRequest) -> Job:
    context = context_of(request)
    check_generating(context, body)
    prompts = await read_prompts(context, body)
    return await admit(
        request,
        body,
        "cmpl",
        prompts,
        completion_params(body, context.engine.info.default_sampling),
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


class CompletionWriter(Writer):
    """Choices are numbered prompt by prompt. Remembers where the text of each one's next token begins."""

    def __init__(self, body: CompletionRequest, job: Job):
        super().__init__(body, job)
        self._body = body
        self._name = token_namer(job.context, body)
        self._echo_only = echo_only(body)
        self._offsets: dict[int, int] = {}  # in the texts of a choice's tokens; one not in here has not begun
        self._prompt_logprobs: dict[int, list[PositionLogprobs | None]] = {}

    def whole(self, outputs: Sequence[RequestOutput]) -> Completion:
        job = self.job
        return Completion(
            id=job.id,
            created=job.created,
            model=job.model,
            choices=[choice for prompt, output in enumerate(outputs) for choice in self._choices(prompt, output)],
            system_fingerprint=job.context.system_fingerprint,
            usage=self.counter.usage(),
        )

    def events(self, prompt: int, output: RequestOutput) -> bytes:
        """A chunk for each choice, unless the detokenizer holds its text back."""
        choices = self._choices(prompt, output)
        usage = self.counter.running_usage()
        return b"".join(
            event(self._chunk([choice], usage))
            for choice in choices
            if choice.text or choice.finish_reason or choice.logprobs or choice.token_ids
        )

    def end(self) -> bytes:
        return event(self._chunk([], self.counter.usage())) if self.counter.at_end else b""

    def _chunk(self, choices: list[CompletionChoice], usage: Usage | UnsetType) -> CompletionChunk:
        job = self.job
        return CompletionChunk(id=job.id, created=job.created, model=job.model, choices=choices, usage=usage)

    def _choices(self, prompt: int, output: RequestOutput) -> list[CompletionChoice]:
        self.counter.add(prompt, output, count_completion=not self._echo_only)
        if output.prompt_logprobs is not None:
            self._prompt_logprobs[prompt] = output.prompt_logprobs
        return [self._choice(prompt, output, sequence) for sequence in output.outputs]

    def _choice(self, prompt: int, output: RequestOutput, sequence: CompletionOutput) -> CompletionChoice:
        body, job = self._body, self.job
        index = prompt * job.params.n + sequence.index
        first = index not in self._offsets
        text = "" if self._echo_only else sequence.text
        token_ids = [] if self._echo_only else list(sequence.token_ids)
        logprobs = self._logprobs(prompt, sequence, token_ids, index, echo=first and bool(body.echo))
        if first and body.echo:
            text = self._prompt_text(prompt) + text
            token_ids = job.prompts[prompt] + token_ids
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
        given = self.job.admitted[prompt]
        if given.text is not None and self._body.truncate_prompt_tokens is None:
            return given.text
        return self.job.context.engine.tokenizer.decode(given.token_ids, skip_special_tokens=False)

    def _logprobs(
        self, prompt: int, sequence: CompletionOutput, token_ids: list[int], index: int, *, echo: bool
    ) -> CompletionLogprobs | None:
        """Of the new tokens, after those of the prompt where it is echoed."""
        offset = self._offsets.setdefault(index, 0)
        if self._body.logprobs is None and not self._body.logprob_token_ids:
            return None
        positions: list[PositionLogprobs | None] = []
        positions += (sequence.logprobs or [])[: len(token_ids)]
        if echo:
            token_ids = self.job.prompts[prompt] + token_ids
            positions = self._prompt_logprobs[prompt] + positions
        found = completion_logprobs(token_ids, positions, offset, self._name)
        self._offsets[index] += sum(map(len, found.tokens))
        return found
