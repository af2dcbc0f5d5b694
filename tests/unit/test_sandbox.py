"""Templates that strangers write, and conversations of any size: rendered, or refused in time, with nothing harmed."""

from typing import Any

import pytest

from headrace.errors import RequestError
from headrace.frontend import sandbox
from headrace.frontend.rendering import Rendering
from headrace.frontend.sandbox import LARGE, render_apart, render_bounded

USER = {"role": "user", "content": "Hi"}
BOMBS = {
    "a large product": "{{ ('a' * 10**10) | length }}",
    "many of them": "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
    "a large power": "{{ 10 ** (10 ** 9) }}",
    "a loop within C": "{{ (range(99999) | list * 1000) | sort | length }}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a wide format": "{{ '{:>9999999999}'.format(1) }}",
    "a filter's argument": "{{ lipsum(n=100000000) }}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "deep syntax": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "names that stand for names": "".join(f"{{% set a{i} = a{i + 1} %}}" for i in range(5000))
    + "{% set a5000 = m.content %}",
    "a file": "{% include '/etc/passwd' %}",
    "the interpreter": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


def job(template: str, messages: list[dict[str, Any]] | None = None) -> Rendering:
    return Rendering(
        chat_template=template,
        messages=messages or [USER],
        tools=None,
        documents=None,
        chat_template_kwargs={"name": "é\n"},
        content_format="auto",
        add_generation_prompt=True,
        continue_final_message=False,
    )


@pytest.mark.parametrize("template", BOMBS.values(), ids=BOMBS)
def test_no_template_gets_further_than_its_process(template: str) -> None:
    with pytest.raises(RequestError) as refused:
        render_apart(job(template))
    assert "\n" not in str(refused.value)
    assert render_apart(job("{{ messages[0].content }} {{ name }}")) == "Hi é\n"


def test_a_large_conversation_is_rendered_apart_to_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = []

    def counted(job: Rendering) -> str:
        apart.append(job)
        return render_apart(job)

    monkeypatch.setattr(sandbox, "render_apart", counted)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    for content in ("é" * 100, "é" * LARGE):
        assert render_bounded(job(template, [{"role": "user", "content": content}])) == f"user: {content}"
    assert len(apart) == 1


def test_half_of_a_character_is_refused() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '"\\ud800"'}}]}
    with pytest.raises(RequestError, match="half of a character"):
        render_apart(job("{{ messages[0].tool_calls[0].function.arguments }}", [call]))
