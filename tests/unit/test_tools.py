"""Tool calls: every family's format, whole and in pieces, and through the server as the openai client sees them."""

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jsonschema
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.config import Config
from headrace.config.parsers import REASONING_PARSERS, TOOL_PARSERS
from headrace.errors import ConfigError
from headrace.frontend.parsers.choose import choose_formats, detected
from headrace.frontend.parsers.families import REASONING_ALIASES, REASONING_FORMATS, TOOL_ALIASES, TOOL_FORMATS
from headrace.frontend.parsers.parser import Parser
from headrace.server.tools import ToolUse

from .app import CHATS, client_of, events, make, serving

SCHEMAS: dict[str, Any] = {
    "f": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}},
    "g": {"type": "object", "properties": {}},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]
F, G = ("f", {"a": 'x "y"\n', "b": 3}), ("g", {})
F_JSON = json.dumps(F[1])

# family -> answers that say something, call f, and then g
CALLS = {
    "hermes": 'Hm.\n<tool_call>\n{"name": "f", "arguments": ARGUMENTS}\n</tool_call>\n'
    '<tool_call>\n{"arguments": {}, "id": 7, "name": "g"}\n</tool_call>',
    "qwen3_coder": 'Hm.\n\n<tool_call>\n<function=f>\n<parameter=a>\nx "y"\n\n</parameter>\n<parameter=b>\n3\n'
    "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
    "glm45": 'Hm.\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x "y"\n</arg_value>\n<arg_key>b</arg_key>\n'
    "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>",
    "deepseek_v3": "Hm.<｜tool▁calls▁begin｜>"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>\n"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>"
    "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "mistral": 'Hm.[TOOL_CALLS][{"name": "f", "arguments": ARGUMENTS}, {"name": "g", "arguments": {}}]',
    "mistral, newer": "Hm.[TOOL_CALLS]f[ARGS]ARGUMENTS[TOOL_CALLS]g{}",
    "granite": 'Hm.<|tool_call|>[{"name": "f", "arguments": ARGUMENTS}, {"name": "g", "arguments": {}}]',
    "pythonic": "Hm.<|python_start|>[f(a='x \"y\"\\n', b=3), g()]<|python_end|>",
    "llama3_json": 'Hm.<|python_tag|>{"type": "function", "name": "f", "parameters": ARGUMENTS}; {"name": "g"}',
    "kimi_k2": "Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>ARGUMENTS"
    "<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
    "<|tool_calls_section_end|>",
    "minimax_m2": 'Hm.\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">x "y"\n</parameter>\n'
    '<parameter name="b">3</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n</minimax:tool_call>',
    "deepseek_v32": 'Hm.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="f">\n'
    '<｜DSML｜parameter name="a" string="true">x "y"\n</｜DSML｜parameter>\n'
    '<｜DSML｜parameter name="b" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
    '<｜DSML｜invoke name="g">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    "seed_oss": 'Hm.\n<seed:tool_call>\n<function=f>\n<parameter=a>x "y"\n\n</parameter>\n<parameter=b>3</parameter>\n'
    "</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=g>\n</function>\n</seed:tool_call>",
    "lfm2": "Hm.<|tool_call_start|>[f(a='x \"y\"\\n', b=3), g()]<|tool_call_end|>",
    "olmo3": "Hm.\n<function_calls>\nf(a='x \"y\"\\n', b=3)\ng()\n</function_calls>",
    "internlm": 'Hm.<|action_start|><|plugin|>\n{"name": "f", "parameters": ARGUMENTS}<|action_end|>'
    '<|action_start|><|plugin|>{"name": "g", "parameters": {}}<|action_end|>',
    "phi4_mini_json": 'Hm.functools[{"name": "f", "arguments": ARGUMENTS}, {"name": "g", "arguments": {}}]',
    "minimax": 'Hm.<tool_calls>\n{"name": "f", "arguments": ARGUMENTS}\n{"name": "g", "arguments": {}}\n</tool_calls>',
    "jamba": 'Hm.<tool_calls>[\n{"name": "f", "arguments": ARGUMENTS},\n{"name": "g", "arguments": {}}\n]</tool_calls>',
    "granite-20b-fc": 'Hm.<function_call> {"name": "f", "arguments": ARGUMENTS}<function_call>{"name": "g"}',
    "xlam": 'Hm.```json\n[{"name": "f", "arguments": ARGUMENTS}, {"name": "g", "arguments": {}}]\n```',
    "longcat": 'Hm.<longcat_tool_call>{"name": "f", "arguments": ARGUMENTS}</longcat_tool_call>\n'
    '<longcat_tool_call>{"name": "g", "arguments": {}}</longcat_tool_call>',
    "openai": "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary<|message|>Hm.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>ARGUMENTS<|call|>"
    "<|start|>assistant to=functions.g<|channel|>commentary json<|message|>{}",
}
# answers that are nothing but calls, without a marker
BARE_CALLS = {
    "llama3_json": '\n{"name": "f", "parameters": ARGUMENTS}; {"name": "g", "parameters": "{}"}',
    "pythonic": "[f(a='x \"y\"\\n', b=3), g()]",
    "granite": '[{"name": "f", "arguments": ARGUMENTS}, {"name": "g", "arguments": {}}]',
    "openai": " to=functions.f<|channel|>commentary json<|message|>ARGUMENTS<|call|>"
    "<|start|>assistant<|channel|>commentary to=functions.g<|message|>{}<|call|>",
}
CALLS, BARE_CALLS = (
    {name: text.replace("ARGUMENTS", F_JSON) for name, text in texts.items()} for texts in (CALLS, BARE_CALLS)
)
# what begins like a call and is none comes out as it is
NO_CALLS = [
    ("hermes", "<tool_call>\nnot at all</tool_call> <tool_call"),
    ("hermes", '<tool_call>{"name": "f", "argu'),
    ("hermes", '<tool_call>{"name": "f", "arguments": 3}</tool_call>'),
    ("qwen3_coder", "<tool_call>\n<function=f\n</tool_call>"),
    ("glm45", "<tool_call> what is this? </tool_call>"),
    ("deepseek_v3", "<｜tool▁calls▁begin｜>f {}<｜tool▁calls▁end｜>"),
    ("mistral", "[TOOL_CALLS] are what I use."),
    ("granite", '[{"name": "unknown", "arguments": {}}]'),
    ("pythonic", "[1, 2] and [f(3)]"),
    ("pythonic", "[f(a=open('x'))]"),
    ("llama3_json", '{"name": "Ada", "parameters": {}}'),
    ("openai", "<|channel|>commentary to=functions.f<|message|>no JSON"),
]


