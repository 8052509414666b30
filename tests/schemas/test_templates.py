"""Templates: placeholders in text, whole-string placeholders, JSON values to fill in, and their limits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.workflow.functions import EvaluationError
from schemas.workflow.templates import (
    Template,
    TemplateError,
    Value,
    compile_json_template,
    compile_template,
    compile_value,
    object_value,
    text_value,
)

SCOPE: dict[str, Any] = {
    "state": {
        "user_name": "Alice",
        "score": 7,
        "ratio": 7.0,
        "flag": False,
        "items": ["a", {"b": "é"}],
        "none": None,
        "quote": 'a "b"\n',
        "braces": "{{state.score}}",
    },
    "inputs": {},
    "nodes": {"retrieve-docs": {"output": {"retrieved_documents": [{"title": "Refund Policy"}]}, "text": "t"}},
    "current": {"node_id": "here"},
    "run": {"id": "r"},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain } text }}", "plain } text }}"),
        ("{{state.user_name}} passed with score {{state.score}}", "Alice passed with score 7"),
        ("Top doc: {{nodes.retrieve-docs.output.retrieved_documents.0.title}}", "Top doc: Refund Policy"),
        ("{{ current.node_id }}{{run.id}}", "herer"),
        ("[{{state.missing}}{{state.none}}]", "[]"),
        ("{{state.ratio}} {{state.flag}} {{state.items}}", '7.0 false ["a",{"b":"é"}]'),
        ('{"a":{"b":{{state.score}}}}', '{"a":{"b":7}}'),
        ("{{state.braces}}", "{{state.score}}"),
        ("<b>{{state.quote}}</b>", '<b>a "b"\n</b>'),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert compile_template(text).render(SCOPE) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{state.items}}", ["a", {"b": "é"}]),
        ("{{ state.score }}", 7),
        ("{{state.flag}}", False),
        ("{{state.missing}}", None),
        ("{{state.items.1.b}}", "é"),
        (" {{state.score}}", " 7"),
        ("{{state.score}}{{state.score}}", "77"),
        ("constant", "constant"),
    ],
)
def test_a_whole_placeholder_keeps_its_type(text: str, expected: Any) -> None:
    found = compile_template(text).value(SCOPE)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("a {{state.x", 2, "not closed"),
        ("{{}}", 2, "empty"),
        ("{{   }}", 2, "empty"),
        ("{{ foo.x }}", 3, "unknown name"),
        ("{{state.score + 1}}", 13, "only a path"),
        ("{{state.a-b}}", 9, "only a path"),
        ("{{state.x | upper}}", 9, "only a path"),
        ("{{#if state.x}}", 2, "missing"),
        ("{{{state.x}}}", 2, "missing"),
        ("{{nodes}}", 2, "node id"),
        ("{{state..x}}", 8, "missing"),
        ("{{state.x.}}", 10, "missing"),
        ("{{ state.x {{state.y}}", 10, "only a path"),
        ("{{state.x}}" * 2_001, 0, "placeholders"),
    ],
)
def test_refused_when_compiled(text: str, position: int, reason: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compile_template(text)
    assert reason in caught.value.reason
    assert caught.value.position == position


def test_references() -> None:
    template = compile_template("{{state.a}} {{nodes.retrieve-docs.text}} {{state.a}}")
    assert template.references == {("state", "a"), ("nodes", "retrieve-docs", "text")}


def test_text_is_at_most_one_mebibyte() -> None:
    scope = {"state": {"big": "x" * 65_536}}
    assert len(compile_template("{{state.big}}" * 16).render(scope)) == 1_048_576
    with pytest.raises(EvaluationError, match="longer than"):
        compile_template("{{state.big}}" * 16 + ".").render(scope)


def test_what_has_no_json_form_is_an_error() -> None:
    for value in (float("nan"), [2**70], "\ud800", {"a": b"bytes"}):
        scope: dict[str, Any] = {"state": {"bad": [value]}}
        if isinstance(value, float):
            scope = {"state": {"bad": value}}
        with pytest.raises(EvaluationError):
            compile_template("x{{state.bad}}").render(scope)


# Values


def test_a_value_is_filled_in_at_every_depth() -> None:
    value = compile_value({"a": "{{state.items}}", "b": [1, {"c": "s {{state.score}}", "{{d}}": None}], "e": "plain"})
    assert value.evaluate(SCOPE) == {"a": ["a", {"b": "é"}], "b": [1, {"c": "s 7", "{{d}}": None}], "e": "plain"}
    assert list(value.evaluate(SCOPE)) == ["a", "b", "e"]
    assert value.references == {("state", "items"), ("state", "score")}
    assert not value.constant


def test_a_constant_is_answered_itself() -> None:
    source = {"a": [1, 2, {"b": "text } }}"}]}
    value = compile_value(source)
    assert value.constant
    assert value.evaluate(SCOPE) is source


def test_what_is_filled_in_is_not_a_template_again() -> None:
    assert compile_value({"a": "{{state.braces}}"}).evaluate(SCOPE) == {"a": "{{state.score}}"}


def test_errors_carry_pointers() -> None:
    errors: list[TemplateError] = []
    compile_value({"a/b": ["{{", {"c~": "{{x}}"}], "ok": "{{state.x}}"}, errors)
    assert [(error.pointer, error.position) for error in errors] == [("/a~1b/0", 0), ("/a~1b/1/c~0", 2)]
    with pytest.raises(TemplateError) as caught:
        compile_value(["{{"])
    assert caught.value.pointer == "/0"


def test_a_value_nested_too_deeply_is_refused() -> None:
    deep: Any = "{{state.x}}"
    for _ in range(64):
        deep = [deep]
    assert compile_value(deep).references == {("state", "x")}
    with pytest.raises(TemplateError, match="deeper"):
        compile_value([deep])


@pytest.mark.parametrize("leaf", ["{{state.big}}", "x{{state.big}}", "{{state.list}}"])
def test_many_placeholders_cannot_multiply_one_large_value(leaf: str) -> None:
    scope = {"state": {"big": "x" * 65_536, "list": ["y" * 1_000] * 60}}
    assert compile_value([leaf] * 20).evaluate(scope)
    with pytest.raises(EvaluationError, match="larger than"):
        compile_value([leaf] * 100).evaluate(scope)


def test_two_placeholders_are_bounded_already() -> None:
    scope = {"state": {"list": ["y" * 1_000] * 3_000}}
    assert compile_value({"a": "{{state.list}}", "b": "x"}).evaluate(scope)
    with pytest.raises(EvaluationError, match="larger than"):
        compile_value({"a": "{{state.list}}", "b": "{{state.list}}"}).evaluate(scope)


def test_one_placeholder_passes_on_what_it_reads_whatever_its_size() -> None:
    scope = {"state": {"list": ["y" * 1_000] * 6_000}}
    assert compile_value({"a": "{{state.list}}"}).evaluate(scope)["a"] is scope["state"]["list"]


def test_too_many_placeholders_in_one_value() -> None:
    with pytest.raises(TemplateError, match="placeholders"):
        compile_value(["{{state.x}}"] * 2_001)


def test_a_json_template_is_parsed_before_it_is_filled() -> None:
    value = compile_json_template('{"name": "{{state.quote}}", "items": "{{state.items}}"}')
    assert value is not None
    assert value.evaluate(SCOPE) == {"name": 'a "b"\n', "items": ["a", {"b": "é"}]}


@pytest.mark.parametrize("text", ["{{state.x}}", "[note] text", '{"a": {{state.score}}}', "7", '"text"', "", "[1"])
def test_other_text_is_no_json_template(text: str) -> None:
    assert compile_json_template(text) is None


def test_values_put_together() -> None:
    value = object_value({"prompt": text_value(compile_template("{{state.missing}}")), "n": compile_value(1)})
    assert value.evaluate(SCOPE) == {"prompt": "", "n": 1}
    constant = object_value({"prompt": text_value(compile_template("hi"))})
    assert constant.constant
    assert constant.evaluate({}) == {"prompt": "hi"}


# Any text, any value


def compiled_or_refused(text: str) -> Template | TemplateError:
    try:
        return compile_template(text)
    except TemplateError as error:
        return error


@settings(max_examples=300)
@given(st.text(max_size=40) | st.text("{} state.nodes-ab0\n", max_size=40))
def test_any_text_compiles_or_is_refused_with_a_position(text: str) -> None:
    template = compiled_or_refused(text)
    if isinstance(template, TemplateError):
        assert 0 <= template.position <= len(text)
    else:
        template.render(SCOPE)
        template.value(SCOPE)


PIECES = st.lists(
    st.one_of(
        st.sampled_from([("x", "x"), (" ", " "), ("}", "}"), ("é", "é")]),
        st.sampled_from(["score", "user_name", "missing", "flag"]).map(lambda name: ("{{state." + name + "}}", name)),
    ),
    max_size=8,
)


@settings(max_examples=200)
@given(PIECES)
def test_rendering_is_the_pieces_one_after_another(pieces: list[tuple[str, str]]) -> None:
    known = {"score": "7", "user_name": "Alice", "missing": "", "flag": "false"}
    expected = "".join(known.get(meaning, meaning) for _, meaning in pieces)
    assert compile_template("".join(text for text, _ in pieces)).render(SCOPE) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x", "{{state.score}}", "a{{state.flag}}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


def filled(value: Any) -> Any:
    if isinstance(value, list):
        return [filled(item) for item in value]
    if isinstance(value, dict):
        return {key: filled(item) for key, item in value.items()}
    return {"{{state.score}}": 7, "a{{state.flag}}": "afalse"}.get(value, value) if isinstance(value, str) else value


@settings(max_examples=200)
@given(JSON)
def test_filling_changes_the_placeholders_only(source: Any) -> None:
    value: Value = compile_value(source)
    assert json.dumps(value.evaluate(SCOPE)) == json.dumps(filled(source))
    assert value.constant == ("{{" not in json.dumps(source))
