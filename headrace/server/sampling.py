"""From request fields to SamplingParams: the one conversion that every generating route uses.

Owns the defaults (the model's generation config, then the API's); the ranges are SamplingParams' own.
"""

from typing import Any

from headrace.config import Config
from headrace.errors import RequestError
from headrace.frontend.validation import check_logprobs
from headrace.params import typed
from headrace.server.schema import ChatRequest, CompletionRequest, GenerateRequest, SamplingFields, StreamFields
from headrace.server.structured import structured_outputs
from headrace.types import OutputKind, SamplingParams

# Request fields that carry over under their own name; null means "not given".
COPIED = (
    *("n", "min_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "seed", "stop", "stop_token_ids", "bad_words", "allowed_token_ids", "logit_bias"),
    *("ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens"),
    *("thinking_token_budget", "best_of", "use_beam_search", "length_penalty", "early_stopping"),
    *("logprob_token_ids", "stream_interval"),
)


def completion_params(body: CompletionRequest, defaults: dict[str, Any]) -> SamplingParams:
    """Echoing with ``max_tokens`` 0 asks for the prompt alone; the engine generates at least one token for it."""
    logprobs = 0 if body.logprob_token_ids else body.logprobs
    prompt_logprobs = logprobs if body.echo and body.prompt_logprobs is None else body.prompt_logprobs
    max_tokens = 1 if echo_only(body) else body.max_tokens
    return build(body, defaults, max_tokens, logprobs=logprobs, prompt_logprobs=prompt_logprobs)


def echo_only(body: CompletionRequest) -> bool:
    return bool(body.echo) and body.max_tokens == 0


def chat_params(body: ChatRequest, config: Config, defaults: dict[str, Any]) -> SamplingParams:
    """Without ``max_tokens`` an answer may fill the model's length."""
    if body.top_logprobs and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
    if body.logprob_token_ids and not body.logprobs:
        raise RequestError("logprob_token_ids need logprobs to be true.", "logprob_token_ids")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    check_logprobs("top_logprobs", logprobs, config)  # here the field has another name
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return build(body, defaults, max_tokens, logprobs=logprobs, prompt_logprobs=body.prompt_logprobs)


def generate_params(body: GenerateRequest) -> SamplingParams:
    """The body carries SamplingParams itself; nothing is filled in. A null ``max_tokens`` has no limit."""
    given = {name: value for name, value in body.sampling_params.items() if value is not None or name == "max_tokens"}
    return typed(given, SamplingParams, "sampling_params").clone(output_kind=output_kind_of(body))


def build(
    body: SamplingFields,
    defaults: dict[str, Any],
    max_tokens: int | None,
    *,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    if body.stream and body.prompt_logprobs:
        raise RequestError("prompt_logprobs are not available with stream; leave one of them out.", "prompt_logprobs")
    given = {name: value for name in COPIED if (value := getattr(body, name)) is not None}
    given |= {"logprobs": logprobs, "prompt_logprobs": prompt_logprobs, "extra_args": body.vllm_xargs}
    given["structured_outputs"] = structured_outputs(body)
    given["max_tokens"] = defaults.get("max_tokens") if max_tokens is None else max_tokens
    given["output_kind"] = output_kind_of(body)
    if body.use_beam_search:
        defaults = {}  # advice on sampling
    return SamplingParams(**(defaults | given))


def output_kind_of(body: StreamFields) -> OutputKind:
    """Whether outputs are to come as they are made, or the last one only."""
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream to be true.", "stream_options")
    return OutputKind.DELTA if body.stream else OutputKind.FINAL_ONLY