def parser(name: str, **options: Any) -> Parser:
    formats = choose_formats(Config.from_kwargs(tool_call_parser=name.split(",")[0]), sign_of(name))
    assert formats.tools is not None
    return Parser(formats.tools.sections, formats.reasoning, SCHEMAS, **options)


def sign_of(name: str) -> str:
    return "<|channel|>" if name == "openai" else "</think>"


def read(parser: Parser, pieces: list[str]) -> tuple[str, str, list[list[str]]]:
    """Reasoning, content, and [name, arguments] of each call."""
    reasoning = content = ""
    calls: list[list[str]] = []
    for place, text in enumerate(pieces):
        piece = parser.add(text, last=place == len(pieces) - 1)
        reasoning, content = reasoning + piece.reasoning, content + piece.content
        for call in piece.calls:
            assert (call.name is None) == (call.index < len(calls))
            if call.name is not None:
                calls.append([call.name, ""])
            calls[call.index][1] += call.arguments
    return reasoning, content, calls


def cut(text: str, places: list[int]) -> list[str]:
    bounds = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds)]


@pytest.mark.parametrize("size", [None, 1, 2, 7])
@pytest.mark.parametrize(("name", "text"), [*CALLS.items(), *BARE_CALLS.items()])
def test_every_family(name: str, text: str, size: int | None) -> None:
    pieces = [text] if size is None else [text[at : at + size] for at in range(0, len(text), size)]
    reasoning, content, calls = read(parser(name), pieces)
    assert [(function, json.loads(arguments)) for function, arguments in calls] == [F, G]
    assert content == ("Hm." if text in CALLS.values() else "")
    assert reasoning == ("Think." if "Think." in text else "")


