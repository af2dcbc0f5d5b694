"""The checks a request must pass before anything is queued: the one validator of every route and handle.

Ranges of single fields are ``SamplingParams``' own; here are sizes, and what needs the model. Knows no engine, no HTTP.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from headrace.config import Config
from headrace.errors import RequestError
from headrace.params import typed
from headrace.types import EngineInfo, OutputKind, PoolingParams, SamplingParams

MAX_PROMPTS = 1024  # of one completion request
MAX_INPUTS = 2048  # of one pooling request, as OpenAI's
MAX_ENTRIES = {"stop": 64, "bad_words": 128, "stop_token_ids": 1024, "logit_bias": 1024, "logprob_token_ids": 1024}
MAX_CHARACTERS = {"stop": 1024, "bad_words": 256}  # of one entry
MAX_BAD_WORD_ROWS = 4096  # n * bad_words: each is looked at in every step
MAX_EXTRA_BYTES = 65_536  # of vllm_xargs, or of chat_template_kwargs, as JSON
MAX_MESSAGES = 4096
MAX_PARTS = 16_384  # of the contents of all messages together
MAX_TOOLS = 1024
MAX_TOOL_NAME = 256  # characters
MAX_DOCUMENTS = 1024
MAX_TEMPLATE = 131_072  # characters of a chat template that a request brings
LONG_TOKEN = 128  # characters: texts are refused unread if not even tokens of such a length make them fit
MAX_BEAM_WIDTH = 128  # each step looks at so many tokens after each of so many sequences
UNSEARCHABLE: dict[str, Any] = {  # what a beam search can't obey: the fields, and the values that ask for nothing
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_tokens"), 0),
    **dict.fromkeys(("allowed_token_ids", "logit_bias", "structured_outputs", "thinking_token_budget")),
    **dict.fromkeys(("logprob_token_ids", "trace_decode_token_ids")),
    "repetition_penalty": 1.0,
    "stop": [],
    "bad_words": [],
}
BEAMS_ONLY = {"length_penalty": 1.0, "early_stopping": False}

T = TypeVar("T")


def too_long(found: str, info: EngineInfo, param: str) -> RequestError:
    """Of a prompt. By these words LiteLLM and Anthropic's clients know it, and shorten it or ask a larger model."""
    limit = f"this model's maximum context length is {info.max_model_len} tokens"
    return RequestError(f"The prompt is too long: {limit}, {found}.", param)


def check_prompt(token_ids: list[int], info: EngineInfo) -> None:
    """Raise ``RequestError`` unless the model can go on from this prompt."""
    if not token_ids:
        raise RequestError("The prompt is empty; it needs at least one token.", "prompt")
    if len(token_ids) >= info.max_model_len:
        raise too_long(f"one for the output at least; the prompt has {len(token_ids)}", info, "input_tokens")
    _check_ids(token_ids, info.vocab_size, "prompt")


def check_pooled_prompt(token_ids: list[int], info: EngineInfo) -> None:
    """Raise ``RequestError`` unless the model can pool this prompt."""
    if not token_ids:
        raise RequestError("The prompt is empty; it needs at least one token.", "input")
    if len(token_ids) > info.max_model_len:
        found = f"and it has {len(token_ids)}; shorten it, or have it cut with truncate_prompt_tokens -1"
        raise too_long(found, info, "input")
    _check_ids(token_ids, info.vocab_size, "input")


def settled(params: PoolingParams, info: EngineInfo) -> PoolingParams:
    """``params`` with their task. Raises ``RequestError`` if the model can't do it."""
    _check_message(params)
    if info.tasks == ["generate"]:
        raise RequestError(
            "This model was started to generate text; start it with --task embed, or serve an embedding model or a "
            "reranker, to pool prompts.",
            "model",
        )
    task = params.task or info.tasks[0]
    if task not in info.tasks:
        raise RequestError(f"This model can't {task}; it can do {', '.join(info.tasks)}.", "task")
    if params.dimensions is not None:
        _check_dimensions(params.dimensions, task, info)
    return params.clone(task=task)


