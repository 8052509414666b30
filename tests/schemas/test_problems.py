"""The workflow DSL: what is wrong, one thing at a time, each with its code and its place."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.problems import WARNINGS
from schemas.workflow.dsl import parse
from tests.schemas.workflows import A, B, C, edge, errors, graph, node

LOOP = (node("s", "join"), node("h", "join", allow_loop=True), node("t", "join"), edge("s", "h"), edge("h", "t"))
CASE = {"id": "x", "expression": "true"}

WRONG: list[tuple[Any, str, str]] = [
    # Form
    (None, "", "wrong_type"),
    ([], "", "wrong_type"),
    ("{}", "", "wrong_type"),
    (float("nan"), "", "not_a_number"),
    ({}, "/nodes", "missing_field"),
    ({"nodes": [], "edges": []}, "/nodes", "empty_graph"),
    ({"nodes": {}, "edges": []}, "/nodes", "wrong_type"),
    (graph(A) | {"edges": 5}, "/edges", "wrong_type"),
    (graph(A) | {"version": 1}, "/version", "unknown_field"),
    ({"nodes": [5], "edges": []}, "/nodes/0", "wrong_type"),
    (graph(A) | {"edges": ["a"]}, "/edges/0", "wrong_type"),
    (graph(A | {"name": "x"}), "/nodes/0/name", "unknown_field"),
    (graph({"id": "a", "config": {}}), "/nodes/0/type", "missing_field"),
    ({"nodes": [{"type": "join"}]}, "/nodes/0/id", "missing_field"),
    (graph({"id": 7, "type": "join"}), "/nodes/0/id", "wrong_type"),
    (graph({"id": "a", "type": 7}), "/nodes/0/type", "wrong_type"),
    (graph({"id": "a", "type": "join", "config": []}), "/nodes/0/config", "wrong_type"),
    (graph(A, B, {"source": "a", "target": "b", "x": 1}), "/edges/0/x", "unknown_field"),
    (graph(A, {"target": "a"}), "/edges/0/source", "missing_field"),
    (graph(A, {"source": "a"}), "/edges/0/target", "missing_field"),
    (graph(A, {"source": 1, "target": "a"}), "/edges/0/source", "wrong_type"),
    (graph(A, B, edge("a", "b", 1)), "/edges/0/condition", "wrong_type"),
    # Values
    (graph(node("a", "answer", text="\0")), "/nodes/0/config/text", "nul_character"),
    (graph(node("a", "answer", text="\ud800")), "/nodes/0/config/text", "lone_surrogate"),
    (graph(node("a\0", "join")), "/nodes/0/id", "nul_character"),
    (graph(node("a", "join\ud800")), "/nodes/0/type", "lone_surrogate"),
    (graph(node("a", "join", timeout_seconds=float("inf"))), "/nodes/0/config/timeout_seconds", "not_a_number"),
    (graph(A, {"source": "a", "target": "\0"}), "/edges/0/target", "nul_character"),
    (graph(node("a", "assigner", assignments={"\udfff": 1})), "/nodes/0/config/assignments/\\udfff", "lone_surrogate"),
    (graph(node("a", "assigner", assignments={"x": 2**64})), "/nodes/0/config/assignments/x", "number_too_large"),
    (graph(node("a", "assigner", assignments={"x": 1e400})), "/nodes/0/config/assignments/x", "not_a_number"),
    (graph(node("a", "assigner", assignments={"x": b"1"})), "/nodes/0/config/assignments/x", "not_json"),
    (graph(node("a", "assigner", assignments={"x": (1,)})), "/nodes/0/config/assignments/x", "not_json"),
    (graph(node("a", "assigner", assignments={1: 1})), "/nodes/0/config/assignments", "invalid_key"),
    # Nodes
    (graph(A | {"id": "a b"}), "/nodes/0/id", "invalid_id"),
    (graph(A, A), "/nodes/1/id", "duplicate_id"),
    (graph(node("a", "magic")), "/nodes/0/type", "unknown_node_type"),
    (graph(node("a", "noop")), "/nodes/0/type", "unknown_node_type"),
    (graph(node("a", "join", wait=1)), "/nodes/0/config/wait", "unknown_field"),
    (graph(node("a", "join", **{"a/b~": 1})), "/nodes/0/config/a~1b~0", "unknown_field"),
    (graph(node("a", "code", code="1", input={}, input_json={})), "/nodes/0/config/input_json", "conflicting_fields"),
    (graph(node("a", "answer")), "/nodes/0/config", "missing_field"),
    (graph(node("a", "answer", text="x", template="y")), "/nodes/0/config/text", "conflicting_fields"),
    (graph(node("a", "answer", text=5)), "/nodes/0/config/text", "wrong_type"),
    (graph(node("a", "assigner")), "/nodes/0/config/assignments", "missing_field"),
    (graph(node("a", "assigner", assignments=[])), "/nodes/0/config/assignments", "wrong_type"),
    (graph(node("a", "end", outputs="x")), "/nodes/0/config/outputs", "wrong_type"),
    (graph(node("a", "template-transform")), "/nodes/0/config/template", "missing_field"),
    (graph(node("a", "template-transform", template=5)), "/nodes/0/config/template", "wrong_type"),
    (graph(node("a", "if-else")), "/nodes/0/config", "missing_field"),
    (graph(node("a", "if-else", expression="1", cases=[CASE])), "/nodes/0/config/cases", "conflicting_fields"),
    (graph(node("a", "if-else", cases=[])), "/nodes/0/config/cases", "wrong_length"),
    (graph(node("a", "if-else", cases=[CASE, CASE])), "/nodes/0/config/cases/1/id", "duplicate_case_id"),
    (graph(node("a", "if-else", cases_json=[CASE, CASE])), "/nodes/0/config/cases_json/1/id", "duplicate_case_id"),
    (graph(node("a", "if-else", cases=[CASE | {"id": "failed"}])), "/nodes/0/config/cases/0/id", "reserved_case_id"),
    (graph(node("a", "if-else", cases=[{"id": "x"}])), "/nodes/0/config/cases/0/expression", "missing_field"),
    (graph(node("a", "start", inputs={"x": {"type": "date"}})), "/nodes/0/config/inputs/x/type", "unknown_input_type"),
    (
        graph(node("a", "start", inputs={"x/y": {"type": "integer", "default": True}})),
        "/nodes/0/config/inputs/x~1y/default",
        "default_wrong_type",
    ),
    (graph(node("a", "llm")), "/nodes/0/config", "missing_field"),
    (graph(node("a", "llm", prompt="x", messages=[])), "/nodes/0/config/messages", "conflicting_fields"),
    (graph(node("a", "llm", prompt="x", temperature=3)), "/nodes/0/config/temperature", "out_of_range"),
    (graph(node("a", "llm", prompt="x", max_tokens=1.5)), "/nodes/0/config/max_tokens", "wrong_type"),
    (
        graph(node("a", "llm", messages=[{"role": "me", "content": "x"}])),
        "/nodes/0/config/messages/0/role",
        "unknown_role",
    ),
    (graph(node("a", "code", language="ruby", code="1")), "/nodes/0/config/language", "unsupported_language"),
    (graph(node("a", "code", code="")), "/nodes/0/config/code", "wrong_length"),
    (graph(node("a", "code")), "/nodes/0/config/code", "missing_field"),
    (graph(node("a", "retriever", query="x")), "/nodes/0/config", "missing_field"),
    (
        graph(node("a", "retriever", documents=[{"id": "1"}], query="x")),
        "/nodes/0/config/documents/0/text",
        "missing_field",
    ),
    (graph(node("a", "retriever", documents=[], query="x", top_k=0)), "/nodes/0/config/top_k", "out_of_range"),
    (graph(node("a", "tool", tool_binding_id="x" * 129)), "/nodes/0/config/tool_binding_id", "wrong_length"),
    (graph(node("a", "agent")), "/nodes/0/config", "missing_field"),
    (graph(node("a", "human", on_timeout="escalate")), "/nodes/0/config", "missing_field"),
    (graph(node("a", "human", on_timeout="shrug")), "/nodes/0/config/on_timeout", "unknown_on_timeout"),
    (graph(node("a", "human", on_timeout="default", timeout_seconds=9)), "/nodes/0/config", "default_output_missing"),
    (
        graph(node("a", "human", on_timeout="default", default_output={})),
        "/nodes/0/config/on_timeout",
        "timeout_missing",
    ),
    (
        graph(node("a", "approval", on_timeout="escalate", escalate_to="boss")),
        "/nodes/0/config/on_timeout",
        "timeout_missing",
    ),
    (graph(node("a", "human", task_type="vote")), "/nodes/0/config/task_type", "unknown_task_type"),
    # Common config
    (graph(A | {"config": {"text": "a", "allow_loop": 1}}), "/nodes/0/config/allow_loop", "wrong_type"),
    (graph(node("a", "join", timeout_seconds=0)), "/nodes/0/config/timeout_seconds", "timeout_out_of_range"),
    (graph(node("a", "join", timeout_seconds=10**9)), "/nodes/0/config/timeout_seconds", "timeout_out_of_range"),
    (graph(node("a", "join", timeout_seconds=True)), "/nodes/0/config/timeout_seconds", "wrong_type"),
    (graph(node("a", "join", timeout_seconds="5")), "/nodes/0/config/timeout_seconds", "wrong_type"),
    (graph(node("a", "join", delay_seconds=-1)), "/nodes/0/config/delay_seconds", "delay_out_of_range"),
    (graph(node("a", "join", max_iterations=0)), "/nodes/0/config/max_iterations", "max_iterations_out_of_range"),
    (
        graph(node("a", "join", retry_policy={"max_attempts": 0})),
        "/nodes/0/config/retry_policy/max_attempts",
        "retry_policy_out_of_range",
    ),
    (
        graph(node("a", "join", retry_policy={"retry_delay_seconds": -1})),
        "/nodes/0/config/retry_policy/retry_delay_seconds",
        "retry_policy_out_of_range",
    ),
    (
        graph(node("a", "join", retry_policy_json={"backoff": "linear"})),
        "/nodes/0/config/retry_policy_json/backoff",
        "unknown_backoff",
    ),
    (graph(node("a", "join", retry_policy={"tries": 1})), "/nodes/0/config/retry_policy/tries", "unknown_field"),
    (graph(node("a", "join", on_error="ignore")), "/nodes/0/config/on_error", "unknown_on_error"),
    (graph(node("a", "join", on_error="default")), "/nodes/0/config", "default_output_missing"),
    (
        graph(node("a", "join", on_error="default", default_output=[])),
        "/nodes/0/config/default_output",
        "default_output_invalid",
    ),
    # Templates and expressions
    (graph(node("a", "answer", text="{{x}}")), "/nodes/0/config/text", "template_invalid"),
    (graph(node("a", "answer", text="{{nodes.b.text}}")), "/nodes/0/config/text", "unknown_node_reference"),
    (graph(A, node("b", "answer", text="{{nodes.a.result}}"), edge("a", "b")), "/nodes/1/config/text", "unknown_path"),
    (graph(node("a", "answer", text="{{run.name}}")), "/nodes/0/config/text", "unknown_path"),
    (graph(node("a", "answer", text="{{current.id}}")), "/nodes/0/config/text", "unknown_path"),
    (
        graph(A, node("b", "answer", text="{{nodes.a.output.json}}"), edge("a", "b")),
        "/nodes/1/config/text",
        "unknown_output",
    ),
    (graph(node("a", "answer", text="{{nodes.a.text}}")), "/nodes/0/config/text", "impossible_reference"),
    (
        graph(node("a", "answer", text="{{nodes.b.text}}"), B, edge("a", "b")),
        "/nodes/0/config/text",
        "impossible_reference",
    ),
    (
        graph(node("a", "start", inputs={"plan": {}}), node("b", "answer", text="{{inputs.plam}}"), edge("a", "b")),
        "/nodes/1/config/text",
        "undeclared_input",
    ),
    (
        graph(node("a", "start", inputs={"x": {"default": 1}}), node("b", "start", inputs={"x": {"default": True}})),
        "/nodes/1/config/inputs/x/default",
        "conflicting_default",
    ),
    (
        graph(node("a", "assigner", assignments={"x": [{"y": "{{"}]})),
        "/nodes/0/config/assignments/x/0/y",
        "template_invalid",
    ),
    (graph(node("a", "template-transform", template='["{{"]')), "/nodes/0/config/template", "template_invalid"),
    (graph(node("a", "if-else", expression="1 +")), "/nodes/0/config/expression", "expression_invalid"),
    (
        graph(node("a", "if-else", cases=[CASE, {"id": "y", "expression": "("}])),
        "/nodes/0/config/cases/1/expression",
        "expression_invalid",
    ),
    (
        graph(node("a", "if-else", expression="nodes.b-c.text == 1")),
        "/nodes/0/config/expression",
        "unknown_node_reference",
    ),
    # Edges
    (graph(A, edge("x", "a")), "/edges/0/source", "unknown_source"),
    (graph(A, edge("a", "x")), "/edges/0/target", "unknown_target"),
    (graph(A, B, edge("a", "b"), edge("a", "b")), "/edges/1", "duplicate_edge"),
    (graph(A, B, edge("a", "b", "true")), "/edges/0/condition", "invalid_condition"),
    (graph(A, B, edge("a", "b", "")), "/edges/0/condition", "invalid_condition"),
    (graph(node("i", "if-else", expression="1"), B, edge("i", "b", "yes")), "/edges/0/condition", "invalid_condition"),
    (graph(node("h", "approval"), B, edge("h", "b", "approve")), "/edges/0/condition", "invalid_condition"),
    (graph(A, B, edge("a", "b", "approved")), "/edges/0/condition", "invalid_condition"),
    (graph(node("i", "if-else", cases=[CASE]), B, edge("i", "b", "true")), "/edges/0/condition", "invalid_condition"),
    # Joins
    (graph(node("j", "join", join_policy="most")), "/nodes/0/config/join_policy", "unknown_join_policy"),
    (graph(A, node("j", "join", join_policy="n_completed"), edge("a", "j")), "/nodes/1/config", "join_n_missing"),
    (
        graph(A, node("j", "join", join_policy="n_completed", n=2), edge("a", "j")),
        "/nodes/1/config/n",
        "join_n_out_of_range",
    ),
    (
        graph(A, node("j", "join", join_policy="n_completed", n=0), edge("a", "j")),
        "/nodes/1/config/n",
        "join_n_out_of_range",
    ),
    (
        graph(
            A, node("j", "join", join_policy="n_completed", n=2, allow_loop=True), B,
            edge("a", "j"), edge("j", "b"), edge("b", "j"),
        ),
        "/nodes/1/config/n",
        "join_n_out_of_range",
    ),
    (graph(node("j", "join", n="2")), "/nodes/0/config/n", "wrong_type"),
    # Compensation
    (graph(node("a", "tool", compensation_node_id="")), "/nodes/0/config/compensation_node_id", "compensation_unknown"),
    (graph(node("a", "tool", compensation_node_id="a")), "/nodes/0/config/compensation_node_id", "compensation_self"),
    (graph(node("a", "tool", compensation_node_id=5)), "/nodes/0/config/compensation_node_id", "wrong_type"),
    (
        graph(
            A, node("x", "tool", compensation_node_id="y"), node("y", "tool", compensation_node_id="x")
        ),
        "/nodes/1",
        "unreachable_node",
    ),
    (
        graph(node("a", "join", compensation_node_id="b"), B, C, edge("b", "c")),
        "/nodes/2",
        "unreachable_node",
    ),
    # Graph
    (graph(A, B, C, edge("b", "c"), edge("c", "b")), "/nodes/1", "unreachable_node"),
    (graph(A, B, C, edge("b", "c"), edge("c", "b")), "/nodes/1", "cycle_without_allow_loop"),
    (graph(A, B, edge("a", "b"), edge("b", "a")), "/nodes", "no_start_node"),
    (graph(A, node("b", "join", allow_loop=True), edge("b", "b")), "/nodes/1", "unreachable_node"),
    (graph(A, B, C, edge("a", "b"), edge("b", "c"), edge("c", "b")), "/edges/2", "cycle_without_allow_loop"),
    (graph(A, B, edge("a", "b"), edge("b", "b")), "/edges/1", "cycle_without_allow_loop"),
    (graph(A, *LOOP[1:3], edge("h", "t"), edge("t", "h")), "/nodes/1", "loop_without_entry"),
    (graph(*LOOP, edge("t", "h"), edge("s", "t")), "/edges/1", "irreducible_cycle"),
    (
        graph(node("s", "join"), node("h", "join"), node("t", "join", allow_loop=True), *LOOP[3:], edge("t", "h")),
        "/nodes/2/config/allow_loop",
        "allow_loop_not_head",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("dsl", "pointer", "code"), WRONG, ids=[f"{at}-{code}" for at, (_, _, code) in enumerate(WRONG)]
)
def test_what_is_wrong_has_a_code_and_a_place(dsl: Any, pointer: str, code: str) -> None:
    assert (pointer, code) in errors(dsl)


ONE_FAULT_ONLY = {
    "unreachable_node", "cycle_without_allow_loop", "no_start_node", "loop_without_entry", "irreducible_cycle",
    "allow_loop_not_head", "missing_field", "conflicting_fields",
}  # fmt: skip


@pytest.mark.parametrize(
    ("dsl", "pointer", "code"),
    [each for each in WRONG if each[2] not in ONE_FAULT_ONLY],
    ids=lambda each: str(each)[:40],
)
def test_one_mistake_is_one_error(dsl: Any, pointer: str, code: str) -> None:
    assert errors(dsl) == {(pointer, code)}


WARNED: list[tuple[Any, str, str]] = [
    (graph(node("a", "join", allow_loop=True)), "/nodes/0/config/allow_loop", "allow_loop_unused"),
    (graph(node("a", "join", max_iterations=3)), "/nodes/0/config/max_iterations", "max_iterations_unused"),
    (graph(node("a", "join", default_output={})), "/nodes/0/config/default_output", "default_output_unused"),
    (graph(node("a", "join", n=1)), "/nodes/0/config/n", "join_n_unused"),
    (graph(node("a", "human", on_timeout="fail")), "/nodes/0/config/on_timeout", "on_timeout_unused"),
    (graph(node("a", "tool", path="/x")), "/nodes/0/config", "tool_unresolved"),
    (graph(node("a", "answer", text="{{nodes.b.text}}"), B), "/nodes/0/config/text", "unordered_reference"),
    (graph(node("a", "answer", text="{{state.x}}")), "/nodes/0/config/text", "unset_state"),
    (
        graph(node("a", "join", compensation_node_id="b"), B, edge("a", "b")),
        "/nodes/0/config/compensation_node_id",
        "compensation_has_edges",
    ),
    (
        graph(node("a", "join", compensation_node_id="b"), node("b", "join", compensation_node_id="c"), C),
        "/nodes/0/config/compensation_node_id",
        "compensation_nested",
    ),
]


@pytest.mark.parametrize(("dsl", "pointer", "code"), WARNED[:-1], ids=[each[2] for each in WARNED[:-1]])
def test_a_warning_does_not_forbid(dsl: Any, pointer: str, code: str) -> None:
    program, problems = parse(dsl)
    assert program is not None
    assert [(each.pointer, each.code, each.severity) for each in problems] == [(pointer, code, "warning")]


def test_the_compensation_of_a_compensation_never_runs() -> None:
    dsl, pointer, code = WARNED[-1]
    _, problems = parse(dsl)
    assert {(each.pointer, each.code) for each in problems} == {(pointer, code), ("/nodes/2", "unreachable_node")}


def test_codes_are_many_and_all_warnings_are_shown_here() -> None:
    assert len({code for _, _, code in WRONG}) >= 40
    assert {code for _, _, code in WARNED} == WARNINGS
    assert not WARNINGS & {code for _, _, code in WRONG}


def test_all_problems_come_in_one_answer() -> None:
    dsl = graph(
        node("a", "answer", text="{{x}}", colour="red", timeout_seconds=-1, retry_policy={"max_attempts": "many"}),
        node("b c", "if-else", expression="1 +"),
        node("a", "magic"),
        node("d", "join", join_policy="n_completed", n=7, compensation_node_id="nobody"),
        node("e", "llm", prompt="\0", temperature=9),
        edge("a", "nowhere"),
        edge("nobody", "d", 5),
        edge("a", "d", "maybe"),
        edge("d", "e"),
        edge("e", "d"),
    )
    assert errors(dsl) == {
        ("/nodes/0/config/text", "template_invalid"),
        ("/nodes/0/config/colour", "unknown_field"),
        ("/nodes/0/config/timeout_seconds", "timeout_out_of_range"),
        ("/nodes/0/config/retry_policy/max_attempts", "wrong_type"),
        ("/nodes/1/id", "invalid_id"),
        ("/nodes/1/config/expression", "expression_invalid"),
        ("/nodes/2/id", "duplicate_id"),
        ("/nodes/2/type", "unknown_node_type"),
        ("/nodes/3/config/n", "join_n_out_of_range"),
        ("/nodes/3/config/compensation_node_id", "compensation_unknown"),
        ("/nodes/4/config/prompt", "nul_character"),
        ("/nodes/4/config/temperature", "out_of_range"),
        ("/edges/0/target", "unknown_target"),
        ("/edges/1/source", "unknown_source"),
        ("/edges/1/condition", "wrong_type"),
        ("/edges/2/condition", "invalid_condition"),
        ("/edges/4", "cycle_without_allow_loop"),
    }


@pytest.mark.parametrize("dsl", [dsl for dsl, _, _ in WRONG + WARNED], ids=str)
def test_every_pointer_leads_to_a_place(dsl: Any) -> None:
    """A pointer names something in the DSL, or a member that is missing from something in it."""
    for problem in parse(dsl)[1]:
        steps = [step.replace("~1", "/").replace("~0", "~") for step in problem.pointer.split("/")[1:]]
        place = dsl
        for at, step in enumerate(steps):
            if isinstance(place, list):
                place = place[int(step)]
            elif step in place:
                place = place[step]
            else:
                missing = problem.code == "missing_field" and at == len(steps) - 1
                assert missing or problem.code == "lone_surrogate", problem