@pytest.mark.parametrize(("name", "text"), NO_CALLS)
def test_what_is_no_call_is_text(name: str, text: str) -> None:
    assert read(parser(name), list(text)) == read(parser(name), [text]) == ("", text, [])


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "glm45", "mistral, newer", "openai"])
def test_arguments_come_piece_by_piece(name: str) -> None:
    text = CALLS[name].replace("x ", "x" * 50)
    reader = parser(name)
    pieces = [call for char in text for call in reader.add(char).calls if call.index == 0]
    assert len(pieces) > 50
    assert max(len(piece.arguments) for piece in pieces) < 20


@pytest.mark.parametrize("name", ["hermes", "glm45"])
def test_an_answer_cut_short_keeps_what_it_has(name: str) -> None:
    text = CALLS[name].split('"y')[0]
    _, _, calls = read(parser(name), [text])
    assert calls == [["f", '{"a": "x ' + ("\\" if name == "hermes" else "")]]


def test_values_without_json_are_typed_by_the_schema_or_their_look() -> None:
    values = {"a": "12", "b": "12", "c": "[1, 2]", "d": "True", "e": "NaN", "h": "it's"}
    text = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    _, _, [(_, arguments)] = read(parser("qwen3_coder"), list(f"<function=f>\n{text}</function>"))
    assert json.loads(arguments) == {"a": "12", "b": 12, "c": [1, 2], "d": True, "e": "NaN", "h": "it's"}


def test_only_the_first_call_counts_without_parallel_calls() -> None:
    assert [name for name, _ in read(parser("hermes", most_calls=1), list(CALLS["hermes"]))[2]] == ["f"]


# -- any text -------------------------------------------------------------------------------------------------------


def fragments(name: str) -> list[str]:
    """What texts of a family are made of."""
    texts = [text for known, text in (*CALLS.items(), *BARE_CALLS.items(), *NO_CALLS) if known.split(",")[0] == name]
    parts = [part for text in texts for part in words(text)]
    return [*texts, *parts, "<think>", "</think>", "{", "}", '"', "\\", "\n", " ", ",", "é", "\ud83d\ude00"]


def words(text: str) -> Iterator[str]:
    begin = 0
    for place in range(1, len(text) + 1):
        if place == len(text) or text[place] in "<[{}(>:;" or text[place - 1] in ">]":
            yield text[begin:place]
            begin = place


@pytest.mark.parametrize("name", sorted(TOOL_FORMATS))
@settings(max_examples=75)  # of each of some fifteen formats
@given(data=st.data())
def test_any_text_however_cut_reads_the_same(name: str, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(fragments(name)), max_size=12)))
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=20))
    inside = data.draw(st.booleans())
    whole = read(parser(name, inside=inside), [text])
    assert read(parser(name, inside=inside), cut(text, places)) == whole
    assert read(parser(name, inside=inside), list(text) or [""]) == whole


# -- through the server ---------------------------------------------------------------------------------------------

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "model": "fake", "tools": TOOLS}


