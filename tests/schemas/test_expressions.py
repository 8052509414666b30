"""Expressions: what they mean, what they refuse, and a second evaluator that must agree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.workflow.expressions import EvaluationError, ExpressionError, compile_expression

SCOPE: dict[str, Any] = {
    "state": {
        "score": 7,
        "half": 0.5,
        "name": "Alice",
        "flag": True,
        "none": None,
        "items": [{"title": "first"}, 2, "three"],
        "0": "zero",
        "客户": "甲",
        "huge": 2**63 - 1,
        "nested": {"a": [1, [True, 2]]},
    },
    "inputs": {"limit": 10},
    "nodes": {"retrieve-docs": {"output": {"docs": [{"score": 0.9}]}, "text": "found"}, "7-up": {"text": "x"}},
    "current": {"node_id": "here"},
    "run": {"id": "r1"},
}


def value_of(text: str) -> Any:
    return compile_expression(text).evaluate(SCOPE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("state.score >= 5", True),
        ("state.score-1 == 6", True),
        ("state.score - 1", 6),
        ("nodes.retrieve-docs.text == 'found'", True),
        ("nodes.7-up.text", "x"),
        ("nodes.retrieve-docs.output.docs.0.score-0.4 > 0", True),
        ("state.items.0.title", "first"),
        ("state.items.3", None),
        ("state.items.title", None),
        ("state.items.99999999999999999999", None),
        ("state.items.-1 == null or true", ExpressionError),
        ("state.0", "zero"),
        ("state.客户 == '甲'", True),
        ("state.name.length", None),
        ("state.missing.deeper.still", None),
        ("current.node_id == 'here' and run.id == \"r1\"", True),
        # Equality and its types.
        ("state.missing == null", True),
        ("state.flag == true", True),
        ("true == 1", False),
        ("1 == 1.0", True),
        ("'1' == 1", False),
        ("[1, [true]] == [1.0, [true]]", True),
        ("[1] == [true]", False),
        ("state.nested.a == [1, [1, 2]]", False),
        ("null != false", True),
        # Ordering.
        ("'a' < 'b'", True),
        ("1 < 'b'", False),
        ("1 >= 'b'", False),
        ("null < 1", False),
        ("null <= null", False),
        ("true > false", False),
        ("[1] < [2]", False),
        ("state.missing > 3 or state.missing <= 3", False),
        # Boolean.
        ("not state.missing", True),
        ("not state.score == 7", False),
        ("!state.score == 7", False),
        ("!(state.score == 7)", False),
        ("not not 'x'", True),
        ("1 and 'x'", True),
        ("0 or ''", False),
        ("[] or false || null", False),
        ("true || 1 / 0 == 1", True),
        ("false && 1 / 0 == 1", False),
        ("true or false and false", True),
        ("not false and false", False),
        # Arithmetic.
        ("1 + 2 * 3 - 4 / 2", 5.0),
        ("(1 + 2) * 3", 9),
        ("10 - 3 - 2", 5),
        ("-2 - -3", 1),
        ("- 2 * 3", -6),
        ("7 % 4", 3),
        ("-7 % 4", 1),
        ("1e3", 1000.0),
        ("2 / 4", 0.5),
        ("9223372036854775807", 2**63 - 1),
        # Membership.
        ("2 in [1, 2]", True),
        ("true in [1]", False),
        ("'b' in 'abc'", True),
        ("'score' in state", True),
        ("state.items contains 'three'", True),
        ("'x' not in state.items", True),
        ("not 'x' in state.items", True),
        ("null in null", False),
        ("1 in '1'", False),
        ("state.missing contains 1", False),
        # Functions.
        ("len(state.items)", 3),
        ("len('äö')", 2),
        ("len(state.missing) > 0", False),
        ("lower(state.name) == 'alice'", True),
        ("upper('ß')", "SS"),
        ("trim('  x ')", "x"),
        ("abs(-3)", 3),
        ("min(3, 1.5, 2)", 1.5),
        ("max([1, 5, 2])", 5),
        ("max(['a', 'b'])", "b"),
        ("min([])", None),
        ("round(2.567, 2)", 2.57),
        ("round(2.5)", 2),
        ("int('12')", 12),
        ("int(-3.9)", -3),
        ("int(true)", 1),
        ("float(' 1.5 ')", 1.5),
        ("str(7) == '7' and str(true) == 'true' and str(null) == ''", True),
        ("str([1, 'é'])", '[1,"é"]'),
        ("starts_with(state.name, 'Al')", True),
        ("ends_with(state.name, 'x')", False),
        ("is_null(state.none) and is_null(state.missing)", True),
        ("default(state.missing, 'd')", "d"),
        ("default(false, 'd')", False),
        # Literals.
        (r"'it\'s' == " + '"it\'s"', True),
        (r"'a\\b\n'", "a\\b\n"),
        ("[]", []),
        ("[1, state.score, 'x', null]", [1, 7, "x", None]),
        ("state.in == null", True),
        ("\tstate.score\n==7 ", True),
    ],
)
def test_meaning(text: str, expected: Any) -> None:
    if expected is ExpressionError:
        with pytest.raises(ExpressionError):
            compile_expression(text)
        return
    found = value_of(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("", 0, "ends too early"),
        ("1 +", 3, "ends too early"),
        ("foo == 1", 0, "unknown name 'foo'"),
        ("True", 0, "unknown name"),
        ("nodes", 0, "needs a node id"),
        ("state..x", 6, "missing"),
        ("state.", 6, "missing"),
        ("state.x = 1", 8, "=="),
        ("9 ** 9 ** 9", 3, "unexpected '*'"),
        ("1 < 2 < 3", 6, "do not chain"),
        ("1 == not 2", 5, "parentheses"),
        ("not in", 4, "unexpected 'in'"),
        ("(1", 2, "expected ')'"),
        ("1)", 1, "unexpected ')'"),
        ("[1, ]", 4, "missing"),
        ("[1 2]", 3, "expected ','"),
        ("'open", 0, "not closed"),
        (r"'\x'", 2, "escape"),
        ("'\0'", 1, "U+0000"),
        ("'\ud800'", 1, "surrogate"),
        ("1x", 0, "not a number"),
        ("1.2.3", 0, "not a number"),
        ("1e999", 0, "out of range"),
        ("9223372036854775808", 0, "out of range"),
        ("eval('1')", 0, "unknown function"),
        ("state.name.upper()", 16, "unexpected '('"),
        ("__import__('os')", 0, "unknown function"),
        ("state.__class__.__mro__ ; 1", 24, "unexpected"),
        ("len()", 0, "takes 1 to 1"),
        ("round(1, 2, 3)", 0, "takes 1 to 2"),
        ("lambda: 1", 0, "unknown name"),
        ("x" * 2_001, 2_000, "longer than"),
        ("(" * 65 + "1" + ")" * 65, 65, "deeper than 64"),
        ("-" * 65 + "1", 65, "deeper than 64"),
        ("!" * 65 + "1", 65, "deeper than 64"),
        ("not " * 65 + "1", 260, "deeper than 64"),
        ("[" * 66 + "]" * 66, 65, "deeper than 64"),
        ("state" + ".a" * 64, 0, "at most 64"),
    ],
)
def test_refused_when_compiled(text: str, position: int, reason: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text)
    assert reason in caught.value.reason
    assert caught.value.position == position


@pytest.mark.parametrize(
    "text",
    [
        "1 + 'x'",
        "'a' + 'b'",
        "1 + true",
        "null + 1",
        "state.missing * 2",
        "-'x'",
        "-null",
        "1 / 0",
        "1 % 0",
        "1.0 % 0.0",
        "state.huge + 1",
        "state.huge * state.huge",
        "1e308 * 10",
        "int(1e300)",
        "int('9223372036854775808')",
        "int('1_000')",
        "int('x')",
        "float('nan')",
        "float('inf')",
        "float([])",
        "len(5)",
        "lower(5)",
        "abs('x')",
        "round('x')",
        "round(1, -1)",
        "min(1, 'x')",
        "max(true, 1)",
        "starts_with(1, 'x')",
    ],
)
def test_has_no_value(text: str) -> None:
    with pytest.raises(EvaluationError):
        value_of(text)


def test_as_deep_and_as_long_as_allowed() -> None:
    assert value_of("(" * 64 + "1" + ")" * 64) == 1
    assert value_of("1" + "+1" * 999) == 1000
    assert value_of("1" + " and 1" * 333) is True


def test_a_result_put_together_from_large_values_is_refused() -> None:
    scope = {"state": {"big": "x" * 65_536}}
    many = "[" + ",".join(["state.big"] * 150) + "]"
    with pytest.raises(EvaluationError, match="too large"):
        compile_expression(many).evaluate(scope)
    assert compile_expression("state.big").evaluate(scope) is scope["state"]["big"]


def test_texts_made_by_functions_are_bounded() -> None:
    scope = {"state": {"big": "ß" * 600_000}}
    with pytest.raises(EvaluationError, match="too long"):
        compile_expression("upper(state.big)").evaluate(scope)


def test_too_deep_data_is_an_error_not_a_crash() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    other: list[Any] = []
    for _ in range(5_000):
        other = [other]
    for text in ("state.a == state.b", "str(state.a)"):
        with pytest.raises(EvaluationError):
            compile_expression(text).evaluate({"state": {"a": deep, "b": other}})


def test_references_are_all_paths() -> None:
    expression = compile_expression("nodes.a-b.output.x > state.y and len([run.id, nodes.c]) == 2")
    assert expression.references == {("nodes", "a-b", "output", "x"), ("state", "y"), ("run", "id"), ("nodes", "c")}


def test_truth_follows_json() -> None:
    for text in ("null", "false", "0", "0.0", "''", "[]", "state.missing"):
        assert compile_expression(text).truth(SCOPE) is False
    for text in ("true", "1", "'0'", "[null]", "state"):
        assert compile_expression(text).truth(SCOPE) is True


# Any text at all


def outcome(text: str) -> Any:
    """The value, or the error that says why there is none; nothing else may come out."""
    try:
        return compile_expression(text).evaluate(SCOPE)
    except (ExpressionError, EvaluationError) as error:
        return error


@settings(max_examples=300)
@given(st.text(max_size=60) | st.text("state.nodes-ab()[]'\"\\0123456789+-*/%<>=!&|, \n", max_size=60))
def test_any_text_compiles_or_is_refused_with_a_position(text: str) -> None:
    found = outcome(text)
    if isinstance(found, ExpressionError):
        assert 0 <= found.position <= len(text)


WORDS = [
    *("state.score", "nodes.retrieve-docs.text", "inputs.limit", "state.items.0", "1", "2.5", "'x'", "null", "true"),
    *("and", "or", "not", "&&", "||", "!", "==", "!=", "<", "<=", ">", ">=", "in", "contains", "+", "-", "*", "/", "%"),
    *("(", ")", "[", "]", ",", "len(", "default(", "min(", "round("),
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=14))
def test_any_sequence_of_words_compiles_or_is_refused(words: list[str]) -> None:
    outcome(" ".join(words))


# A second evaluator over trees; the text is the tree written with all its parentheses.

Tree = tuple[Any, ...]

LEAVES = st.one_of(
    st.integers(0, 9).map(lambda number: ("literal", number, str(number))),
    st.sampled_from([0.5, 2.0]).map(lambda number: ("literal", number, repr(number))),
    st.sampled_from([(True, "true"), (False, "false"), (None, "null"), ("", "''"), ("ab", "'ab'"), ("b", '"b"')]).map(
        lambda pair: ("literal", *pair)
    ),
    st.sampled_from(["score", "half", "name", "flag", "none", "items", "missing"]).map(lambda name: ("state", name)),
)
BINARY = ("and", "or", "&&", "||", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "contains", *"+-*/%")


def _deeper(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return st.one_of(
        st.tuples(st.sampled_from(BINARY), inner, inner),
        st.tuples(st.sampled_from(["not", "!", "-"]), inner),
        st.lists(inner, max_size=3).map(lambda members: ("list", *members)),
    )


TREES = st.recursive(LEAVES, _deeper, max_leaves=12)


def written(tree: Tree) -> str:
    match tree:
        case ("literal", _, text):
            return str(text)
        case ("state", name):
            return f"state.{name}"
        case ("list", *members):
            return "[" + ", ".join(map(written, members)) + "]"
        case (operator, operand):
            return f"({operator} {written(operand)})"
        case (operator, left, right):
            return f"({written(left)} {operator} {written(right)})"
    raise AssertionError(tree)


class NoValue(Exception):
    pass


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(a[i], b[i]) for i in range(len(a)))
    if isinstance(a, dict) and isinstance(b, dict):
        return sorted(a) == sorted(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def has(container: Any, member: Any) -> bool:
    if isinstance(container, list):
        return any(same(each, member) for each in container)
    return isinstance(container, str) and isinstance(member, str) and container.find(member) >= 0


def judged(tree: Tree) -> Any:
    match tree:
        case ("literal", value, _):
            return value
        case ("state", name):
            return SCOPE["state"].get(name)
        case ("list", *members):
            return [judged(member) for member in members]
        case ("not" | "!", operand):
            return not judged(operand)
        case ("-", operand):
            value = judged(operand)
            if not is_number(value):
                raise NoValue
            return -value
        case ("and" | "&&", left, right):
            return bool(judged(left)) and bool(judged(right))
        case ("or" | "||", left, right):
            return bool(judged(left)) or bool(judged(right))
    operator, left, right = tree[0], judged(tree[1]), judged(tree[2])
    match operator:
        case "==":
            return same(left, right)
        case "!=":
            return not same(left, right)
        case "in":
            return has(right, left)
        case "not in":
            return not has(right, left)
        case "contains":
            return has(left, right)
        case "<" | "<=" | ">" | ">=":
            alike = (is_number(left) and is_number(right)) or (isinstance(left, str) and isinstance(right, str))
            return alike and bool(eval(f"left {operator} right", {}, {"left": left, "right": right}))  # noqa: S307
    if not is_number(left) or not is_number(right) or (operator in "/%" and right == 0):
        raise NoValue
    result = eval(f"left {operator} right", {}, {"left": left, "right": right})  # noqa: S307
    if isinstance(result, int) and not -(2**63) <= result < 2**63:
        raise NoValue
    return result


@settings(max_examples=600)
@given(TREES)
def test_a_second_evaluator_agrees(tree: Tree) -> None:
    expression = compile_expression(written(tree))
    try:
        expected = judged(tree)
    except NoValue:
        with pytest.raises(EvaluationError):
            expression.evaluate(SCOPE)
        return
    found = expression.evaluate(SCOPE)
    assert same(found, expected)
    assert type(found) is type(expected)
    assert expression.truth(SCOPE) is bool(expected)


LEVELS = (("or", "||"), ("and", "&&"), ("==", "<", "in"), ("+", "-"), ("*", "/", "%"))


@settings(max_examples=400)
@given(st.lists(st.sampled_from([op for level in LEVELS for op in level]), min_size=1, max_size=7), st.data())
def test_precedence_without_parentheses(operators: list[str], data: st.DataObject) -> None:
    """Grouping by hand, loosest operator last, gives the same as the bare text."""
    operands = [("literal", data.draw(st.integers(1, 9)), "") for _ in range(len(operators) + 1)]
    operands = [("literal", number, str(number)) for _, number, _ in operands]
    bare = str(operands[0][1]) + "".join(f" {op} {x[1]}" for op, x in zip(operators, operands[1:], strict=True))
    grouped = _grouped(operands, operators)
    if grouped is None:
        with pytest.raises(ExpressionError, match="chain"):
            compile_expression(bare)
        return
    try:
        expected = judged(grouped)
    except NoValue:
        with pytest.raises(EvaluationError):
            compile_expression(bare).evaluate(SCOPE)
        return
    assert same(compile_expression(bare).evaluate(SCOPE), expected)


def _grouped(operands: list[Tree], operators: list[str]) -> Tree | None:
    """The tree of a flat sequence; None if comparisons chain."""
    trees, rest = list(operands), list(operators)
    for level in reversed(LEVELS):
        at = 0
        while at < len(rest):
            if rest[at] not in level:
                at += 1
                continue
            if level == LEVELS[2] and at + 1 < len(rest) and rest[at + 1] in level:
                return None
            trees[at : at + 2] = [(rest.pop(at), trees[at], trees[at + 1])]
    return trees[0]
