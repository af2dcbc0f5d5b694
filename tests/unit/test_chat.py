"""Chat templates: what messages may hold, how contents reach a template, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ConfigError, RequestError
from headrace.frontend.chat import load_chat_template, render_chat
from headrace.frontend.rendering import detect_content_format

from .fake_engine import CHATML, CharTokenizer

PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m['content'] %}<{{ part.text }}>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
USER = {"role": "user", "content": "Hi"}


def render(messages: Any, template: Any = PLAIN, **options: Any) -> str:
    return render_chat(CharTokenizer(template), messages, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "string"),
        (PLAIN, "string"),
        (PARTS, "openai"),
        ("{% for m in messages %}{% set c = m.content %}{% for p in c[1:] %}{{ p }}{% endfor %}{% endfor %}", "openai"),
        ("{% for m in messages %}{% set c = m.content | trim %}{{ c }}{% endfor %}", "string"),
        ("{% for m in messages %}{% for p in m.content | list %}{{ p }}{% endfor %}{% endfor %}", "openai"),
        (
            "{% macro show(x) %}{% for p in x %}{{ p }}{% endfor %}{% endmacro %}{{ show(messages[0].content) }}",
            "openai",
        ),
        ("{% macro f(x) %}{{ x }}{% endmacro %}{{ f(messages[0].content) }}", "string"),
        (
            "{% for m in messages %}{%- generation -%}{{ m.content }}{%- endgeneration %}{% endfor %}",
            "string",
        ),
        ("{% for tool in tools %}{{ tool }}{% endfor %}", "string"),
        ("{% broken", "string"),
    ],
)
def test_content_format_is_told_from_the_template(template: str, expected: str) -> None:
    assert detect_content_format(template) == expected


LISTED = {"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"type": "refusal", "refusal": "c"}]}


@pytest.mark.parametrize(
    ("template", "content_format", "message", "expected"),
    [
        (PLAIN, "auto", USER, "[user]Hi>"),
        (PLAIN, "auto", LISTED, "[user]a\nb\nc>"),
        (PARTS, "auto", USER, "[user]<Hi>>"),
        (PARTS, "auto", LISTED, "[user]<a><b><c>>"),
        (PARTS, "string", {"role": "user", "content": "ab"}, "[user]<><>>"),
        (PLAIN, "auto", {"role": "assistant", "content": None}, "[assistant]>"),
        (PARTS, "auto", {"role": "assistant"}, "[assistant]>"),
        (PLAIN, "auto", {"role": "developer", "content": "Hi"}, "[system]Hi>"),
        ("{# developer #}" + PLAIN, "auto", {"role": "developer", "content": "Hi"}, "[developer]Hi>"),
    ],
)
def test_contents_reach_the_template_as_it_wants_them(
    template: str, content_format: str, message: Any, expected: str
) -> None:
    before = repr(message)
    assert render([message], template, content_format=content_format) == expected
    assert repr(message) == before


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [('{"city": "Rome"}', "Rome"), ({"city": "Rome"}, "Rome"), ("", "{}"), ('{"city": "Ro', '{"city": "Ro')],
)
def test_earlier_tool_calls_have_their_arguments_as_objects_where_they_are_json(arguments: Any, seen: str) -> None:
    template = "{% set a = messages[0].tool_calls[0].function.arguments %}{{ a.city or a }}"
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    assert render([{"role": "assistant", "tool_calls": [call]}], template) == seen


def test_variables_documents_and_tools_reach_the_template() -> None:
    template = "{{ thinking }}|{{ tools[0].name }}|{{ documents[0].title }}|{{ bos_token }}"
    options = {"template_kwargs": {"thinking": False}, "tools": [{"name": "t"}], "documents": [{"title": "d"}]}
    assert render([USER], template, **options) == "False|t|d|\x02"
    assert render([USER], "{{ tools is none }}", tools=[]) == "True"


def test_named_templates() -> None:
    named = {"default": PLAIN, "tool_use": "with tools"}
    assert render([USER], named) == "[user]Hi>"
    assert render([USER], named, tools=[{"name": "t"}]) == "with tools"
    assert render([USER], named, chat_template="tool_use") == "with tools"
    assert render([USER], named, chat_template="own {{ messages[0].content }}") == "own Hi"


def test_generation_prompt_and_continuation() -> None:
    messages = [USER, {"role": "assistant", "content": "So "}]
    assert render([USER], add_generation_prompt=False) == "[user]Hi"
    assert render(messages, CHATML, add_generation_prompt=False, continue_final_message=True).endswith("assistant\nSo ")
    parts = render(messages, PARTS, add_generation_prompt=False, continue_final_message=True)
    assert parts == "[user]<Hi>[assistant]<So "


@pytest.mark.parametrize(
    ("messages", "options", "match"),
    [
        ([], {}, "at least one message"),
        ([1], {}, "must be an object"),
        ([{"content": "Hi"}], {}, "needs a role"),
        ([{"role": 3, "content": "Hi"}], {}, "needs a role"),
        ([{"role": "user", "content": 3}], {}, "must be a string or a list"),
        ([{"role": "user", "content": {"text": "Hi"}}], {}, "must be a string or a list"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, "needs a string `text`"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], {}, "text only.*`image_url`"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], {}, "text only.*`input_audio`"),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}]}], {}, "function with a name"),
        ([USER], {"template": None}, "no chat template: start the server with --chat-template"),
        ([USER], {"template": {"other": PLAIN}}, "."),
        ([USER], {"template": "{{ raise_exception('Roles must alternate.') }}"}, "render.*: Roles must alternate.$"),
        ([USER], {"template": "{{ messages[0].content + 1 }}"}, "can't render"),
        ([USER], {"template": "{% broken"}, "can't render"),
        ([USER], {"template": "{{ ''.__class__.__mro__ }}"}, "can't render"),
        ([USER], {"template": "{% for i in range(10 ** 9) %}{% endfor %}"}, "can't render"),
        ([USER], {"continue_final_message": True}, "exclude each other"),
        ([USER], {"template_kwargs": {"tokenize": True}}, "can't set `tokenize`"),
        ([USER], {"template_kwargs": {"chat_template": "x"}}, "can't set `chat_template`"),
        ([USER], {"template_kwargs": {"messages": []}}, "can't set `messages`"),
        ([USER], {"template_kwargs": {"tools": []}}, "can't set `tools`"),
        ([USER], {"template_kwargs": {"bos_token": "x"}}, "can't set `bos_token`"),
        ([USER], {"template_kwargs": {"kwargs": {}, "self": 1}}, "can't set"),
    ],
)
def test_what_cannot_be_rendered(messages: Any, options: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        render(messages, **options)
    assert "\n" not in str(caught.value)


def test_chat_template_option(tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(PLAIN)
    assert load_chat_template(str(tmp_path / "template.jinja")) == PLAIN
    assert load_chat_template(PLAIN) == PLAIN
    assert load_chat_template(None) is None
    with pytest.raises(ConfigError, match=r"--chat-template .*missing.jinja is neither"):
        load_chat_template(str(tmp_path / "missing.jinja"))
