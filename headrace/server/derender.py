"""POST /v1/chat/completions/derender and /v1/completions/derender: what /inference/v1/generate answered becomes the
answer of the route that rendered the prompt. The bodies are vLLM's; nothing is generated.

With the rendered request beside it the answer is the very one that the route itself would have given: stop strings cut,
reasoning and tool calls taken apart. Without it the tokens are plain text.
"""

import time
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import Request
from pydantic import Field
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.detokenizer import Detokenizer
from headrace.frontend.door import Admitted
from headrace.server.bodies import GenerateChoice, Generated, IdLogprobs, PromptLogprobs, Usage, json_response
from headrace.server.chat import ChatWriter, admit_chat
from headrace.server.completions import CompletionWriter, admit_completion
from headrace.server.context import Context, context_of
from headrace.server.generation import Job, new_id
from headrace.server.routing import new_router
from headrace.server.schema import ChatRequest, CompletionRequest, Count, ModelField
from headrace.types import CompletionOutput, Logprob, PositionLogprobs, RequestOutput, SamplingParams

router = new_router()


class DerenderChatRequest(ModelField):
    """POST /v1/chat/completions/derender"""

    generate_response: dict[str, Any]
    prompt_tokens: Count | None = None
    chat_request: ChatRequest | None = None
    stream: bool | None = None


class DerenderCompletionRequest(ModelField):
    """POST /v1/completions/derender: a response and a count for each prompt."""

    generate_responses: Annotated[list[dict[str, Any]], Field(min_length=1)]
    prompt_tokens: list[Count] | None = None
    completion_request: CompletionRequest | None = None
    stream: bool | None = None


@router.post("/v1/chat/completions/derender", tags=["tokens"])
async def derender_chat(body: DerenderChatRequest, request: Request) -> Response:
    context = context_of(request)
    model = checked_model(context, body.model, body.stream)
    generated = generated_of(context, body.generate_response, "generate_response")
    if body.chat_request is None:
        chat = ChatRequest(messages=[{"role": "user", "content": ""}])
        job = plain_job(context, "chatcmpl", model, [generated])
    else:
        chat = body.chat_request.model_copy(update={"stream": None, "stream_options": None})
        job = await admit_chat(request, chat)
    answer = ChatWriter(chat, job).whole([await context.in_thread("Detokenizing", output_of, job, 0, generated)])
    if body.chat_request is None:
        answer.usage = counted(answer.usage, body.prompt_tokens or prompt_tokens_of(generated))
    return json_response(answer)


@router.post("/v1/completions/derender", tags=["tokens"])
async def derender_completion(body: DerenderCompletionRequest, request: Request) -> Response:
    context = context_of(request)
    model = checked_model(context, body.model, body.stream)
    responses = [generated_of(context, response, "generate_responses") for response in body.generate_responses]
    if body.prompt_tokens is not None and len(body.prompt_tokens) != len(responses):
        raise RequestError("prompt_tokens needs a count for each of generate_responses.", "prompt_tokens")
    if body.completion_request is None:
        completion, job = CompletionRequest(prompt=[""] * len(responses)), plain_job(context, "cmpl", model, responses)
    else:
        completion = body.completion_request.model_copy(update={"stream": None, "stream_options": None})
        job = await admit_completion(request, completion)
    if len(responses) != len(job.prompts):
        raise RequestError("generate_responses needs an entry for each prompt.", "generate_responses")
    outputs = [
        await context.in_thread("Detokenizing", output_of, job, place, generated)
        for place, generated in enumerate(responses)
    ]
    answer = CompletionWriter(completion, job).whole(outputs)
    if body.completion_request is None:
        answer.usage = counted(answer.usage, sum(body.prompt_tokens or map(prompt_tokens_of, responses)))
    return json_response(answer)


def checked_model(context: Context, model: str | None, stream: bool | None) -> str:
    """The name to answer under."""
    if stream:
        message = "Streams are not derendered piece by piece: stream from the route itself, or send the whole answer."
        raise RequestError(message, "stream")
    return context.served_model(model)


