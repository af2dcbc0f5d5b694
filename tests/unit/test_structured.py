"""What users ask of an output's form, and the grammar it becomes: checked on bytes, without a model."""

import time
from typing import Any

import pytest

from headrace.config import Config
from headrace.engine.grammar import Grammars, limits
from headrace.errors import ConfigError, RequestError
from headrace.frontend.grammar import check_grammar, grammar_of
from headrace.types import SamplingParams, StructuredOutputsParams


def accepts(form: StructuredOutputsParams, text: str) -> bool:
    from llguidance import LLMatcher, LLTokenizer

    grammar = grammar_of(form)
    check_grammar(grammar)
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=limits())
    known = text.encode()
    return matcher.try_consume_tokens(list(known)) == len(known) and matcher.is_accepting()


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ({"json": OBJECT}, '{"a": 1, "b": 2}', '{"a": "1"}'),
        ({"json": '{"const": "é\\n"}'}, '"é\\n"', '"é"'),
        ({"json": True}, "[null]", "nul"),
        ({"json": OBJECT, "disable_additional_properties": True}, '{"a":1}', '{"b":1}'),
        ({"json": OBJECT, "disable_any_whitespace": True}, '{"a":1}', '{"a": 1}'),
        ({"json": OBJECT, "whitespace_pattern": "[\n]"}, '{\n"a":1}', '{ "a":1}'),
        ({"json": OBJECT}, "{" + "\r\n\t " + '"a" : 1\n}', '{\n\n"a":1}'),
        ({"json_object": True}, '{"x": [1, {"y": null}]}', "[]"),
        ({"choice": ['say "hi"\n', "été/"]}, "été/", "say"),
        ({"regex": r"\d{2}/[a-z]+"}, "12/ab", "123/ab"),
        ({"grammar": 'start: A "!"\nA: /[ab]+/'}, "abba!", "abba"),
        ({"grammar": 'root ::= "a" b*\nb ::= [0-9]'}, "a12", "b"),
        (
            {"structural_tag": {"structures": [{"begin": "<f>", "schema": OBJECT, "end": "</f>"}], "triggers": ["<f"]}},
            'text <f>{"a": 3}</f> and < more',
            'text <f>{"a": 3.5}</f>',
        ),
    ],
)
def test_forms(form: dict[str, Any], good: str, bad: str) -> None:
    wanted = StructuredOutputsParams(**form)
    assert accepts(wanted, good) and not accepts(wanted, bad)


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        ({"regex": "a", "choice": ["b"]}, "exactly one"),
        ({}, "exactly one"),
        ({"choice": []}, "not empty"),
        ({"json": "[1"}, "no JSON"),
        ({"json": "[1]"}, "is an object"),
        ({"json": {"type": "string", "minLength": 3, "maxLength": 2}}, "can't be used"),
        ({"json": {"$ref": "#"}}, "nothing satisfies it"),
        ({"json": {"not": {}}}, "Unimplemented keys"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "a" * 200_000}, "at most 131072"),
        ({"grammar": "start: nobody"}, "unknown name"),
        ({"grammar": "start: <|im_end|>"}, r'unknown special token: "<\|im_end\|>"\.$'),
        ({"grammar": "root ::= " + "(" * 50_000}, "nested too deeply"),
        ({"grammar": 'root ::= "a'}, "can't be read"),
        ({"structural_tag": {"structures": [], "triggers": []}}, "at least one tag"),
        (
            {"structural_tag": {"structures": [{"begin": "a", "schema": {}, "end": ""}], "triggers": ["b"]}},
            "No trigger",
        ),
        ({"structural_tag": "{}"}, "structural tag is invalid"),
    ],
)
def test_what_is_no_form_is_refused_with_a_sentence(form: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence) as caught:
        check_grammar(grammar_of(StructuredOutputsParams(**form)))
    assert caught.value.param == "structured_outputs" and len(str(caught.value)) < 400


def test_older_names_and_dictionaries() -> None:
    form = StructuredOutputsParams(regex="a")
    assert SamplingParams(guided_decoding=form).structured_outputs == form
    assert SamplingParams(structured_outputs={"regex": "a"}).structured_outputs == form  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [{"backend": "mine"}, {"colour": 1}, {"disable_any_whitespace": "maybe"}])
def test_settings_that_mean_nothing_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--structured-outputs-config"):
        Config.from_kwargs(structured_outputs_config=value)


