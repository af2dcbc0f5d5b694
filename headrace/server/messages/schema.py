"""The request bodies of Anthropic's Messages API as pydantic models: those fields that mean something here.

Source: https://docs.anthropic.com/en/api/messages. Knows their types; ``conversation`` knows what they ask for.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from headrace.frontend.validation import check_messages
from headrace.server.schema import Body, Count, ModelField

LEAST_BUDGET = 1024  # tokens, as Anthropic's API has it
MAX_STOP_SEQUENCES = 64


def as_blocks(content: Any) -> Any:
    """A text as a list of one block."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def told_by(field: str, kinds: tuple[str, ...], sentence: str) -> Discriminator:
    """Tells an object by a field, of whose values these ``kinds`` have a model; ``sentence`` is for all others."""

    def tag(given: Any) -> str | None:
        kind = given.get(field) if isinstance(given, dict) else None
        return f"[{kind}]" if kind in kinds else None

    return Discriminator(tag, custom_error_type=f"unknown_{field}", custom_error_message=sentence)


def kind_of(*taken: str) -> Discriminator:
    """Tells a block by its ``type``, of which those ``taken`` have a model."""
    kinds = f"{', '.join(taken[:-1])} or {taken[-1]}"
    return told_by("type", taken, f"this server takes text only, in blocks whose type may here be {kinds}")


class TextBlock(Body):
    type: Literal["text"]
    text: str


Texts = Annotated[list[TextBlock], BeforeValidator(as_blocks)]


class TextSource(Body):
    type: Literal["text"]
    data: str


class DocumentBlock(Body):
    type: Literal["document"]
    source: TextSource
    title: str | None = None
    context: str | None = None


Text = Annotated[TextBlock, Tag("[text]")]
Document = Annotated[DocumentBlock, Tag("[document]")]
Said = Annotated[Text | Document, kind_of("text", "document")]


class ToolResultBlock(Body):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[list[Said], BeforeValidator(as_blocks)] = []
    is_error: bool | None = None


class ToolUseBlock(Body):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Body):
    type: Literal["redacted_thinking"]


UserBlock = Annotated[
    Text | Document | Annotated[ToolResultBlock, Tag("[tool_result]")], kind_of("text", "document", "tool_result")
]
AssistantBlock = Annotated[
    Text
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[RedactedThinkingBlock, Tag("[redacted_thinking]")],
    kind_of("text", "tool_use", "thinking", "redacted_thinking"),
]


class UserMessage(Body):
    role: Literal["user"]
    content: Annotated[list[UserBlock], BeforeValidator(as_blocks)]


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: Annotated[list[AssistantBlock], BeforeValidator(as_blocks)]


class SystemMessage(Body):
    role: Literal["system"]
    content: Texts


InputMessage = Annotated[
    Annotated[UserMessage, Tag("[user]")]
    | Annotated[AssistantMessage, Tag("[assistant]")]
    | Annotated[SystemMessage, Tag("[system]")],
    told_by("role", ("user", "assistant", "system"), "a message is an object whose role is user, assistant or system"),
]


def check_tool_type(kind: Any) -> Any:
    if kind not in (None, "custom"):
        raise ValueError(f"this server runs no tools itself, so it takes custom ones only, got {kind!r}")
    return kind


class MessagesTool(Body):
    type: Annotated[Literal["custom"] | None, BeforeValidator(check_tool_type)] = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class MessagesToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingConfig(Body):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Count, Field(ge=LEAST_BUDGET)] | None = None
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def check_budget(self) -> "ThinkingConfig":
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise ValueError("budget_tokens belongs to the type enabled, which can't be without")
        return self


class OutputFormat(Body):
    type: Literal["json_schema"]
    output_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    model_config = ConfigDict(extra="forbid")
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class CountTokensRequest(ModelField):
    """POST /v1/messages/count_tokens: a conversation, and all that its prompt depends on."""

    model: str
    messages: Annotated[list[InputMessage], BeforeValidator(check_messages)]
    system: Texts = []
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    context_management: dict[str, Any] | None = None


class Metadata(Body):
    user_id: str | None = None


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages"""

    max_tokens: Count
    stop_sequences: (
        Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOP_SEQUENCES)] | None
    ) = None
    stream: bool | None = None
    temperature: float | None = None
    top_k: Count | None = None
    top_p: float | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
