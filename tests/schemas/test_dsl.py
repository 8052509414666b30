"""The workflow DSL: what is right, and what a compiled node answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.workflow.dsl import canonical_type, is_node_id, parse
from schemas.workflow.node_types import ALIASES, NODE_TYPES, Human, Llm, NodeConfig
from tests.schemas.workflows import A, B, C, accepted, edge, errors, graph, node

SCOPE: dict[str, Any] = {
    "state": {"score": 7, "user_name": "Alice", "query": "refund"},
    "inputs": {},
    "nodes": {"retrieve-docs": {"output": {"retrieved_documents": [{"title": "Refund Policy"}]}, "text": None}},
    "current": {"node_id": "x"},
    "run": {"id": "r"},
}


EXAMPLES = [
    node("seed-state", "assigner", assignments={"score": 7, "user_name": "Alice"}),
    node("check-score", "if-else", expression="state.score >= 5"),
    node("join-results", "join", join_policy="all_completed"),
    node(
        "poll-status",
        "tool",
        allow_loop=True,
        max_iterations=5,
        timeout_seconds=30,
        retry_policy={"max_attempts": 3, "retry_delay_seconds": 2},
    ),
    node("high-path", "template-transform", template="{{state.user_name}} passed with score {{state.score}}"),
    node(
        "retrieve-docs",
        "knowledge-retrieval",
        query_template="{{state.query}}",
        top_k=2,
        documents=[{"id": "refund", "title": "Refund Policy", "text": "Refund policy allows returns."}],
    ),
    node(
        "retrieve-kb",
        "knowledge-retrieval",
        knowledge_base_id="kb-id",
        query_template="{{state.query}}",
        top_k=3,
        filters_json={"source_type": "text"},
    ),
    node("remote", "retriever", query="refund policy", source_url="http://127.0.0.1:9000/documents", top_k=3),
    node("search-products", "tool", tool_binding_id="binding-1", query={"keyword": "milk"}),
    node(
        "draft-answer",
        "llm",
        model="gpt-4o-mini",
        system_prompt="You are a customer support assistant.",
        prompt="Summarize the user intent in Chinese.",
        temperature=0.2,
        max_tokens=400,
    ),
    node(
        "rewrite-message",
        "llm",
        model="gpt-4o-mini",
        messages=[{"role": "system", "content": "You are concise."}, {"role": "user", "content": "Rewrite."}],
    ),
    node(
        "compute-summary",
        "code",
        language="python",
        timeout_seconds=5,
        input_json={"numbers": [1, 2, 3, 4]},
        code="total = sum(payload['numbers'])\nresult = {'total': total}\nprint(f'total={total}')",
    ),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["id"])
def test_the_documented_examples_are_accepted(example: dict[str, Any]) -> None:
    program = accepted(example)
    assert program.nodes[0].type == canonical_type(example["type"])
    assert program.starts == (0,)


def test_a_compensated_node() -> None:
    program = accepted(node("charge-card", "tool", compensation_node_id="refund-card"), node("refund-card", "tool"))
    assert program.nodes[0].compensation == 1
    assert program.nodes[1].is_compensation_only
    assert program.starts == (0,)


def test_every_type_is_known_and_compiles() -> None:
    needed: dict[str, dict[str, Any]] = {
        "answer": {"text": "x"},
        "assigner": {"assignments": {}},
        "if-else": {"expression": "true"},
        "template-transform": {"template": "x"},
        "llm": {"prompt": "x"},
        "code": {"code": "result = 1"},
        "knowledge-retrieval": {"documents": [], "query": "x"},
        "agent": {"agent_id": "x"},
        "team": {"team_id": "x"},
        "workflow": {"workflow_id": "x"},
    }
    for name, kind in NODE_TYPES.items():
        compiled = accepted({"id": "n", "type": name, "config": needed.get(name, {})}).nodes[0]
        assert compiled.type == name
        assert compiled.kind == kind.kind
        assert (compiled.input_value is not None) == (compiled.kind != "pure")
        assert (kind.step_kind is not None) == (compiled.kind == "effect")
    for alias, name in ALIASES.items():
        assert accepted({"id": "n", "type": alias, "config": needed[name]}).nodes[0].type == name


def test_closures_of_pure_nodes() -> None:
    program = accepted(
        node("end", "end", outputs={"score": "{{state.score}}", "by": "{{state.user_name}}!"}),
        node("answer", "answer", template="{{state.user_name}}"),
        node("assign", "assigner", assignments={"next": "{{state.score}}"}),
        node("if", "if-else", expression="state.score >= 5"),
        node(
            "cases", "if-else", cases=[{"id": "low", "expression": "state.score < 5"}, {"id": "x", "expression": "1"}]
        ),
        node("text", "template-transform", template="{{nodes.retrieve.text}}"),
        node("json", "template-transform", template='{"a": ["{{state.score}}"]}'),
        node("object", "template-transform", template={"a": "{{state.missing}}"}),
        node("retrieve", "answer", text="constant"),
    )
    end, answer, assign, if_else, cases, text, json_text, json_object, _ = program.nodes
    assert end.outputs is not None
    assert end.outputs.evaluate(SCOPE) == {"score": 7, "by": "Alice!"}
    assert answer.text is not None
    assert answer.text.render(SCOPE) == "Alice"
    assert assign.assignments is not None
    assert assign.assignments.evaluate(SCOPE) == {"next": 7}
    assert if_else.expression is not None
    assert if_else.expression.truth(SCOPE) is True
    assert [(name, expression.truth(SCOPE)) for name, expression in cases.cases] == [("low", False), ("x", True)]
    assert text.template is not None
    assert text.references == {"retrieve"}
    assert json_text.template is None
    assert json_text.json_template is not None
    assert json_text.json_template.evaluate(SCOPE) == {"a": [7]}
    assert json_object.json_template is not None
    assert json_object.json_template.evaluate(SCOPE) == {"a": None}


def test_the_input_of_an_effect_is_its_templated_fields() -> None:
    program = accepted(
        node("model", "llm", model="m", system_prompt="For {{state.user_name}}", prompt="{{state.missing}}"),
        node("tool", "tool", tool_binding_id="b", query={"q": "{{state.query}}", "n": "{{state.score}}"}, path="/x"),
        node("chat", "llm", messages=[{"role": "user", "content": "{{state.query}}"}]),
    )
    values = [each.input_value.evaluate(SCOPE) for each in program.nodes if each.input_value]
    assert values == [
        {"system_prompt": "For Alice", "prompt": ""},
        {"query": {"q": "refund", "n": 7}, "path": "/x"},
        {"messages": [{"role": "user", "content": "refund"}]},
    ]
    assert isinstance(program.nodes[0].config, Llm)
    assert program.nodes[0].config.model == "m"


def test_the_config_is_typed_and_has_defaults() -> None:
    retry = {"max_attempts": 3, "retry_delay_seconds": 2, "backoff": "exponential", "jitter": True}
    config = accepted(node("a", "human", retry_policy=retry, timeout_seconds=30)).nodes[0].config
    assert isinstance(config, Human)
    assert config.retry_policy is not None
    assert config.retry_policy.model_dump() == retry
    assert (config.timeout_seconds, config.delay_seconds, config.on_error) == (30.0, 0.0, "fail")
    assert (config.allow_loop, config.max_iterations, config.on_timeout) == (False, 10, "fail")


def test_json_names_and_nulls() -> None:
    program = accepted(
        node("a", "code", code="result = 1", input={"x": 1}, timeout_seconds=None),
        node("b", "assigner", assignments_json={"y": 2}),
        node("c", "workflow", workflow_id="w", input_json={"z": 3}),
        {"id": "d", "type": "join", "config": None},
        {"id": "e", "type": "join"},
    )
    assert program.nodes[0].input_value is not None
    assert program.nodes[0].input_value.evaluate({}) == {"input_json": {"x": 1}}
    assert program.nodes[1].assignments is not None
    assert program.nodes[1].assignments.evaluate({}) == {"y": 2}
    assert program.nodes[2].input_value is not None
    assert program.nodes[2].input_value.evaluate({}) == {"inputs": {"z": 3}}


def test_conditions_may_be_booleans() -> None:
    program = accepted(
        node("if", "condition", expression="true"), A, B, C,
        edge("if", "a", True), edge("if", "b", False), {"source": "if", "target": "c", "condition": None},
    )  # fmt: skip
    assert [each.label for each in program.edges] == ["true", "false", None]


def test_every_route_of_an_if_else_may_be_a_label() -> None:
    cases = [{"id": "low", "expression": "1"}, {"id": "甲", "expression": "1"}]
    program = accepted(
        node("if", "if-else", cases=cases), A, B, C, node("d", "join"),
        edge("if", "a", "low"), edge("if", "b", "甲"), edge("if", "c", "false"), edge("if", "d", "failed"),
        edge("a", "d", "failed"), edge("a", "d"),
    )  # fmt: skip
    assert program.nodes[4].incoming == (3, 4, 5)


def test_node_ids_may_be_of_any_script() -> None:
    for good in ("a", "1", "-", "_", "客户-1", "हिन्दी", "Ünïcode_9", "x" * 128):
        assert is_node_id(good)
        assert parse({"nodes": [{"id": good, "type": "join"}], "edges": []})[0]
    for bad in ("", "a.b", "a/b", "a b", "a\n", "½", "x" * 129, "😀", "a:b"):
        assert not is_node_id(bad)
        assert errors({"nodes": [{"id": bad, "type": "join"}], "edges": []}) == {("/nodes/0/id", "invalid_id")}


def test_a_node_of_any_script_can_be_read() -> None:
    program = accepted(node("客户-1", "answer", text="x"), node("b", "answer", text="{{nodes.客户-1.text}}"))
    assert program.nodes[1].references == {"客户-1"}


def test_extra_types_are_known_only_where_they_are_given() -> None:
    class Noop(NodeConfig):
        kind = "effect"
        step_kind = "noop"

        size: int = 0

    dsl = graph(node("a", "noop", size=3))
    assert errors(dsl) == {("/nodes/0/type", "unknown_node_type")}
    program, problems = parse(dsl, extra_types={"noop": Noop})
    assert program is not None
    assert not problems
    assert program.nodes[0].config == Noop(size=3)
    assert errors(graph(node("a", "noop", size="x")), extra_types={"noop": Noop}) == {
        ("/nodes/0/config/size", "wrong_type")
    }
    assert errors(dsl) == {("/nodes/0/type", "unknown_node_type")}


def test_code_is_checked_by_the_caller() -> None:
    dsl = graph(node("a", "code", code="class A(B): pass"))
    assert parse(dsl)[0] is not None
    refused = {("/nodes/0/config/code", "code_invalid")}
    assert errors(dsl, check_code=lambda source: f"no {source}" if "class" in source else None) == refused
    assert errors(dsl, check_code=lambda source: None) == set()


def test_foreign_references_are_listed() -> None:
    program = accepted(node("a", "tool", tool_binding_id="b-1"), node("b", "agent", agent_id="x", agent_version_id="y"))
    assert [(each.pointer, each.field, each.id) for each in program.foreign] == [
        ("/nodes/0/config/tool_binding_id", "tool_binding_id", "b-1"),
        ("/nodes/1/config/agent_id", "agent_id", "x"),
        ("/nodes/1/config/agent_version_id", "agent_version_id", "y"),
    ]


def test_the_shipped_example_has_no_problems() -> None:
    triage = Path(__file__).parents[2] / "infra" / "examples" / "triage.json"
    _, problems = parse(json.loads(triage.read_text("utf-8")))
    assert problems == []