# -- structural tags ------------------------------------------------------------------------------------------------

NUMBER = {"type": "json_schema", "json_schema": {"type": "integer"}}
FREE = {"type": "any_text"}
TAGS = [
    {"type": "tag", "begin": "<f=1>", "content": NUMBER, "end": "</f>"},
    {"type": "tag", "begin": "<f=2>", "content": FREE, "end": "</f>"},
]


def text(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def row(*elements: Any) -> dict[str, Any]:
    return {"type": "sequence", "elements": list(elements)}


def triggered(**options: Any) -> dict[str, Any]:
    return {"type": "triggered_tags", "triggers": ["<f="], "tags": TAGS, **options}


def separated(**options: Any) -> dict[str, Any]:
    return {"type": "tags_with_separator", "separator": ",", "tags": TAGS, **options}


@pytest.mark.parametrize(
    ("format", "good", "bad"),
    [
        (text("hi"), ["hi"], ["h", "hi!"]),
        (NUMBER, ["12"], ['"12"']),
        ({"type": "regex", "pattern": r"\d{2}/x"}, ["12/x"], ["12/y"]),
        ({"type": "grammar", "grammar": 'root ::= "a" b*\nb ::= [0-9]'}, ["a12"], ["b"]),
        (FREE, ["", "a\nb"], []),
        (row(text("a"), NUMBER, text(""), text("b")), ["a1b"], ["a1"]),
        ({"type": "or", "elements": [text("a"), row(NUMBER, text("!"))]}, ["a", "1!"], ["b", "1"]),
        (row(TAGS[1], NUMBER), ["<f=2>a < b\n</f>12"], ["<f=2>a12", "<f=2></f>x"]),
        (row(FREE, TAGS[0]), ["abc<f=1>1</f>"], ["abc"]),
        (triggered(), ["", "abc", "a <f=1>1</f> b <f=2>c</f>"], ["a <f=1>x</f>", "<f=3>"]),
        (triggered(at_least_one=True), ["a <f=1>1</f> b"], ["", "a"]),
        (triggered(stop_after_first=True), ["a <f=1>1</f>", "a"], ["a <f=1>1</f> b"]),
        (triggered(stop_after_first=True, at_least_one=True), ["a <f=1>1</f>"], ["a"]),
        (separated(), ["", "<f=1>1</f>,<f=2>a</f>"], ["<f=1>1</f><f=2>a</f>", "a"]),
        (separated(at_least_one=True, stop_after_first=True), ["<f=1>1</f>"], ["", "<f=1>1</f>,<f=2>a</f>"]),
    ],
)
def test_structural_formats(format: dict[str, Any], good: list[str], bad: list[str]) -> None:
    wanted = StructuredOutputsParams(structural_tag={"type": "structural_tag", "format": format})
    assert all(accepts(wanted, known) for known in good) and not any(accepts(wanted, known) for known in bad)


@pytest.mark.parametrize(
    ("format", "sentence"),
    [
        (row(FREE, NUMBER), "any text can go up to a fixed text"),
        (row(triggered(), text("x")), "any text can go up to a fixed text"),
        (triggered(triggers=["<g"]), "No trigger begins"),
        (triggered(tags=[]), "at least one tag"),
        ({"type": "or", "elements": []}, "empty list"),
        ({"type": "any_text", "excludes": ["a"]}, "unknown field `excludes`"),
        ({"type": "qwen_xml_parameter"}, "'qwen_xml_parameter'"),
    ],
)
def test_structural_formats_that_can_not_be_get_a_sentence(format: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        grammar_of(StructuredOutputsParams(structural_tag={"type": "structural_tag", "format": format}))


def test_a_grammar_that_can_not_go_on_has_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from llguidance import LLTokenizer

    grammars = Grammars(lambda: LLTokenizer("byte"), 512, [])
    ruled_out, unlucky = (grammars.start(grammar_of(StructuredOutputsParams(choice=["yes"])), False) for _ in range(2))
    while not (ruled_out.settle() and unlucky.settle()):
        time.sleep(0.01)
    assert not ruled_out.accept(ord("z"))
    assert ruled_out.error is not None and "rule out all" in ruled_out.error
    monkeypatch.setattr(grammars, "_executor", None)
    grammars.advance([unlucky])
    grammars.await_any([], 5)
    assert unlucky.error is not None and "can't be computed" in unlucky.error
