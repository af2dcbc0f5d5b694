"""POST /v1/chat/completions and its /render: a conversation in, the next message out."""

from collections.abc import Sequence
from dataclasses import replace

from fastapi import Request
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.chat import render_chat
from headrace.frontend.parsers.choose import place_of
from headrace.frontend.rendering import final_text
from headrace.frontend.sandbox import render_apart, render_bounded
from headrace.frontend.validation import check_template
from headrace.server.answers import Answers, Reading, says_something
from headrace.server.bodies import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    Usage,
    json_response,
    prompt_logprobs_of,
)
from headrace.server.context import Context, context_of
from headrace.server.generate import as_generate_request
from headrace.server.generation import Job, admit, check_generating
from headrace.server.logprobs import chat_logprobs, token_namer
from headrace.server.routing import new_router
from headrace.server.sampling import chat_params
from headrace.server.schema import ChatFields, ChatRequest
from headrace.server.sse import event
from headrace.server.tools import ToolUse, offered, tool_use, warn_unreadable
from headrace.server.writer import Writer
from headrace.types import CompletionOutput, RequestOutput, SamplingParams, StructuredOutputsParams

router = new_router()


@router.post("/v1/chat/completions", tags=["generate"])
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    return await ChatWriter(body, await admit_chat(request, body)).response(request)


@router.post("/v1/chat/completions/render", tags=["tokens"])
async def render_chat_completion(body: ChatRequest, request: Request) -> Response:
    job = await admit_chat(request, body)
    return json_response(as_generate_request(body, job, job.prompts[0]))


async def admit_chat(request: Request, body: ChatRequest, prefix: str = "chatcmpl") -> Job:
    """``prefix`` begins the job's id."""
    context = context_of(request)
    check_generating(context, body)
    use = tool_use(body)
    params = chat_params(body, context.config, context.engine.info.default_sampling)
    prompt = await rendered(context, body)
    reading, params = reading_of(context, body, use, params, prompt)
    job = await admit(
        request,
        body,
        prefix,
        [prompt],
        params,
        add_special_tokens=body.add_special_tokens,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )
    return replace(job, reading=reading)


def reading_of(
    context: Context, body: ChatRequest, use: ToolUse, params: SamplingParams, prompt: str
) -> tuple[Reading, SamplingParams]:
    """How the answers to ``prompt`` are read, and ``params`` that make them readable so."""
    most_calls = 1 if body.parallel_tool_calls is False else None
    reasoning, tools = context.formats.reasoning, context.formats.tools
    short_ids = tools is not None and tools.short_ids
    if use.forced:
        params = params.clone(structured_outputs=StructuredOutputsParams(json=use.answer_schema(most_calls)))
    continued = final_text(body.messages) if body.continue_final_message else None
    place = place_of(reasoning, prompt, continued) if reasoning else None
    if params.structured_outputs is not None:
        tools = None
        if not context.thinks_first or place == "over":  # then the grammar holds from the first token on
            place, reasoning = "over", None
    elif use.schemas and tools is None:
        warn_unreadable()
    tools = tools if use.schemas else None
    reading = Reading(
        sections=use.sections(reasoning) if use.forced else tools.sections if tools else (),
        reasoning=reasoning,
        tools=use.schemas,
        inside=place == "inside",
        most_calls=most_calls,
        short_ids=short_ids,
        show_reasoning=body.include_reasoning is not False,
    )
    special = any(format is not None and format.special for format in (tools, reasoning))
    return reading, params.clone(reasoning=place, **({"skip_special_tokens": False} if special else {}))


async def rendered(context: Context, body: ChatFields) -> str:
    """The conversation of ``body`` as prompt text."""
    options = context.config.frontend
    if body.chat_template is not None:
        if not options.trust_request_chat_template:
            message = "A request may bring its own chat_template only if the server has --trust-request-chat-template."
            raise RequestError(message, "chat_template")
        check_template(body.chat_template)
    kwargs = {**options.default_chat_template_kwargs}
    if body.reasoning_effort is not None:
        kwargs |= {"reasoning_effort": body.reasoning_effort, "enable_thinking": body.reasoning_effort != "none"}
    if body.verbosity is not None:
        kwargs["verbosity"] = body.verbosity
    kwargs |= body.chat_template_kwargs or {}
    tools, choice = offered(body)
    hidden = choice == "none" and context.config.parsers.exclude_tools_when_tool_choice_none

    def render() -> str:
        return render_chat(
            context.engine.tokenizer,
            body.messages,
            chat_template=body.chat_template or context.chat_template,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            content_format=options.chat_template_content_format,
            template_kwargs=kwargs,
            tools=None if hidden else tools,
            documents=body.documents,
            render=render_bounded if body.chat_template is None else render_apart,
        )

    return await context.in_thread("Rendering the chat template", render)