@pytest.mark.parametrize("name", ["hermes", "mistral", "openai"])
async def test_openai_client_gets_the_same_calls_streamed_and_whole(name: str) -> None:
    app, engine = make(
        CALLS[name], tool_call_parser=name, reasoning_parser="openai_gptoss" if name == "openai" else "none"
    )
    async with openai.AsyncOpenAI(base_url="http://server/v1", api_key="k", http_client=client_of(app)) as client:
        whole = (await client.chat.completions.create(**ASK)).choices[0]
        async with client.chat.completions.stream(**ASK) as stream:
            kinds = {event.type async for event in stream}
            streamed = (await stream.get_final_completion()).choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    for choice in (whole, streamed):
        assert choice.finish_reason == "tool_calls" and choice.message.content == "Hm."
        called = [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls or []]  # type: ignore[union-attr]
        assert called == [F, G]
        assert all(len(call.id) == 9 if name == "mistral" else call.id for call in choice.message.tool_calls or [])
    assert engine.calls[0]["params"].skip_special_tokens is (name == "hermes")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "body", "reason"),
    [
        ({}, {"tool_choice": "auto"}, "tool_calls"),
        ({}, {"parallel_tool_calls": False}, "tool_calls"),
        ({}, {"max_tokens": 60}, "length"),
        ({}, {"tool_choice": "none"}, "stop"),
        ({}, {"tools": None}, "stop"),
        ({"tool_call_parser": "none"}, {}, "stop"),
        ({"tool_call_parser": ""}, {}, "stop"),
    ],
)
async def test_finish_reasons(options: Any, body: Any, reason: str, stream: bool) -> None:
    async with serving(CALLS["hermes"], **({"tool_call_parser": "hermes"} | options)) as (client, _):
        response = await client.post(CHATS, json=ASK | body | {"stream": stream})
    if stream:
        choices = [choice for body in events(response) for choice in body["choices"]]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [reason]
        names = [c["function"]["name"] for x in choices for c in x["delta"].get("tool_calls", []) if "id" in c]
    else:
        (choice,) = response.json()["choices"]
        assert choice["finish_reason"] == reason
        names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
    most = 1 if body.get("parallel_tool_calls") is False or reason == "length" else 2
    assert names == (["f", "g"][:most] if reason != "stop" else [])


FUNCTION = {"type": "function", "function": {"name": "f"}}
FORCED = [
    ("required", f'[{{"name": "f", "arguments": {F_JSON}}}, {{"name": "g", "arguments": {{}}}}]', [F, G]),
    ({"type": "function", "function": {"name": "f"}}, F_JSON, [F]),
    (
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FUNCTION]}},
        f'[{{"name": "f", "arguments": {F_JSON}}}]',
        [F],
    ),
]


HARMONY = "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>"
THINKING = {"deepseek_r1": "So.</think>", "openai_gptoss": HARMONY, "none": ""}


@pytest.mark.parametrize("reasoning", THINKING)
@pytest.mark.parametrize(("choice", "text", "expected"), FORCED)
async def test_forced_calls_follow_the_tools_schemas(choice: Any, text: str, expected: Any, reasoning: str) -> None:
    """Whatever the model's own format is; reasoning may come before them."""
    app, engine = make(THINKING[reasoning] + text, reasoning_parser=reasoning)
    async with openai.AsyncOpenAI(base_url="http://server/v1", api_key="k", http_client=client_of(app)) as client:
        whole = (await client.chat.completions.create(**ASK, tool_choice=choice)).choices[0]
        async with client.chat.completions.stream(**ASK, tool_choice=choice, parallel_tool_calls=False) as stream:
            streamed = (await stream.get_final_completion()).choices[0]
    for choice, calls in ((whole, expected), (streamed, expected[:1])):
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        assert (getattr(choice.message, "reasoning", None) or "") == ("" if reasoning == "none" else "So.")
        assert [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == calls
    for call, most in zip(engine.calls, (2, 1), strict=True):
        schema = call["params"].structured_outputs.json
        assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)) is (len(expected) <= most)
        assert call["params"].reasoning == {"deepseek_r1": "inside", "openai_gptoss": "open"}.get(reasoning)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("choice", "text"), [row[:2] for row in FORCED])
async def test_arguments_cut_by_a_stop_string_are_no_call_to_make(choice: Any, text: str, stream: bool) -> None:
    for read, reason in ((text.partition('"b"')[0], "stop"), (text[: text.index("}") + 1], "tool_calls")):
        async with serving(read) as (client, engine):
            engine.stop_reason = "END"
            response = await client.post(CHATS, json=ASK | {"tool_choice": choice, "stream": stream})
        choice_at_end = (events(response)[-1] if stream else response.json())["choices"][0]
        assert (choice_at_end["finish_reason"], choice_at_end["stop_reason"]) == (reason, "END")


def test_references_within_a_tools_schema_hold_in_the_list_of_calls() -> None:
    tree = {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}, "type": "object"}},
    }
    schema = ToolUse({"f": tree, "g": {"type": "object"}}, "required").answer_schema(None)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid([{"name": "f", "arguments": {"next": {"next": {}}}}])
    assert not validator.is_valid([{"name": "f", "arguments": {"next": {"next": 1}}}])


