"""POST /inference/v1/generate: token ids in, token ids (or text) out; what the /render routes answer fits in here."""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing
from typing import Any

import msgspec
from fastapi import Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.server.abort import abortable_of
from headrace.server.bodies import GenerateChoice, Generated, Usage, json_response, prompt_logprobs_of
from headrace.server.context import Context, context_of
from headrace.server.generation import Job, TokenCounter, admit, check_body, final_outputs, merged_outputs
from headrace.server.logprobs import id_logprobs
from headrace.server.protocol import GenerateRequest, StreamFields
from headrace.server.routing import new_router
from headrace.server.sampling import generate_params
from headrace.server.sse import EventStream, event
from headrace.types import OutputKind, RequestOutput

router = new_router()


@router.post("/inference/v1/generate", tags=["tokens"])
async def generate(body: GenerateRequest, request: Request) -> Response:
    context = context_of(request)
    check_body(context, body)
    if body.output_mode == "text" and context.config.model.skip_tokenizer_init:
        message = "output_mode text needs a tokenizer, and --skip-tokenizer-init left it out."
        raise RequestError(message, "output_mode")
    params = generate_params(body, context.config)
    params = params.clone(detokenize=body.output_mode == "text" or bool(params.stop))
    job = await admit(context, request, body, "generate-tokens", [body.token_ids], params)
    writer = GenerateWriter(context, body, job)
    named = abortable_of(request).named(request, body, job)
    if body.stream:
        return EventStream(writer.stream(context, named), context.config.server.sse_keep_alive_interval)
    with named:
        (output,) = await final_outputs(context, request, job)
    answer = writer.first(output)
    answer.usage = writer.counter.usage()
    return json_response(answer)


class GenerateWriter:
    """Turns outputs into answers: a whole one, or the chunks of a stream."""

    def __init__(self, context: Context, body: GenerateRequest, job: Job):
        self.counter = TokenCounter(context, body, job)
        self._body = body
        self._job = job

    def answer(self, output: RequestOutput) -> Generated:
        self.counter.add(0, output)
        num_top = self._job.params.logprobs or 0
        choices = [
            GenerateChoice(
                index=sequence.index,
                finish_reason=sequence.finish_reason,
                stop_reason=sequence.stop_reason,
                token_ids=list(sequence.token_ids),
                text=sequence.text if self._body.output_mode == "text" else UNSET,
                logprobs=(
                    None if sequence.logprobs is None else id_logprobs(sequence.token_ids, sequence.logprobs, num_top)
                ),
            )
            for sequence in output.outputs
        ]
        return self._generated(choices, UNSET)

    def first(self, output: RequestOutput) -> Generated:
        """The only answer, or the first chunk: it has what is to be said of the prompt."""
        answer = self.answer(output)
        if self._body.return_token_ids:
            answer.prompt_token_ids = self._job.prompts[0]
        answer.prompt_logprobs = prompt_logprobs_of(output.prompt_logprobs)
        return answer

    async def stream(self, context: Context, named: AbstractContextManager[None]) -> AsyncGenerator[bytes, None]:
        begun = False
        with named:
            async with aclosing(merged_outputs(context, self._job)) as outputs:
                async for _, output in outputs:
                    chunk = self.answer(output) if begun else self.first(output)
                    chunk.usage = self.counter.running_usage()
                    begun = True
                    yield event(chunk)
        if self.counter.at_end:
            yield event(self._generated([], self.counter.usage()))

    def _generated(self, choices: list[GenerateChoice], usage: Usage | UnsetType) -> Generated:
        job = self._job
        return Generated(
            request_id=job.id,
            model=job.model,
            created=job.created,
            choices=choices,
            usage=usage,
            output_mode=self._body.output_mode,
        )


def as_generate_request(context: Context, body: StreamFields, job: Job, token_ids: list[int]) -> dict[str, Any]:
    """The body that, sent to /inference/v1/generate, generates for one prompt of ``job``."""
    params = job.params.clone(output_kind=OutputKind.CUMULATIVE)  # the default, so it stays unsaid
    if params.max_tokens is None:
        params = params.clone(max_tokens=context.engine.info.max_model_len - len(token_ids))
    rendered: dict[str, Any] = {
        "request_id": job.id,
        "model": job.model,
        "token_ids": token_ids,
        "sampling_params": msgspec.to_builtins(params, str_keys=True),
        "stream": bool(body.stream),
        "stream_options": body.stream_options and body.stream_options.model_dump(exclude_none=True),
        "cache_salt": job.cache_salt,
        "priority": job.priority,
    }
    return {name: value for name, value in rendered.items() if value is not None}
