"""The request bodies of the generating routes, as pydantic models; types only: frontend/validation.py and the
parameters' own classes check sizes and ranges.

A field that is null counts as not given. Unknown fields are kept: ``refusals`` names those that must not be ignored.
"""

from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema

from headrace.frontend.validation import MAX_ENTRIES, MAX_PROMPTS

INT32 = 2**31
MAX_XARGS = 64  # names; their size is frontend/validation.py's to check
TokenId = Annotated[int, Field(ge=0, lt=INT32)]
Count = Annotated[int, Field(ge=-INT32, lt=INT32)]
UNION_TAGS = ("[text]", "[chat]")  # pydantic puts a body's tag into the location of an error


def listed(value: Any) -> Any:
    """One string as a list of one."""
    return [value] if isinstance(value, str) else value


def is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and 0 <= token < INT32 for token in value)


StringList = Annotated[list[str], BeforeValidator(listed)]


def prompts(most: int) -> PlainValidator:
    """Of a text, token ids, or a list of either, which become a list."""

    def check(value: Any) -> list[str | list[int]]:
        found = [value] if isinstance(value, str) or (is_token_ids(value) and value) else value
        if not isinstance(found, list) or not 1 <= len(found) <= most:
            raise ValueError(f"it must be a text, a list of token ids, or a list of 1 to {most} of either")
        if not all(isinstance(prompt, str) or is_token_ids(prompt) for prompt in found):
            raise ValueError("each entry must be a text or a list of token ids (integers from 0)")
        return found

    return PlainValidator(check, json_schema_input_type=str | list[str] | list[int] | list[list[int]])


def failing_fast(schema: Any) -> Any:
    """A pydantic core schema whose lists are done with their first wrong entry."""
    if isinstance(schema, list | tuple):
        return type(schema)(map(failing_fast, schema))
    if not isinstance(schema, dict):
        return schema
    changed = {name: failing_fast(value) for name, value in schema.items()}
    return changed | {"fail_fast": True} if schema.get("type") == "list" else changed


def at_most(entries: int) -> BeforeValidator:
    """Of an object; pydantic's own maximum is checked after every entry is."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"it can have at most {entries} entries")
        return value

    return BeforeValidator(check)


class Body(BaseModel):
    """A part of a request. One wrong entry of a list is told and not a million: that takes seconds and gigabytes."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema: CoreSchema = failing_fast(handler(source))
        return schema


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ModelField(Body):
    """A body that may name the model. ``chat_template_kwargs`` are for conversations, and without effect elsewhere."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, body: Any) -> Any:
        """Where a field itself takes no null, its default counts."""
        if not isinstance(body, dict):
            return body
        fields = {name: cls.model_fields.get(name) for name, value in body.items() if value is None}
        strict = {name for name, field in fields.items() if field and NoneType not in get_args(field.annotation)}
        return {name: value for name, value in body.items() if name not in strict}


class RequestFields(ModelField):
    """What all bodies have that give the engine work."""

    priority: Count | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    request_id: str | None = None


class StreamFields(RequestFields):
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None


class SamplingFields(StreamFields):
    """What completions and chats have in common; names and defaults are OpenAI's and vLLM's."""

    n: Count | None = None
    best_of: Count | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    max_tokens: Count | None = None
    min_tokens: Count | None = None
    stream_interval: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Count | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: StringList | None = None
    stop_token_ids: list[TokenId] | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[TokenId] | None = None
    logit_bias: Annotated[dict[TokenId, float], at_most(MAX_ENTRIES["logit_bias"])] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    prompt_logprobs: Count | None = None
    logprob_token_ids: list[TokenId] | None = None
    return_tokens_as_token_ids: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, lt=INT32)] | None = None
    echo: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | bool | dict[str, Any] | None = None
    guided_json_object: bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    guided_decoding_backend: str | None = None
    thinking_token_budget: Count | None = None
    vllm_xargs: (
        Annotated[dict[str, str | int | float | bool | list[str | int | float | bool]], at_most(MAX_XARGS)] | None
    ) = None


class CompletionRequest(SamplingFields):
    """POST /v1/completions"""

    prompt: Annotated[list[str | list[int]], prompts(MAX_PROMPTS)] | None = None
    prompt_embeds: Annotated[StringList, Field(max_length=MAX_PROMPTS)] | None = None
    max_tokens: Count | None = 16
    logprobs: Count | None = None
    add_special_tokens: bool = True


class ChatFields(ModelField):
    """A conversation and how its template renders it."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template: str | None = None
    documents: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ChatRequest(ChatFields, SamplingFields):
    """POST /v1/chat/completions"""

    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    return_prompt_text: bool | None = None


class GenerateRequest(StreamFields):
    """POST /inference/v1/generate: token ids in, token ids (or text) out."""

    token_ids: Annotated[list[TokenId], Field(min_length=1)]
    sampling_params: dict[str, Any] = {}
    output_mode: Literal["tokens", "text"] = "tokens"


class TokenizeRequest(ModelField):
    """POST /tokenize with a text."""

    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatRequest(ChatFields):
    """POST /tokenize with a conversation."""

    return_token_strs: bool = False


TokenizeBody = Annotated[
    Annotated[TokenizeRequest, Tag(UNION_TAGS[0])] | Annotated[TokenizeChatRequest, Tag(UNION_TAGS[1])],
    Discriminator(lambda body: UNION_TAGS[isinstance(body, dict) and "messages" in body]),
]


class DetokenizeRequest(ModelField):
    """POST /detokenize"""

    tokens: list[TokenId]