class ChatWriter(Writer):
    def __init__(self, body: ChatRequest, job: Job):
        super().__init__(body, job)
        self._body = body
        self._name = token_namer(job.context, body)
        self._answers = Answers(job.reading)
        self._prompt_text = (job.admitted[0].text or "") if body.return_prompt_text else UNSET
        last = body.messages[-1]
        self._role = "assistant" if body.add_generation_prompt else str(last["role"])
        echoed = body.echo and last["role"] == self._role
        self._echo = final_text(body.messages) if echoed else ""
        self._all_chunks = bool(body.return_token_ids or body.logprobs)  # those without text have news too
        self._begun = False

    def whole(self, outputs: Sequence[RequestOutput]) -> ChatCompletion:
        job, [output] = self.job, outputs
        self.counter.add(0, output)
        ids_wanted = bool(self._body.return_token_ids)
        choices = [
            ChatChoice(
                index=sequence.index,
                message=self._answers.message(self._role, self._echo, sequence),
                logprobs=self._logprobs(sequence),
                finish_reason=self._answers.finish_reason(sequence),
                stop_reason=sequence.stop_reason,
                token_ids=list(sequence.token_ids) if ids_wanted else None,
            )
            for sequence in output.outputs
        ]
        return ChatCompletion(
            id=job.id,
            created=job.created,
            model=job.model,
            choices=choices,
            system_fingerprint=job.context.system_fingerprint,
            usage=self.counter.usage(),
            prompt_logprobs=prompt_logprobs_of(output.prompt_logprobs),
            prompt_token_ids=job.prompts[0] if ids_wanted else None,
            prompt_text=self._prompt_text,
        )

    def events(self, prompt: int, output: RequestOutput) -> bytes:
        """With the first output a chunk naming the role for each sequence, then the sequences' text as it comes."""
        self.counter.add(prompt, output)
        usage = self.counter.running_usage()
        data = b"" if self._begun else b"".join(map(event, self._opening(usage)))
        self._begun = True
        for sequence in output.outputs:
            delta = self._answers.delta(sequence)
            if says_something(delta) or sequence.finish_reason or self._all_chunks:
                data += event(self._chunk([self._choice(sequence, delta)], usage))
        return data

    def end(self) -> bytes:
        return event(self._chunk([], self.counter.usage())) if self.counter.at_end else b""

    def _opening(self, usage: Usage | UnsetType) -> list[ChatChunk]:
        chunks = []
        for index in range(self.job.params.n):
            chunk = self._chunk([ChatChunkChoice(index=index, delta=ChatDelta(role=self._role, content=""))], usage)
            if self._body.return_token_ids:
                chunk.prompt_token_ids = self.job.prompts[0]
            chunk.prompt_text = self._prompt_text
            chunks.append(chunk)
        if self._echo:
            delta = ChatDelta(content=self._echo)
            chunks += [self._chunk([ChatChunkChoice(index=i, delta=delta)], usage) for i in range(self.job.params.n)]
        return chunks

    def _choice(self, sequence: CompletionOutput, delta: ChatDelta) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=sequence.index,
            delta=delta,
            logprobs=self._logprobs(sequence),
            finish_reason=self._answers.finish_reason(sequence),
            stop_reason=sequence.stop_reason if sequence.finish_reason else UNSET,
            token_ids=list(sequence.token_ids) if self._body.return_token_ids else UNSET,
        )

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | UnsetType) -> ChatChunk:
        job = self.job
        return ChatChunk(id=job.id, created=job.created, model=job.model, choices=choices, usage=usage)

    def _logprobs(self, sequence: CompletionOutput) -> ChatLogprobs | None:
        if sequence.logprobs is None:
            return None
        num_top = -1 if self._body.logprob_token_ids else self._body.top_logprobs or 0
        return chat_logprobs(sequence.token_ids, sequence.logprobs, num_top, self._name)
