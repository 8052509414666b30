"""What may have run before what: the checker against brute force and against runs by the rules."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.workflow.dsl import parse
from schemas.workflow.order import PAIRS_MAX, Order
from tests.schemas.workflows import edge, node
from tests.simulation.generator import Oracle, grown
from tests.simulation.interpreter import RUN_ID, CancelRequested, Spec, drive
from tests.simulation.loops import NodeRun
from tests.simulation.reads import Readable, reads_of


@st.composite
def workflows(draw: st.DrawFn) -> dict[str, Any]:
    """Any graph, with cycles or without, and with labels that no type would allow."""
    count = draw(st.integers(1, 7))
    index = st.integers(0, count - 1)
    names = [f"n{at}" for at in range(count)]
    policies = draw(st.lists(st.sampled_from(["all_completed", "all_completed", "any_completed"]), min_size=count))
    owners = draw(st.dictionaries(index, index, max_size=1))
    labels = st.sampled_from([None, None, "true", "false", "failed"])
    lines = draw(st.lists(st.tuples(index, index, labels), max_size=12, unique=True))
    nodes = [
        node(
            name,
            "join",
            join_policy=policy,
            **({"compensation_node_id": names[owners[at]]} if owners.get(at, at) != at else {}),
        )
        for at, (name, policy) in enumerate(zip(names, policies, strict=False))
    ]
    edges = [edge(names[source], names[target], label) for source, target, label in lines]
    return {"nodes": nodes, "edges": edges}


@settings(max_examples=500)
@given(workflows())
def test_the_order_of_any_graph_is_that_of_brute_force(dsl: dict[str, Any]) -> None:
    readable = Readable(dsl)
    graph = readable.graph
    at = {name: index for index, name in enumerate(graph.kind)}
    lines = [(at[each["source"]], at[each["target"]], each.get("condition")) for each in dsl["edges"]]
    aside = {at[name] for name in graph.aside}
    order = Order(len(at), lines, aside, {at[name] for name in readable.early})
    owners = {config.get("compensation_node_id") for config in graph.config.values()}
    for reader in set(graph.nodes) - owners:
        for name in graph.nodes:
            relation = order.relation(at[name], at[reader])
            assert (relation == "before") == (reader in readable.below[name]), (name, reader)
            assert (relation != "never") == readable.may(reader, name), (name, reader)
            assert order.together(at[name], at[reader]) == readable._together(name, reader), (name, reader)


class Watching(Spec):
    """Notes what is there whenever a node reads."""

    def __init__(self, *given: Any) -> None:
        self.seen: set[tuple[str, str]] = set()
        super().__init__(*given)

    def scope(self, node: str, compensates: NodeRun | None) -> dict[str, Any]:
        scope = super().scope(node, compensates)
        self.seen |= {(node, other) for other in scope["nodes"]}
        return scope


@pytest.mark.parametrize("first", range(0, 150, 50))
def test_no_run_reads_what_the_checker_calls_impossible(first: int) -> None:
    """Of generated workflows as they were grown, with paths to nodes before, beside and behind."""
    told: Counter[str] = Counter()
    for seed in range(first, first + 50):
        builder = grown(str(seed))
        dsl = {"nodes": builder.nodes, "edges": builder.edges}
        readable = Readable(dsl)
        impossible = {read for read in reads_of(dsl) if not readable.may(*read)}
        problems = parse(dsl)[1]
        places = {f"/nodes/{at}/": each["id"] for at, each in enumerate(dsl["nodes"])}
        named = {
            (name, each.detail.split("'")[1])
            for each in problems
            if each.code == "impossible_reference"
            for place, name in places.items()
            if each.pointer.startswith(place)
        }
        assert named <= impossible, f"seed {seed}"
        assert {reader for reader, _ in impossible} == {reader for reader, _ in named}, f"seed {seed}"
        told.update(each.code for each in problems)
        for chance in range(4):
            cancel = CancelRequested(compensate=True) if chance == 3 else None
            effects = Oracle(seed, builder.behaviours, builder.people, builder.children)
            spec = Watching(dsl, builder.inputs, RUN_ID, effects)
            drive(spec, random.Random(chance), cancel, chance * 2)
            assert not spec.seen & impossible, f"seed {seed} order {chance}: {spec.seen & impossible}"
    assert told["impossible_reference"] > 10
    assert told["unordered_reference"] > 5


def test_so_many_pairs_are_looked_at_closely_and_the_rest_passes() -> None:
    count = PAIRS_MAX + 10
    arms = [(0, at, "true" if at % 2 else "false") for at in range(1, count)]
    order = Order(count, arms, (), ())
    relations = Counter(order.relation(at, 1) for at in range(2, count))
    assert relations["never"] == PAIRS_MAX // 2
    assert relations["before"] == 0
