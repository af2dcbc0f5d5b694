"""From a conversation to the prompt text: checks the messages and renders them through the model's chat template.

Rendering is transformers' sandboxed Jinja. Owns what a message may contain; does not know HTTP or tokens.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes

from headrace.errors import ConfigError, RequestError

if TYPE_CHECKING:
    from headrace.frontend.tokenizer import Tokenizer

Message = dict[str, Any]
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
GENERATION_TAG = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")


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
) -> str:
    """The prompt text of a conversation of ``{"role", "content", ...}`` messages.

    ``chat_template`` (Jinja text) stands in for the model's own. ``content_format`` says how the template wants
    contents: "string", "openai" (lists of parts) or "auto" (told from the template). ``template_kwargs`` become
    variables of the template. Raises RequestError for whatever can't be rendered; a slow template blocks the caller,
    so a server calls this on a thread.
    """
    if add_generation_prompt and continue_final_message:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other: set add_generation_prompt to false.",
            "continue_final_message",
        )
    template_kwargs = template_kwargs or {}
    check_template_kwargs(tokenizer, template_kwargs)
    template = pick_template(tokenizer, chat_template, tools)
    if content_format == "auto":
        content_format = detect_content_format(template)
    conversation = [parse_message(message, content_format) for message in messages]
    if not conversation:
        raise RequestError("messages must hold at least one message.", "messages")
    try:
        text = tokenizer.hf.apply_chat_template(
            conversation,
            tools=list(tools) if tools else None,
            documents=documents or None,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **template_kwargs,
        )
    except Exception as error:  # a template can raise anything, and it is always this request's fault
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise RequestError(f"The chat template can't render these messages: {reason}.", "messages") from None
    return str(text)


# -- messages -------------------------------------------------------------------------------------------------------


def parse_message(message: Mapping[str, Any], content_format: str) -> Message:
    """A checked copy of one message, its content in the shape the template wants and tool arguments as objects."""
    if not isinstance(message, Mapping):
        raise RequestError("Each of messages must be an object with a role and a content.", "messages")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError("Each of messages needs a role, such as system, user or assistant.", "messages")
    texts = list(content_texts(message.get("content")))
    parsed = {key: value for key, value in message.items() if value is not None}
    if content_format == "openai":
        parsed["content"] = [{"type": "text", "text": text} for text in texts]
    else:
        parsed["content"] = "\n".join(texts)
    reasoning = parsed.get("reasoning_content", parsed.get("reasoning"))
    if reasoning is not None:
        parsed |= {"reasoning_content": reasoning, "reasoning": reasoning}
    if "tool_calls" in parsed:
        parsed["tool_calls"] = parse_tool_calls(parsed["tool_calls"])
    return parsed


def final_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the last message."""
    return "\n".join(content_texts(messages[-1].get("content")))


def content_texts(content: Any) -> Iterator[str]:
    """The texts of a message's content: None, a string, or a list of strings and text parts."""
    if content is None:
        return
    for part in [content] if isinstance(content, str) else content if isinstance(content, list) else [None]:
        if isinstance(part, str):
            yield part
            continue
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str):
            raise RequestError("The content of a message must be a string or a list of content parts.", "messages")
        if kind not in TEXT_PARTS:
            raise RequestError(f"This server takes text only; a message has a part of type `{kind}`.", "messages")
        text = part.get(TEXT_PARTS[kind])
        if not isinstance(text, str):
            raise RequestError(f"A content part of type `{kind}` needs a string `{TEXT_PARTS[kind]}`.", "messages")
        yield text


def parse_tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Earlier tool calls, whose arguments OpenAI sends as JSON text and templates want as objects."""
    parsed = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError("Each of a message's tool_calls needs a function with a name.", "messages")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                message = f"The arguments of the earlier call of `{function['name']}` are not valid JSON."
                raise RequestError(message, "messages") from None
        parsed.append(call | {"function": function | {"arguments": {} if arguments is None else arguments}})
    return parsed


# -- templates ------------------------------------------------------------------------------------------------------


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


@lru_cache(maxsize=32)
def detect_content_format(template: str) -> str:
    """ "openai" if the template loops over a message's content, "string" if it only prints it.

    Names that stand for a content (a ``set`` or a macro's parameter) are followed through the template.
    """
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION_TAG.sub("", template))
    except jinja2.TemplateSyntaxError:
        return "string"  # rendering will say what is wrong
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    contents: set[str] = set()
    known = -1
    while len(contents) > known:
        known = len(contents)
        for assign in tree.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.Name) and is_content(assign.node, contents):
                contents.add(assign.target.name)
        for call in tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name in macros:
                parameters = macros[call.node.name].args
                contents.update(
                    p.name for p, value in zip(parameters, call.args, strict=False) if is_content(value, contents)
                )
    return "openai" if any(is_content(loop.iter, contents) for loop in tree.find_all(nodes.For)) else "string"


def is_content(node: nodes.Node | None, contents: set[str]) -> bool:
    """Whether an expression is ``x.content``, ``x["content"]`` or a name for one, maybe filtered or sliced."""
    match node:
        case nodes.Name():
            return node.name in contents
        case nodes.Getattr():
            return node.attr == "content"
        case nodes.Getitem(arg=nodes.Const(value=value)):
            return bool(value == "content")
        case nodes.Getitem(arg=nodes.Slice()) | nodes.Filter():
            return is_content(node.node, contents)
    return False