@pytest.mark.parametrize("hide", [False, True])
async def test_the_template_sees_tools_unless_they_are_excluded(hide: bool) -> None:
    calls = "{% for c in m.tool_calls %}{{ c.function.arguments.a }}{% endfor %}"
    template = "{{ tools }}|{% for m in messages %}" + calls + "{{ m.content }}{% endfor %}"
    past = [
        {
            "role": "assistant",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "A"}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "B"}]},
    ]
    options = {"exclude_tools_when_tool_choice_none": hide, "chat_template": template}
    async with serving(**options) as (client, _):
        body = ASK | {"messages": past, "tool_choice": "none", "return_prompt_text": True}
        text = (await client.post(CHATS, json=body)).json()["prompt_text"]
    assert text.endswith("|AB") and ("properties" in text) is not hide


async def test_the_template_sees_no_other_tools_than_the_allowed_ones() -> None:
    template = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}"
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [FUNCTION]}}
    async with serving(CALLS["hermes"], tool_call_parser="hermes", chat_template=template) as (client, engine):
        body = ASK | {"tool_choice": choice, "return_prompt_text": True}
        answer = (await client.post(CHATS, json=body)).json()
        assert (await client.post("/tokenize", json=body)).json()["count"] == 1
    assert answer["prompt_text"] == "f" and answer["choices"][0]["finish_reason"] == "tool_calls"
    assert engine.calls[0]["params"].structured_outputs is None


def allowed(mode: str, *tools: Any) -> dict[str, Any]:
    return {
        "tools": [FUNCTION],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}},
    }


@pytest.mark.parametrize(
    ("body", "param", "sentence"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "Each of tools must be"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools", "with a name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools", "JSON schema"),
        ({"tools": [FUNCTION], "tool_choice": "any"}, "tool_choice", "none, auto, required"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "h"}}}, "tool_choice", "'h'"),
        ({"tools": [FUNCTION], "tool_choice": {"function": "f"}}, "tool_choice", "as an object"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "needs tools"),
        (allowed("auto"), "tool_choice", "functions that are among tools"),
        (allowed("none", FUNCTION), "tool_choice", "a mode, auto or required"),
        (allowed("auto", FUNCTION, {"type": "function", "function": {"name": "h"}}), "tool_choice", "among tools"),
        (allowed("auto", {"type": "custom", "custom": {"name": "f"}}), "tool_choice", "among tools"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice", "among tools"),
    ],
)
async def test_wrong_tools_get_a_sentence(body: Any, param: str, sentence: str) -> None:
    async with serving(tool_call_parser="hermes") as (client, engine):
        response = await client.post(CHATS, json=ASK | body)
    assert response.status_code == 400 and not engine.calls
    assert response.json()["error"]["param"] == param and sentence in response.json()["error"]["message"]


# -- choosing -------------------------------------------------------------------------------------------------------


def test_flags_name_exactly_the_formats_there_are() -> None:
    assert sorted(TOOL_PARSERS) == sorted({*TOOL_FORMATS, *TOOL_ALIASES})
    assert sorted(REASONING_PARSERS) == sorted({*REASONING_FORMATS, *REASONING_ALIASES})


UNSEEN = ("deepseek_v31", "minimax", "xlam")  # others look the same


@pytest.mark.parametrize("name", [name for name in CALLS if "," not in name and name not in UNSEEN])
def test_templates_show_their_format(name: str) -> None:
    """What a template writes for past calls is what the model writes."""
    assert detected(TOOL_FORMATS, CALLS[name]) == name


def test_auto_tool_choice_needs_a_format() -> None:
    with pytest.raises(ConfigError, match="--enable-auto-tool-choice needs --tool-call-parser"):
        choose_formats(Config.from_kwargs(enable_auto_tool_choice=True), "{{ messages }}")
    assert choose_formats(Config.from_kwargs(enable_auto_tool_choice=True), "<tool_call>").tools
