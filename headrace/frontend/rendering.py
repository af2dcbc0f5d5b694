"""A conversation through a chat template: the same in the caller's process and in one of frontend/sandbox.py.

Rendering is transformers' sandboxed Jinja. Owns what a message may contain and how contents reach a template; knows
no tokenizer.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal

import jinja2
import msgspec
from jinja2 import nodes

from headrace.errors import RequestError

Message = dict[str, Any]
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
GENERATION_TAG = re.compile(r"{%[-+]?\s*(end)?generation\s*[-+]?%}")


class Rendering(msgspec.Struct):
    """What to render: plain data, for another process. ``chat_template_kwargs`` are the template's variables beside
    the other fields.
    """

    chat_template: str
    messages: list[Any]
    tools: list[dict[str, Any]] | None
    documents: list[dict[str, Any]] | None
    chat_template_kwargs: dict[str, Any]
    content_format: Literal["auto", "string", "openai"]
    add_generation_prompt: bool
    continue_final_message: bool


def rendered(job: Rendering) -> str:
    """The prompt's text. Raises ``RequestError`` for whatever can't be rendered."""
    from transformers.utils.chat_template_utils import render_jinja_template

    content_format: str = job.content_format
    if content_format == "auto":
        content_format = detect_content_format(job.chat_template)
    conversation = [parse_message(message, content_format) for message in job.messages]
    for message in conversation:
        if message["role"] == "developer" and "developer" not in job.chat_template:
            message["role"] = "system"  # which OpenAI has renamed; few models know it by the new name
    try:
        found: Any = render_jinja_template(  # which is annotated as a str, and is two lists
            conversations=[conversation],
            tools=list(job.tools) if job.tools else None,
            documents=job.documents or None,
            chat_template=job.chat_template,
            continue_final_message=job.continue_final_message,
            add_generation_prompt=job.add_generation_prompt,
            **job.chat_template_kwargs,
        )
    except Exception as error:  # a template can raise anything, and it is always this request's fault
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        raise RequestError(f"The chat template can't render these messages: {reason}.", "messages") from None
    return str(found[0][0])


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
    """Earlier tool calls, whose arguments OpenAI sends as JSON text and templates want as objects.

    What is no JSON stays text: a model writes such, or max_tokens cut it, and agents send it back with what was wrong.
    """
    parsed = []
    for call in calls if isinstance(calls, list) else [None]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RequestError("Each of a message's tool_calls needs a function with a name.", "messages")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            with suppress(ValueError, RecursionError):
                arguments = json.loads(arguments or "{}")
        parsed.append(call | {"function": function | {"arguments": {} if arguments is None else arguments}})
    return parsed


# -- templates ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def detect_content_format(template: str) -> str:
    """ "openai" if the template loops over a message's content, "string" if it only prints it.

    Names that stand for a content (a ``set`` or a macro's parameter) are followed through the template.
    """
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(GENERATION_TAG.sub("", template))
    except (jinja2.TemplateSyntaxError, RecursionError):
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
