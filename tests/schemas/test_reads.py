"""Paths in templates: those that nothing can ever set are problems, with the name that was probably meant."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.workflow.dsl import parse
from tests.schemas.workflows import A, B, C, edge, graph, node

START = node("s", "start", inputs={"plan": {"default": "free"}, "客户": {"type": "string"}})
ROUTES = node("i", "if-else", expression="inputs.go")


def found(*parts: dict[str, Any]) -> list[tuple[str, str]]:
    """The code and the place of each problem; warnings with a question mark."""
    return [
        (each.code + ("?" if each.severity == "warning" else ""), each.pointer.removesuffix("/config/text"))
        for each in parse(graph(*parts))[1]
    ]


def said(*parts: dict[str, Any]) -> str:
    (problem,) = parse(graph(*parts))[1]
    return problem.detail


def reads(path: str, name: str = "r") -> dict[str, Any]:
    return node(name, "answer", text=f"{{{{{path}}}}}")


# Names.


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("nodes.sumary.text", "summary"),
        ("nodes.summary.ouput.result_json", "output"),
        ("nodes.summary.output.result", "result_json"),
        ("inputs.plam", "plan"),
        ("inputs.客", "客户"),
        ("stat.x", "state"),
        ("node.x.text", "nodes"),
        ("Inputs.plan", "inputs"),
        ("current.node", "node_id"),
        ("run.idd", "id"),
        ("state.pln", "plan"),
    ],
)
def test_a_misspelt_path_is_told_the_name_that_was_meant(path: str, meant: str) -> None:
    work = node("summary", "code", code="result = 1")
    assert f"did you mean {meant!r}?" in said(START, work, reads(path), edge("s", "summary"), edge("summary", "r"))


def test_names_that_nothing_resembles_get_no_suggestion() -> None:
    assert "did you mean" not in said(START, reads("inputs.zzz"), edge("s", "r"))


def test_several_misspelt_paths_of_one_text_are_all_named() -> None:
    text = node("r", "answer", text="{{inputs.one}} {{inputs.two}}")
    detail = said(START, text, edge("s", "r"))
    assert "'one'" in detail
    assert "'two'" in detail


def test_nested_names_of_a_config_and_the_ends_of_edges_get_suggestions_too() -> None:
    assert "did you mean 'max_attempts'?" in said(node("a", "answer", text="a", retry_policy={"max_attempt": 2}))
    assert "did you mean 'default'?" in said(node("a", "start", inputs={"x": {"defualt": 2}}))
    case = {"id": "x", "expresion": "true", "expression": "true"}
    assert "did you mean 'expression'?" in said(node("a", "if-else", cases=[case]))
    long = node("summary", "answer", text="a")
    assert "did you mean 'summary'?" in said(long, edge("sumary", "summary"))
    assert "did you mean 'summary'?" in said(long, node("b", "tool", url="u", compensation_node_id="summaries"))


def test_a_wrong_label_is_told_the_allowed_ones() -> None:
    detail = said(node("h", "approval"), B, edge("h", "b", "aproved"))
    assert "approved, rejected, failed" in detail
    assert "did you mean 'approved'?" in detail


@pytest.mark.parametrize("kind", ["approval", "human", "human-input", "human-takeover"])
def test_a_verdict_may_choose_the_edge(kind: str) -> None:
    edges = edge("h", "a", "approved"), edge("h", "b", "rejected"), edge("h", "c", "failed")
    assert found(node("h", kind), A, B, C, *edges) == []


# Outputs.

KNOWN = [
    (node("n", "if-else", expression="true"), ["condition_result", "route"], ["result"]),
    (node("n", "assigner", assignments={"x": 1}), ["state_updates", "state_updates.x"], ["x"]),
    (node("n", "answer", text="x"), ["text"], ["json"]),
    (node("n", "template-transform", template="x"), ["text"], ["json"]),
    (node("n", "template-transform", template={"x": 1}), ["json.x"], ["text", "x"]),
    (node("n", "template-transform", template='{"x": 1}'), ["json.x", "text"], ["x"]),
    (node("n", "end", outputs={"总数": 1}), ["总数"], ["text"]),
    (node("n", "join"), [], ["x"]),
    (node("n", "code", code="result = 1"), ["result_json", "result_json.any"], ["total"]),
    (
        node("n", "approval"),
        ["task_id", "status", "approved", "response_payload_json.x", "completed_by", "late_seconds"],
        ["verdict"],
    ),
    (node("n", "human", on_timeout="default", timeout_seconds=1, default_output={"x": 1}), ["x", "anything"], []),
    (node("n", "code", code="x", on_error="default", default_output={"total": 1}), ["total", "result_json"], ["x"]),
    (node("n", "tool", url="u"), ["anything"], []),
    (node("n", "llm", prompt="u"), ["anything"], []),
    (node("n", "workflow", workflow_id="w"), ["anything"], []),
    (node("n", "start"), ["anything"], []),
]


@pytest.mark.parametrize(("one", "right", "wrong"), KNOWN, ids=lambda each: str(each)[:60])
def test_outputs_are_checked_where_they_are_known(one: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    assert found(one, reads("nodes.n.output"), edge("n", "r")) == []
    for name in right:
        assert found(one, reads(f"nodes.n.output.{name}"), edge("n", "r")) == [], name
    for name in wrong:
        assert found(one, reads(f"nodes.n.output.{name}"), edge("n", "r")) == [("unknown_output", "/nodes/1")], name


# Order.


def test_what_only_runs_later_cannot_be_read() -> None:
    later = [("impossible_reference", "/nodes/0")]
    assert found(reads("nodes.b.text"), B, edge("r", "b")) == later
    assert found(reads("nodes.c.text"), B, C, edge("r", "b"), edge("b", "c")) == later
    assert found(reads("nodes.b.error.code"), B, edge("r", "b", "failed")) == later
    assert found(reads("nodes.r.text")) == later


def test_what_led_here_can_be_read_also_over_a_failed_edge_and_in_the_next_turn_of_a_loop() -> None:
    assert found(A, reads("nodes.a.error.code"), edge("a", "r", "failed")) == []
    head = node("h", "answer", text="{{nodes.b.text}}", allow_loop=True)
    assert found(A, head, B, edge("a", "h"), edge("h", "b"), edge("b", "h", "failed")) == []
    itself = node("r", "answer", text="{{nodes.r.text}}", allow_loop=True)
    assert found(A, itself, edge("a", "r"), edge("r", "r", "failed")) == []


def test_a_branch_cannot_read_the_other_one_unless_both_may_be_taken() -> None:
    arms = ROUTES, A, reads("nodes.a.text")
    impossible, luck = [("impossible_reference", "/nodes/2")], [("unordered_reference?", "/nodes/2")]
    assert found(*arms, edge("i", "a", "true"), edge("i", "r", "false")) == impossible
    assert found(*arms, edge("i", "a"), edge("i", "r", "failed")) == impossible
    assert found(*arms, edge("i", "a"), edge("i", "r", "false")) == luck
    assert found(*arms, edge("i", "a", "true"), edge("i", "r", "true")) == luck
    assert found(*arms, edge("i", "a"), edge("i", "r")) == luck
    assert found(A, reads("nodes.a.text")) == [("unordered_reference?", "/nodes/1")]


def test_behind_a_join_that_does_not_wait_a_node_may_run_before_one_of_its_arms() -> None:
    def diamond(policy: str) -> list[tuple[str, str]]:
        join = node("j", "join", join_policy=policy)
        edges = edge("i", "a"), edge("i", "r"), edge("a", "j"), edge("r", "j"), edge("j", "c")
        return found(ROUTES, A, reads("nodes.c.text"), join, C, *edges)

    assert diamond("all_completed") == [("impossible_reference", "/nodes/2")]
    assert diamond("any_completed") == [("unordered_reference?", "/nodes/2")]


def test_what_a_loop_leads_to_may_run_while_the_loop_goes_on() -> None:
    head = node("h", "answer", text="{{nodes.c.text}}", allow_loop=True)
    check = node("k", "if-else", expression="true")
    loop = A, head, check, C, edge("a", "h"), edge("h", "k"), edge("k", "h", "true")
    assert found(*loop, edge("k", "c", "false")) == [("impossible_reference", "/nodes/1")]
    assert found(*loop, edge("k", "c")) == [("unordered_reference?", "/nodes/1")]


def test_a_compensation_reads_whatever_may_run_in_the_run_that_it_makes_up_for() -> None:
    charge = node("a", "code", code="x", compensation_node_id="r")
    flow = ROUTES, charge, B, C, edge("i", "a", "true"), edge("a", "b"), edge("i", "c", "false")
    for name in "iab":
        assert found(*flow, reads(f"nodes.{name}.text")) == []
    assert found(*flow, reads("current.error.code")) == []
    assert found(*flow, reads("nodes.c.text")) == [("impossible_reference", "/nodes/4")]
    assert found(*flow, reads("nodes.r.text")) == [("impossible_reference", "/nodes/4")]


def test_what_a_compensation_answers_nobody_reads() -> None:
    charge = node("a", "code", code="x", compensation_node_id="undo")
    assert found(charge, node("undo", "answer", text="x"), reads("nodes.undo.text"), edge("a", "r")) == [
        ("impossible_reference", "/nodes/2")
    ]


def test_the_order_is_not_judged_in_a_graph_with_faults() -> None:
    assert found(reads("nodes.b.text"), B, edge("r", "b"), edge("b", "x")) == [("unknown_target", "/edges/1/target")]


# Inputs and state.


def test_inputs_are_checked_when_a_start_node_declares_some() -> None:
    assert found(START, reads("inputs.plan"), edge("s", "r")) == []
    assert found(START, reads("inputs.客户"), edge("s", "r")) == []
    assert found(START, reads("inputs"), edge("s", "r")) == []
    assert found(START, reads("inputs.x"), edge("s", "r")) == [("undeclared_input", "/nodes/1")]
    assert found(node("s", "start"), reads("inputs.x"), edge("s", "r")) == []
    assert found(reads("inputs.x")) == []


def test_state_that_nothing_sets_is_a_warning() -> None:
    sets = node("a", "assigner", assignments={"x": 1})
    assert found(START, sets, reads("state.x"), edge("s", "a"), edge("a", "r")) == []
    assert found(START, reads("state.plan"), edge("s", "r")) == []
    assert found(START, sets, reads("state.y"), edge("s", "a"), edge("a", "r")) == [("unset_state?", "/nodes/2")]
    assert found(node("s", "start"), reads("state.y"), edge("s", "r")) == []


def test_two_starts_may_declare_the_same_input_with_one_default() -> None:
    again = node("t", "start", inputs={"plan": {"default": "free"}, "客户": {"default": "阿里"}})
    assert found(START, again) == []


# Human tasks.


def test_the_kind_of_a_task_follows_the_kind_of_its_node() -> None:
    kinds = {"approval": "approval", "human": "approval", "human-input": "input", "human-takeover": "takeover"}
    for kind, task in kinds.items():
        program, _ = parse(graph(node("h", kind, require_hash=True)))
        assert program is not None
        config: Any = program.nodes[0].config
        assert (config.task_type, config.require_hash) == (task, True)
    program, _ = parse(graph(node("h", "human", task_type="pause")))
    assert program is not None
    paused: Any = program.nodes[0].config
    assert paused.task_type == "pause"


# Size.


def test_the_largest_graphs_full_of_wrong_paths_are_checked() -> None:
    """All arms of a wide fork read each other, and thousands of names resemble each other."""
    width = 1_990
    arms = [
        node(
            f"arm{at}", "answer", text=" ".join(f"{{{{nodes.arm{(at + step) % width}.text}}}}" for step in range(1, 12))
        )
        for at in range(width)
    ]
    forks = [edge("i", f"arm{at}", "true" if at % 2 else "false") for at in range(width)]
    codes = [each.code for each in parse(graph(ROUTES, *arms, *forks))[1]]
    assert codes.count("impossible_reference") > 10
    unknown = [node(f"arm{at}", "answer", text=f"{{{{nodes.Arm{at}x.text}}}}") for at in range(width)]
    details = [each.detail for each in parse(graph(*unknown))[1]]
    assert "did you mean 'arm" in details[0]
    assert "did you mean" not in details[-2]
