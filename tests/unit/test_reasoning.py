"""Reasoning: told from the answer by markers, whole and in pieces, and shown as the request wants it."""

import sys
from collections.abc import Generator
from typing import Any

import openai
import pytest

from headrace.cli.complete import DIM, PLAIN, show
from headrace.cli.talk import spoken
from headrace.frontend.parsers.choose import detected, place_of
from headrace.frontend.parsers.families import REASONING_FORMATS
from headrace.frontend.parsers.parser import Parser

from .app import CHAT, CHATS, client_of, events, make, serving
from .fake_engine import CHATML
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
    ("name", "prompt", "continued", "place"),
    [
        ("qwen3", "assistant\n", None, "open"),
        ("qwen3", "assistant\n<think>\n", None, "inside"),
        ("qwen3", "assistant\n<think>\n\n</think>\n\n", None, "over"),  # enable_thinking=False
        ("deepseek_r1", "assistant\n", None, "inside"),
        ("deepseek_r1", "assistant\n</think>", None, "over"),
        ("qwen3", "assistant\n<think>So", "<think>So", "inside"),
        ("qwen3", "assistant\n<think>So</think>Y", "<think>So</think>Y", "over"),
        ("openai_gptoss", "<|start|>assistant", None, "open"),
    ],
)
def test_where_an_answer_begins(name: str, prompt: str, continued: str | None, place: str) -> None:
    assert place_of(REASONING_FORMATS[name], prompt, continued) == place


def test_templates_show_their_format() -> None:
    assert detected(REASONING_FORMATS, "{{ content.split('</think>')[-1] }}") == "qwen3"
    assert detected(REASONING_FORMATS, "<|start|>assistant<|channel|>final") == "openai_gptoss"
    assert detected(REASONING_FORMATS, CHATML) == "none"


THINKING = CHATML.replace("assistant\n{%", "assistant\n{% if enable_thinking | default(true) %}<think>\n{% endif %}{%")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, ("So.", "Yes.")),
        ({"include_reasoning": False}, ("", "Yes.")),
        ({"chat_template_kwargs": {"enable_thinking": False}}, ("", "So.</think>Yes.")),
        ({"reasoning_effort": "none"}, ("", "So.</think>Yes.")),
        ({"max_tokens": 3}, ("So.", "")),
        (
            {"structured_outputs": {"regex": ".*"}, "tools": [{"type": "function", "function": {"name": "f"}}]},
            ("So.", "Yes."),
        ),
        ({"guided_regex": ".*", "chat_template_kwargs": {"enable_thinking": False}}, ("", "So.</think>Yes.")),
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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "body", "counted"),
    [
        ({"chat_template": THINKING}, {}, 3),
        ({"chat_template": THINKING}, {"n": 2, "include_reasoning": False, "temperature": 1}, 6),
        ({"chat_template": THINKING}, {"chat_template_kwargs": {"enable_thinking": False}}, 0),
        ({"reasoning_parser": "qwen3"}, {"max_tokens": 2}, 0),  # nothing has opened it
        ({"reasoning_parser": "deepseek_r1"}, {"max_tokens": 2}, 2),
        ({"reasoning_parser": "none"}, {}, None),
    ],
)
async def test_tokens_of_reasoning_are_counted(options: Any, body: Any, counted: int | None, stream: bool) -> None:
    body = CHAT | body | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
    async with serving("So.</think>Yes.", **options) as (client, _):
        response = await client.post(CHATS, json=body)
    usage = (events(response)[-1] if stream else response.json())["usage"]
    assert usage.get("completion_tokens_details", {}).get("reasoning_tokens") == counted


async def test_completions_count_reasoning_that_their_prompt_opens() -> None:
    async with serving("So.</think>Yes.", reasoning_parser="qwen3") as (client, _):
        for prompt, counted in (("Hm.<think>So", 3), ("Hm.<think></think>", 0), ("Hm.", 0)):
            body = (await client.post("/v1/completions", json={"prompt": prompt})).json()
            assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": counted}


@pytest.mark.parametrize(
    ("watched", "printed"), [(True, f"{DIM}So.{PLAIN}\n\nYes.\n"), (False, "Yes.\n")], ids=["terminal", "file"]
)
def test_a_terminal_shows_reasoning_dimmed(
    watched: bool, printed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pieces() -> Generator[str, None, None]:
        parser = Parser((), REASONING_FORMATS["qwen3"], inside=True)
        for text in ("So.</think>", "Yes."):
            yield from spoken(parser.add(text))

    monkeypatch.setattr(sys.stdout, "isatty", lambda: watched)
    assert show(pieces()) == "Yes."
    assert capsys.readouterr().out == printed
