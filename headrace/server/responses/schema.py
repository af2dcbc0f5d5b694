"""The request body of /v1/responses, as OpenAI's clients send it: types, and what is refused.

What items hold is for ``items`` to check, ranges are SamplingParams' own.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from headrace.errors import RequestError
from headrace.server.schema import Body, Count, SamplingFields

LOGPROBS: Final = "message.output_text.logprobs"
ENCRYPTED: Final = "reasoning.encrypted_content"
Include = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    # these ask for parts of hosted tools' calls and of images, of which there are none
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Label = Annotated[str, Field(max_length=512)]

REFUSED = {
    "conversation": "Conversations are not kept here; chain responses with `previous_response_id`.",
    "prompt": "Prompts are not kept here; send the text as `instructions` and `input`, not as `prompt`.",
    "context_management": "`context_management` is not supported; `truncation` auto drops the oldest turns.",
    "max_tokens": "Send `max_output_tokens` instead of `max_tokens`.",
    "max_completion_tokens": "Send `max_output_tokens` instead of `max_completion_tokens`.",
    "response_format": "Send `text.format` instead of `response_format`.",
    "reasoning_effort": "Send `reasoning.effort` instead of `reasoning_effort`.",
    "logprobs": f"Send {LOGPROBS} among `include` instead of `logprobs`.",
    **dict.fromkeys(("previous_input_messages", "previous_response"), "Send earlier turns as `input`."),
    "enable_response_messages": "Responses hold no prompt; /v1/responses/render shows it.",
    "prompt_logprobs": "Responses hold no prompt; ask /v1/completions for `prompt_logprobs`.",
    "echo": "Responses hold no prompt; leave `echo` out.",
    "return_token_ids": "Responses hold no token ids; leave `return_token_ids` out.",
}


class ReasoningOptions(Body):
    """A ``summary`` of any kind is granted by the reasoning itself."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Body):
    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(SamplingFields):
    """POST /v1/responses"""

    input: str | list[Any] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template: str | None = None
    max_output_tokens: Count | None = None
    max_tool_calls: Annotated[int, Field(ge=0)] | None = None  # of hosted tools' calls, of which there are none
    top_logprobs: Count | None = None
    include: list[Include] | None = None
    include_reasoning: bool | None = None
    store: bool | None = None
    background: bool | None = None
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=16)] | None = None
    user: Label | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: str | None = None  # the response says which one it was, and there is one

    def includes(self, what: Include) -> bool:
        return what in (self.include or ())

    def check(self) -> None:
        """Raise ``RequestError`` for what is not served, and for what does not fit together."""
        for name, sentence in REFUSED.items():
            if getattr(self, name, None):
                raise RequestError(sentence, name)
        if self.n not in (None, 1):
            raise RequestError("A response is one answer; leave `n` out.", "n")
        if self.background and self.store is False:
            raise RequestError("A background response must be stored; leave `store` out.", "store")
        if self.top_logprobs and not self.includes(LOGPROBS):
            raise RequestError(f"top_logprobs needs {LOGPROBS} among include.", "top_logprobs")
