"""POST /inference/v1/generate: token ids in, token ids (or text) out; what the /render routes answer fits in here."""

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.server.abort import abortable_of
from headrace.server.bodies import GenerateChoice, Generated, Usage, prompt_logprobs_of
from headrace.server.context import context_of
from headrace.server.generation import Job, admit, check_generating
from headrace.server.logprobs import id_logprobs
from headrace.server.routing import new_router
from headrace.server.sampling import generate_params
from headrace.server.schema import GenerateRequest, StreamFields
from headrace.server.sse import event
from headrace.server.writer import Writer
from headrace.types import OutputKind, RequestOutput

router = new_router()


@router.post("/inference/v1/generate", tags=["tokens"])
async def generate(body: GenerateRequest, request: Request) -> Response:
    context = context_of(request)
    check_generating(context, body)
    if body.output_mode == "text" and context.config.model.skip_tokenizer_init:
        message = "output_mode text needs a tokenizer, and --skip-tokenizer-init left it out."
        raise RequestError(message, "output_mode")
    params = generate_params(body)
    params = params.clone(detokenize=body.output_mode == "text" or bool(params.stop))
    job = await admit(request, body, "generate-tokens", [body.token_ids], params)
    request.state.unfinished.enter_context(abortable_of(request).named(request, body, job))
    return await GenerateWriter(body, job).response(request)


class GenerateWriter(Writer):
    """A whole answer and the chunks of a stream look alike."""

    def __init__(self, body: GenerateRequest, job: Job):
        super().__init__(body, job)
        self._body = body
        self._begun = False

    def whole(self, outputs: Sequence[RequestOutput]) -> Generated:
        [output] = outputs
        answer = self._answer(output)
        answer.usage = self.counter.usage()
        return answer

    def events(self, prompt: int, output: RequestOutput) -> bytes:
        return event(self._answer(output))

    def end(self) -> bytes:
        return event(self._generated([], self.counter.usage())) if self.counter.at_end else b""

    def _answer(self, output: RequestOutput) -> Generated:
        """The only answer, or a chunk; the first one has what is to be said of the prompt."""
        self.counter.add(0, output)
        num_top = -1 if self.job.params.logprob_token_ids else self.job.params.logprobs or 0
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
        answer = self._generated(choices, self.counter.running_usage())
        if not self._begun:
            self._begun = True
            answer.prompt_token_ids = self.job.prompts[0] if self._body.return_token_ids else UNSET
            answer.prompt_logprobs = prompt_logprobs_of(output.prompt_logprobs)
        return answer

    def _generated(self, choices: list[GenerateChoice], usage: Usage | UnsetType) -> Generated:
        job = self.job
        return Generated(
            request_id=job.id,
            model=job.model,
            created=job.created,
            choices=choices,
            usage=usage,
            output_mode=self._body.output_mode,
        )


def as_generate_request(body: StreamFields, job: Job, token_ids: list[int]) -> dict[str, Any]:
    """The body that, sent to /inference/v1/generate, generates for one prompt of ``job``."""
    params = job.params.clone(output_kind=OutputKind.CUMULATIVE)  # the default, so it stays unsaid
    if params.max_tokens is None:
        params = params.clone(max_tokens=job.context.engine.info.max_model_len - len(token_ids))
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
