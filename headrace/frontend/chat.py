"""From a conversation to the prompt text: picks the chat template, checks what goes into it and has it rendered.

Knows the tokenizer that the template belongs to; does not know HTTP or tokens.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.errors import ConfigError, RequestError
from headrace.frontend.rendering import Rendering, rendered
from headrace.frontend.validation import check_conversation
from headrace.params import typed

if TYPE_CHECKING:
    from headrace.frontend.tokenizer import Tokenizer


def render_chat(
    tokenizer: "Tokenizer",
    messages: Sequence[Mapping[str, Any]],
    *,
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    content_format: str = "auto",
    template_kwargs: Mapping[str, Any] | None = None,
    tools: list[dict[str, Any]] | None = None,
    documents: list[dict[str, Any]] | None = None,
    render: Callable[[Rendering], str] = rendered,
) -> str:
    """The prompt text of a conversation of ``{"role", "content", ...}`` messages.

    ``chat_template`` (Jinja text) stands in for the model's own. ``content_format`` says how the template wants
    contents: "string", "openai" (lists of parts) or "auto" (told from the template). ``template_kwargs`` become
    variables of the template. Raises RequestError for whatever can't be rendered. ``render`` does the work, which
    blocks the caller, so a server calls this on a thread.
    """
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other: set add_generation_prompt to false.",
            "continue_final_message",
        )
    given = {
        "chat_template": chat_template or "",
        "messages": messages,
        "tools": tools or None,
        "documents": documents or None,
        "chat_template_kwargs": template_kwargs or {},
        "content_format": content_format,
        "add_generation_prompt": add_generation_prompt,
        "continue_final_message": continue_final_message,
    }
    job = typed(given, Rendering, "messages")
    check_conversation(job.messages, job.tools, job.documents, job.chat_template_kwargs)
    check_template_kwargs(tokenizer, job.chat_template_kwargs)
    job.chat_template = pick_template(tokenizer, chat_template, job.tools)
    job.chat_template_kwargs = {**tokenizer.hf.special_tokens_map, **job.chat_template_kwargs}
    return render(job)


def load_chat_template(value: str | None) -> str | None:
    """The text of ``--chat-template``: a file's, or the value itself where it is Jinja. Raises ConfigError."""
    if value is None or "{" in value or "\n" in value:
        return value
    try:
        return Path(value).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--chat-template {value} is neither Jinja text nor a readable file ({reason}).") from None


def own_template(tokenizer: "Tokenizer | None") -> str:
    """The text of the model's own chat templates; "" if it has none."""
    template = None if tokenizer is None else tokenizer.hf.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def pick_template(tokenizer: "Tokenizer", chat_template: str | None, tools: list[dict[str, Any]] | None) -> str:
    """The given template, or the model's (of several named ones, the one for tools where there are tools)."""
    if chat_template is None and not tokenizer.hf.chat_template:
        message = "This model has no chat template: start the server with --chat-template FILE, or use /v1/completions."
        raise RequestError(message, "messages")
    try:
        return str(tokenizer.hf.get_chat_template(chat_template, tools or None))
    except ValueError as error:
        raise RequestError(str(error), "chat_template") from None


def check_template_kwargs(tokenizer: "Tokenizer", kwargs: Mapping[str, Any]) -> None:
    """Refuse variables that would stand in for arguments of the renderer itself or for special tokens."""
    internals = {"messages", *inspect.signature(tokenizer.hf.apply_chat_template).parameters}
    taken = internals.union(tokenizer.hf.special_tokens_map).intersection(kwargs)
    if taken:
        name = sorted(taken)[0]
        raise RequestError(f"chat_template_kwargs can't set `{name}`.", "chat_template_kwargs")