def plain_job(context: Context, prefix: str, model: str, responses: list[Generated]) -> Job:
    """What stands for a request that isn't known."""
    count = max((choice.index + 1 for response in responses for choice in response.choices), default=1)
    params = SamplingParams(n=count)
    return Job(
        context=context,
        id=new_id(prefix),
        created=int(time.time()),
        model=model,
        admitted=[Admitted(None, [], params) for _ in responses],
        params=params,
    )


# -- from tokens to outputs -----------------------------------------------------------------------------------------


def generated_of(context: Context, response: dict[str, Any], field: str) -> Generated:
    """A body of /inference/v1/generate, of which only ``choices`` is needed. Raises RequestError naming ``field``."""
    missing = {"request_id": "", "model": "", "created": 0, "output_mode": "tokens"}
    known = {name: value for name, value in response.items() if value is not None}
    try:
        generated = msgspec.convert(missing | known, Generated, str_keys=True)
    except msgspec.ValidationError as error:
        raise RequestError(f"{field} is no answer of /inference/v1/generate: {error}.", field) from None
    limit = context.engine.info.vocab_size
    if any(not 0 <= token < limit for choice in generated.choices for token in choice.token_ids):
        raise RequestError(f"{field} has token ids beyond the vocabulary of {limit:,} tokens.", field)
    if sorted(choice.index for choice in generated.choices) != list(range(len(generated.choices))):
        raise RequestError(f"The choices of {field} must be numbered from 0.", field)
    return generated


def output_of(job: Job, place: int, generated: Generated) -> RequestOutput:
    """What the engine's handle gave, or would have given, for the ``place``-th prompt of ``job``."""
    details = generated.usage.prompt_tokens_details if isinstance(generated.usage, Usage) else None
    name = job.context.engine.tokenizer.token_text
    outputs = [
        CompletionOutput(
            index=choice.index,
            text=text_of(job, job.prompts[place], choice),
            token_ids=choice.token_ids,
            logprobs=None if choice.logprobs is None else positions_of(choice.logprobs, name),
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
        )
        for choice in generated.choices
    ]
    prompt_logprobs = generated.prompt_logprobs if isinstance(generated.prompt_logprobs, list) else None
    return RequestOutput(
        request_id=job.id,
        prompt=None,
        prompt_token_ids=job.prompts[place],
        outputs=outputs,
        finished=True,
        prompt_logprobs=None if prompt_logprobs is None else prompt_positions_of(prompt_logprobs, name),
        num_cached_tokens=details.cached_tokens if details else None,
    )


def text_of(job: Job, prompt: list[int], choice: GenerateChoice) -> str:
    engine, stop = job.context.engine, choice.stop_reason
    detokenizer = Detokenizer(engine.tokenizer, prompt, job.params)
    by_token = choice.finish_reason == "stop" and {stop, *engine.info.eos_token_ids}.issuperset(choice.token_ids[-1:])
    detokenizer.add(choice.token_ids, ends=by_token)
    return detokenizer.take(finished=True)


def positions_of(logprobs: IdLogprobs, name: Callable[[int], str]) -> list[PositionLogprobs]:
    return [
        {
            each.token_id: Logprob(each.logprob, each.rank, name(each.token_id))
            for each in [entry, *(entry.top_logprobs or [])]
        }
        for entry in logprobs.content
    ]


def prompt_positions_of(positions: PromptLogprobs, name: Callable[[int], str]) -> list[PositionLogprobs | None]:
    return [
        None
        if position is None
        else {token: Logprob(entry.logprob, entry.rank, name(token)) for token, entry in position.items()}
        for position in positions
    ]


# -- usage ----------------------------------------------------------------------------------------------------------


def prompt_tokens_of(generated: Generated) -> int:
    return generated.usage.prompt_tokens if isinstance(generated.usage, Usage) else 0


def counted(usage: Usage, prompt_tokens: int) -> Usage:
    """``usage`` with the prompt's tokens, which were not known."""
    usage.prompt_tokens, usage.total_tokens = prompt_tokens, prompt_tokens + usage.completion_tokens
    return usage
