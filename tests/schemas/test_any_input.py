"""The workflow DSL: its limits, and any input at all."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.problems import PROBLEMS_MAX
from schemas.workflow.dsl import Limits, Problem, Program, parse
from schemas.workflow.node_types import ALIASES, NODE_TYPES
from tests.schemas.workflows import A, B, edge, errors, graph, node


def chain(count: int, edges: int) -> dict[str, Any]:
    pairs = [(at, at + step) for step in range(1, 9) for at in range(count - step)][:edges]
    return graph(*(node(f"n{at}", "join") for at in range(count)), *(edge(f"n{a}", f"n{b}") for a, b in pairs))


def test_as_large_as_allowed() -> None:
    program, problems = parse(chain(2_000, 8_000))
    assert program is not None
    assert not problems
    assert (len(program.nodes), len(program.edges)) == (2_000, 8_000)


def test_too_large() -> None:
    assert errors(chain(2_001, 100)) == {("/nodes", "too_many_nodes")}
    assert errors(chain(2_000, 8_001)) == {("/edges", "too_many_edges")}
    assert errors(graph(node("a", "answer", text="x" * 1_048_576))) == {("", "dsl_too_large")}
    small = Limits(nodes_max=1, edges_max=0, bytes_max=100)
    assert errors(graph(A), limits=small) == set()
    assert errors(graph(A, B, edge("a", "b")), limits=Limits(nodes_max=1, edges_max=0)) == {
        ("/nodes", "too_many_nodes"),
        ("/edges", "too_many_edges"),
    }
    assert errors(graph(A, B), limits=small) == {("", "dsl_too_large")}


def test_too_deep() -> None:
    deep: Any = 1
    for _ in range(59):
        deep = [deep]
    assert parse(graph(node("a", "assigner", assignments={"x": deep})))[0]
    found = errors(graph(node("a", "assigner", assignments={"x": [deep]})))
    assert found == {("/nodes/0/config/assignments/x" + "/0" * 59, "too_deep")}
    for _ in range(100_000):
        deep = [deep]
    assert {code for _, code in errors(graph(node("a", "assigner", assignments={"x": deep})))} == {"too_deep"}


def test_expressions_are_bounded_together() -> None:
    cases = [{"id": str(at), "expression": "1" + " + 1" * 480} for at in range(100)]
    nodes = [node(f"n{at}", "if-else", cases=cases) for at in range(2)]
    assert {code for _, code in errors(graph(*nodes))} == {"expressions_too_long"}
    assert parse(graph(nodes[0]))[0]


def test_problems_are_bounded() -> None:
    _, problems = parse(graph(node("a", "join", **{f"x{at}": 1 for at in range(5_000)})))
    assert len(problems) == PROBLEMS_MAX
    assert problems[-1].code == "too_many_problems"


# Anything at all

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.characters(categories=["Cs", "Cc"])
)
ANYTHING = st.recursive(
    SCALARS | st.binary(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(
            st.sampled_from(["nodes", "edges", "id", "type", "config", "source", "target", "condition"]) | SCALARS,
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


def check_answer(dsl: Any) -> Program | None:
    before = copy.deepcopy(dsl)
    program, problems = parse(dsl)
    assert repr(dsl) == repr(before)
    assert (program is None) == any(problem.severity == "error" for problem in problems)
    for problem in problems:
        assert isinstance(problem, Problem)
        json.dumps([problem.pointer, problem.code, problem.detail]).encode()
        (problem.pointer + problem.detail).encode()
        assert problem.pointer == "" or problem.pointer.startswith("/")
    return program


@settings(max_examples=300)
@given(ANYTHING)
def test_anything_is_answered(value: Any) -> None:
    check_answer(value)


FIELDS = sorted({name for kind in NODE_TYPES.values() for name in kind.model_fields} | {"id", "cases_json", "input"})
CONFIG_VALUES = st.one_of(
    SCALARS,
    st.sampled_from(
        ["{{state.x}}", "{{nodes.a.output.x}}", "{{", "a", "b", "default", "n_completed", "1 + 1", "python"]
    ),
    st.dictionaries(st.sampled_from([*FIELDS, "type", "default", "role"]), ANYTHING, max_size=3),
    st.lists(st.dictionaries(st.sampled_from(["id", "expression", "role", "content", "text"]), SCALARS), max_size=3),
    ANYTHING,
)
NODES = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["a", "b", "c", "d"]) | SCALARS,
        "type": st.sampled_from([*NODE_TYPES, *ALIASES]),
        "config": st.dictionaries(st.sampled_from(FIELDS), CONFIG_VALUES, max_size=6),
    }
)
EDGES = st.fixed_dictionaries(
    {"source": st.sampled_from("abcd"), "target": st.sampled_from("abcd")},
    optional={"condition": st.sampled_from(["true", "false", "failed", "x", True, False, None]) | SCALARS},
)


@settings(max_examples=400)
@given(st.lists(NODES, max_size=5), st.lists(EDGES, max_size=6))
def test_anything_that_looks_like_a_workflow_is_answered(nodes: list[Any], edges: list[Any]) -> None:
    check_answer({"nodes": nodes, "edges": edges})


def test_no_answer_depends_on_what_was_parsed_before() -> None:
    first = parse(graph(A, B, edge("a", "b", "x")))[1]
    parse(graph(A, A))
    assert parse(graph(A, B, edge("a", "b", "x")))[1] == first


LOOP = graph(
    node("s", "join"), node("h", "join", allow_loop=True), node("t", "join"),
    edge("s", "h"), edge("h", "t"), edge("t", "h"),
)  # fmt: skip


def test_programs_are_plain_and_repeatable() -> None:
    one, two = parse(LOOP)[0], parse(LOOP)[0]
    assert one == two
    assert isinstance(one, Program)
    assert isinstance(one.by_id, Mapping)
