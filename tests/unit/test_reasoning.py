"""Reasoning: told from the answer by markers, whole and in pieces, and shown as the request wants it."""

from typing import Any

import openai
import pytest

from headrace.frontend.parsers.choose import detected, starts_inside
from headrace.frontend.parsers.families import REASONING_FORMATS
from headrace.frontend.parsers.parser import Parser

from .fake_engine import CHATML
from .test_server import CHAT, CHATS, client_of, events, make, serving
from .test_tools import CALLS, F, read


@pytest.mark.parametrize(
    ("name", "inside", "text", "expected"),
    [
        ("qwen3", False, "<think>\nSo.\n</think>\n\nYes. \n", ("So.", "Yes. \n")),
        ("qwen3", True, "\nSo.\n</think>\n\nYes.", ("So.", "Yes.")),
        ("qwen3", True, "<think>So.</think>Yes. <think>", ("So.", "Yes. <think>")),
        ("qwen3", False, "<think>\n\n</think>\n\nYes.", ("", "Yes.")),
        ("qwen3", False, "<think>Never done.\n", ("Never done.", "")),
        ("qwen3", False, " \nYes: <think> and </think>.", ("", " \nYes: <think> and </think>.")),
        ("mistral", False, "[THINK]So.[/THINK]Yes.", ("So.", "Yes.")),
        ("granite", False, "Here's my thought process: So. Here's my response: Yes.", ("So.", "Yes.")),
        ("openai_gptoss", False, "<|channel|>analysis<|message|>So.<|end|>"
         "<|start|>assistant<|channel|>final<|message|>Yes.", ("So.", "Yes.")),
        ("openai_gptoss", False, "<|channel|>analysis<|message|>So.<|end|>"
         "<|start|>assistant<|channel|>analysis<|message|>Or.<|end|>"
         "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>", ("So.\nOr.", "Yes.")),
    ],
)  # fmt: skip
def test_every_family(name: str, inside: bool, text: str, expected: tuple[str, str]) -> None:
    for pieces in ([text], list(text)):
        assert read(Parser((), REASONING_FORMATS[name], inside=inside), pieces)[:2] == expected


@pytest.mark.parametrize(
    ("name", "prompt", "continued", "inside"),
    [
        ("qwen3", "assistant\n", None, False),
        ("qwen3", "assistant\n<think>\n", None, True),
        ("qwen3", "assistant\n<think>\n\n</think>\n\n", None, False),  # enable_thinking=False
        ("deepseek_r1", "assistant\n", None, True),
        ("deepseek_r1", "assistant\n</think>", None, False),
        ("qwen3", "assistant\n<think>So", "<think>So", True),
        ("qwen3", "assistant\n<think>So</think>Y", "<think>So</think>Y", False),
        ("openai_gptoss", "<|start|>assistant", None, False),
    ],
)
def test_where_an_answer_begins(name: str, prompt: str, continued: str | None, inside: bool) -> None:
    assert starts_inside(REASONING_FORMATS[name], prompt, continued) is inside


def test_templates_show_their_format() -> None:
    assert detected(REASONING_FORMATS, "{{ content.split('</think>')[-1] }}") == "qwen3"
    assert detected(REASONING_FORMATS, "<|start|>assistant<|channel|>final") == "openai_gptoss"
    assert detected(REASONING_FORMATS, CHATML) == "none"


THINKING = CHATML.replace("assistant\n{%", "assistant\n{% if enable_thinking is not defined %}<think>\n{% endif %}{%")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ("So.", "Yes.")),
        ({"include_reasoning": False}, ("", "Yes.")),
        ({"chat_template_kwargs": {"enable_thinking": False}}, ("", "So.</think>Yes.")),
        ({"max_tokens": 3}, ("So.", "")),
        ({"structured_outputs": {"regex": ".*"}}, ("", "So.</think>Yes.")),
    ],
)
async def test_fields_of_old_and_new_clients(body: Any, expected: tuple[str, str], stream: bool) -> None:
    async with serving("So.</think>Yes.", chat_template=THINKING) as (client, _):
        response = await client.post(CHATS, json=CHAT | body | {"stream": stream})
    if stream:
        parts = [choice["delta"] for event in events(response) for choice in event["choices"]]
    else:
        parts = [response.json()["choices"][0]["message"]]
    assert tuple("".join(part.get(key) or "" for part in parts) for key in ("reasoning", "content")) == expected
    assert all(part.get("reasoning_content") == part.get("reasoning") for part in parts)
    assert "content" in parts[0]


async def test_reasoning_before_a_call() -> None:
    app, _ = make("So.\n</think>\n\n" + CALLS["hermes"], chat_template=THINKING, tool_call_parser="hermes")
    tools = [{"type": "function", "function": {"name": F[0]}}]
    async with openai.AsyncOpenAI(base_url="http://server/v1", api_key="k", http_client=client_of(app)) as client:
        answer = await client.chat.completions.create(model="fake", tools=tools, **CHAT)  # type: ignore[call-overload]
    (choice,) = answer.choices
    assert (choice.message.reasoning, choice.message.content, choice.finish_reason) == ("So.", "Hm.", "tool_calls")


async def test_earlier_reasoning_reaches_the_template_by_either_name() -> None:
    template = "{% for m in messages %}{{ m.reasoning_content }}{{ m.reasoning }}{% endfor %}"
    for name in ("reasoning", "reasoning_content"):
        async with serving(chat_template=template) as (client, _):
            body = {"messages": [{"role": "assistant", "content": "A", name: "B"}], "return_prompt_text": True}
            assert (await client.post(CHATS, json=body)).json()["prompt_text"] == "BB"