def _check_dimensions(dimensions: int, task: str, info: EngineInfo) -> None:
    if not task.endswith("embed"):
        raise RequestError("dimensions are those of embeddings; leave them out.", "dimensions")
    most, *named = info.embedding_sizes
    if dimensions > most:
        raise RequestError(f"dimensions must be at most the model's {most}, got {dimensions}.", "dimensions")
    if named and dimensions not in (most, *named):
        listed = ", ".join(map(str, sorted({most, *named})))
        raise RequestError(f"dimensions must be one of the model's {listed}, got {dimensions}.", "dimensions")


def check_text(text: str, longest_token: int, info: EngineInfo, param: str) -> None:
    """Raise ``RequestError`` if a text is too long for the model, whatever its tokens are; to count them takes time."""
    if len(text) > info.max_model_len * max(longest_token, LONG_TOKEN):
        raise too_long(f"which can't hold its {len(text):,} characters", info, param)


def check_generates(info: EngineInfo) -> None:
    """Raise ``RequestError`` if the model pools prompts instead of generating."""
    if "generate" not in info.tasks:
        use = "/v1/embeddings or /pooling" if "embed" in info.tasks else "/rerank, /score or /classify"
        raise RequestError(f"This model does not generate text; it can {info.tasks[0]}: use {use}.", "model")


def check_params(params: SamplingParams, num_prompt_tokens: int, config: Config, info: EngineInfo) -> None:
    """Raise ``RequestError`` if ``params`` ask for what this model or server can't give."""
    room = info.max_model_len - num_prompt_tokens
    if params.max_tokens is not None and params.max_tokens > room:
        raise RequestError(
            f"max_tokens {params.max_tokens} is too large: this model's maximum context length is "
            f"{info.max_model_len} tokens, which leaves {room} after the prompt's {num_prompt_tokens}.",
            "max_tokens",
        )
    if params.min_tokens > room:
        raise RequestError(f"min_tokens {params.min_tokens} is more than the {room} the context leaves.", "min_tokens")
    _check_sizes(params)
    if params.allowed_token_ids is not None and not 1 <= len(params.allowed_token_ids) <= info.vocab_size:
        raise RequestError("allowed_token_ids must hold at least one token, and no more than all.", "allowed_token_ids")
    for name in ("allowed_token_ids", "logit_bias", "stop_token_ids", "logprob_token_ids", "trace_decode_token_ids"):
        _check_ids(getattr(params, name) or (), info.vocab_size, name)
    for value in (params.logit_bias or {}).values():
        if not -100 <= value <= 100:
            raise RequestError(f"logit_bias values must be in [-100, 100], got {value}.", "logit_bias")
    for name in ("logprobs", "prompt_logprobs"):
        check_logprobs(name, value := getattr(params, name), config)
        if value is not None and value > info.vocab_size:
            raise RequestError(f"{name} must be at most the vocabulary's {info.vocab_size}, got {value}.", name)
    _check_search(params, config)
    if not all(word.strip() for word in params.bad_words):
        raise RequestError("bad_words can't contain an empty string.", "bad_words")
    if params.top_k >= 2**31:
        raise RequestError("top_k must be less than 2**31.", "top_k")


class LoRARequest:
    """vLLM's name for an adapter to generate with; there is none to make."""

    def __init__(self, *_: Any, **__: Any):
        raise NotImplementedError("LoRARequest needs LoRA, which this version does not have yet.")


LATER = {  # arguments of vLLM's methods, and what any value but None of them needs
    "lora_request": "LoRA",
    "mm_processor_kwargs": "media in prompts",
    "trace_headers": "OpenTelemetry traces",
    "data_parallel_rank": "data parallelism",
}


class TokenizationOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What ``tokenization_kwargs`` may hold."""

    add_special_tokens: bool | msgspec.UnsetType = msgspec.UNSET
    truncate_prompt_tokens: Annotated[int, msgspec.Meta(ge=-1)] | msgspec.UnsetType | None = msgspec.UNSET


def tokenization(others: dict[str, Any], **options: Any) -> dict[str, Any]:
    """``options``, and over them the ``tokenization_kwargs`` among the arguments of vLLM's methods that are none of
    ours by name.

    Raises ``RequestError`` if they, or any other of those arguments, ask for what is not there.
    """
    given = others.pop("tokenization_kwargs", None)
    for name, value in others.items():
        if name not in LATER:
            raise TypeError(f"unexpected argument {name!r}")
        if any(entry is not None for entry in (value if isinstance(value, list) else [value])):
            raise RequestError(f"{name} needs {LATER[name]}, which this version does not have yet: leave it out.", name)
    if given is not None:
        options |= typed(given, dict[str, Any], "tokenization_kwargs")
    found: dict[str, Any] = msgspec.to_builtins(typed(options, TokenizationOptions, "tokenization_kwargs"))
    return found


CacheSalt = Annotated[str, msgspec.Meta(min_length=1)]


class Labels(msgspec.Struct):
    """What a request has beside its prompt and parameters."""

    request_id: str
    priority: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
    cache_salt: CacheSalt | None


def of_kind(given: Any, kind: type[T], name: str) -> T:
    """``given``. Raises ``RequestError`` if the argument ``name`` is no ``kind``."""
    if not isinstance(given, kind):
        raise RequestError(f"{name} must be {kind.__name__}, got {given!r}.", name)
    return given


def check_priority(priority: int, config: Config) -> None:
    if priority and config.scheduler.scheduling_policy != "priority":
        raise RequestError(
            "priority needs a server (or LLM) that was started with --scheduling-policy priority.", "priority"
        )


def check_embeds_enabled(config: Config) -> None:
    if not config.model.enable_prompt_embeds:
        raise RequestError(
            "prompt_embeds need a server (or LLM) that was started with --enable-prompt-embeds.", "prompt_embeds"
        )


def check_embeds_params(params: SamplingParams, truncate_prompt_tokens: int | None) -> None:
    """Raise ``RequestError`` for what needs a prompt's token ids, or would send its embeddings once a step."""
    for name, asked in (
        ("prompt_logprobs", params.prompt_logprobs is not None),
        ("use_beam_search", params.use_beam_search),
        ("truncate_prompt_tokens", truncate_prompt_tokens is not None),
    ):
        if asked:
            raise RequestError(f"{name} can't go with prompt_embeds.", name)


def _check_search(params: SamplingParams, config: Config) -> None:
    """Beams are ranked by log-probabilities, as the engine reports them; what changes those can't be obeyed."""
    beams, stopping, mode = params.use_beam_search, params.early_stopping, config.model.logprobs_mode
    if params.output_kind is OutputKind.DELTA and (beams or params.best_of):
        name = "use_beam_search" if beams else "best_of"
        raise RequestError(f"With {name} nothing is settled before the end, so it can't be streamed.", "stream")
    for name, neutral in (UNSEARCHABLE if beams else BEAMS_ONLY).items():
        if (asked := getattr(params, name)) != neutral and asked != {}:
            reason = "can't go with use_beam_search" if beams else "is a beam search's; it needs use_beam_search"
            raise RequestError(f"{name} {reason}.", name)
    if not (isinstance(stopping, bool) or stopping == "never"):
        raise RequestError(f'early_stopping must be true, false or "never", got {stopping!r}.', "early_stopping")
    if beams and params.num_sequences > MAX_BEAM_WIDTH:
        message = f"A beam search may be {MAX_BEAM_WIDTH} sequences wide, got {params.num_sequences}."
        raise RequestError(message, "best_of" if params.best_of else "n")
    if beams and (mode.endswith("logits") or config.model.logits_processors):
        flag = f"--logprobs-mode {mode}" if mode.endswith("logits") else "--logits-processors"
        raise RequestError(f"Beam search can't be used on a server with {flag}.", "use_beam_search")


def check_logprobs(name: str, value: int | None, config: Config) -> None:
    """Raise ``RequestError`` if the field ``name`` asks for more logprobs than the server gives; -1 asks for all."""
    most = config.model.max_logprobs
    if value is not None and most != -1 and not 0 <= value <= most:
        raise RequestError(f"{name} must be at most {most} (--max-logprobs), got {value}.", name)


def _check_sizes(params: SamplingParams) -> None:
    """What a stranger could make large to keep the server busy."""
    for name, most in MAX_ENTRIES.items():
        if len(getattr(params, name) or ()) > most:
            raise RequestError(f"{name} can have at most {most} entries.", name)
    for name, most in MAX_CHARACTERS.items():
        if any(len(entry) > most for entry in getattr(params, name)):
            raise RequestError(f"An entry of {name} can have at most {most} characters.", name)
    if params.num_sequences * len(params.bad_words) > MAX_BAD_WORD_ROWS:
        raise RequestError(f"n times the number of bad_words can be at most {MAX_BAD_WORD_ROWS}.", "bad_words")
    if params.extra_args:
        _check_bytes(params.extra_args, "vllm_xargs")
    _check_message(params)


def _check_message(params: SamplingParams | PoolingParams) -> None:
    """Raise ``RequestError`` unless the engine can be told of ``params``."""
    try:
        msgspec.msgpack.encode(params)
    except (OverflowError, TypeError, UnicodeError):
        raise RequestError("A parameter holds a number beyond 64 bits, half of a character or no plain data.") from None
    except RecursionError:
        raise RequestError("A parameter is nested too deeply.") from None


def _check_ids(token_ids: Iterable[int], vocab_size: int, param: str) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"{param} has token id {token_id}; the vocabulary has 0 to {vocab_size - 1}.", param)


def _check_bytes(value: Any, param: str) -> None:
    try:
        size = len(msgspec.json.encode(value))
    except (RecursionError, TypeError, UnicodeError):
        raise RequestError(f"{param} must be plain JSON, and not nested too deeply.", param) from None
    if size > MAX_EXTRA_BYTES:
        raise RequestError(f"{param} can have at most {MAX_EXTRA_BYTES} bytes, got {size}.", param)


# -- conversations --------------------------------------------------------------------------------------------------


def check_conversation(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    documents: Sequence[Mapping[str, Any]] | None,
    template_kwargs: Mapping[str, Any],
) -> None:
    """Raise ``RequestError`` if there is too much of something, before any work is done on it."""
    check_messages(messages)
    for name, given, most in (("tools", tools, MAX_TOOLS), ("documents", documents, MAX_DOCUMENTS)):
        if given and len(given) > most:
            raise RequestError(f"There can be at most {most} {name}, got {len(given)}.", name)
    if template_kwargs:
        _check_bytes(template_kwargs, "chat_template_kwargs")


def check_messages(messages: Any) -> Any:
    """``messages``, which may be anything; ``RequestError`` if it is a list with too much in it, or nothing."""
    if not isinstance(messages, list | tuple):
        return messages
    if not messages:
        raise RequestError("messages must hold at least one message.", "messages")
    if len(messages) > MAX_MESSAGES:
        raise RequestError(f"There can be at most {MAX_MESSAGES} messages, got {len(messages)}.", "messages")
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    if sum(len(content) for content in contents if isinstance(content, list)) > MAX_PARTS:
        raise RequestError(f"The contents of messages can have at most {MAX_PARTS} parts.", "messages")
    return messages


def check_tool_name(name: str) -> None:
    """Raise ``RequestError`` for what a model can't be asked to write, or a log to show."""
    if not 1 <= len(name) <= MAX_TOOL_NAME or any(unicodedata.category(character) == "Cc" for character in name):
        message = f"A tool's name must have 1 to {MAX_TOOL_NAME} characters, and no control characters."
        raise RequestError(message, "tools")


def check_template(template: str) -> None:
    """Raise ``RequestError`` if a request's own chat template is too large to be read."""
    if len(template) > MAX_TEMPLATE:
        message = f"A chat_template can have at most {MAX_TEMPLATE} characters, got {len(template)}."
        raise RequestError(message, "chat_template")
