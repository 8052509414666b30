"""Graph compilation against definitions taken literally: dominators, loops, reachability, coverage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from schemas.workflow.control_flow import immediate_dominators
from schemas.workflow.dsl import parse
from schemas.workflow.graph import Program
from schemas.workflow.node_types import NodeConfig

Pair = tuple[int, int]


class Noop(NodeConfig):
    kind = "effect"
    step_kind = "noop"


def dsl_of(
    count: int,
    pairs: list[Pair],
    heads: frozenset[int] = frozenset(),
    compensations: Mapping[int, int] | None = None,
) -> dict[str, Any]:
    def config(node: int) -> dict[str, Any]:
        loop = {"allow_loop": True} if node in heads else {}
        target = (compensations or {}).get(node)
        return loop if target is None else loop | {"compensation_node_id": f"n{target}"}

    return {
        "nodes": [{"id": f"n{node}", "type": "noop", "config": config(node)} for node in range(count)],
        "edges": [{"source": f"n{source}", "target": f"n{target}"} for source, target in pairs],
    }


def compiled(count: int, pairs: list[Pair], heads: frozenset[int] = frozenset()) -> tuple[Program | None, set[str]]:
    program, problems = parse(dsl_of(count, pairs, heads), extra_types={"noop": Noop})
    return program, {problem.code for problem in problems if problem.severity == "error"}


def program_of(edges: str, heads: str = "") -> Program:
    """Edges as "sa ab ba": one letter a node, in alphabetical order."""
    pairs = edges.split()
    names = sorted(set("".join(pairs)))
    numbered = [(names.index(pair[0]), names.index(pair[1])) for pair in pairs]
    program, errors = compiled(len(names), numbered, frozenset(map(names.index, heads)))
    assert program is not None, errors
    return program


# The definitions, literally


def reached(starts: list[int], pairs: list[Pair], without: int | None = None) -> set[int]:
    seen: set[int] = set()
    work = [start for start in starts if start != without]
    while work:
        node = work.pop()
        if node not in seen:
            seen.add(node)
            work += [target for source, target in pairs if source == node and target != without]
    return seen


class Literal:
    """A graph by definition: a back edge's target dominates its source, a body reaches the back edge's source."""

    def __init__(self, count: int, pairs: list[Pair]) -> None:
        self.pairs = pairs
        self.nodes = range(count)
        self.starts = [node for node in self.nodes if all(target != node for _, target in pairs)]
        self.reachable = reached(self.starts, pairs)
        self.back = [at for at, (source, target) in enumerate(pairs) if self.dominates(target, source)]
        self.heads = {pairs[at][1] for at in self.back}
        self.bodies = {head: self.body(head) for head in self.heads}

    def dominates(self, node: int, other: int) -> bool:
        return other in self.reachable and other not in reached(self.starts, self.pairs, without=node)

    def body(self, head: int) -> set[int]:
        sources = [source for at, (source, target) in enumerate(self.pairs) if at in self.back and target == head]
        backwards = [(target, source) for source, target in self.pairs if source in self.reachable]
        return reached(sources, backwards, without=head) | {head}

    def is_reducible(self) -> bool:
        forward = [pair for at, pair in enumerate(self.pairs) if at not in self.back]
        return all(
            node not in reached([target], forward)
            for node in self.reachable
            for source, target in forward
            if source == node
        )

    def exits(self, pair: Pair) -> list[int]:
        left = [head for head, body in self.bodies.items() if pair[0] in body and pair[1] not in body]
        return sorted(left, key=lambda head: len(self.bodies[head]))

    def onward(self, node: int) -> set[int]:
        return {place for at, pair in enumerate(self.pairs) if pair[0] == node for place in self.beyond(at)}

    def beyond(self, at: int) -> Iterator[int]:
        target = self.pairs[at][1]
        if at not in self.back:
            yield target
            return
        for other, pair in enumerate(self.pairs):
            if target in self.exits(pair):
                yield from self.beyond(other)

    def covered(self, passed: frozenset[int]) -> set[int]:
        return {node for node in self.nodes if node not in passed and not self.escapes(node, passed)}

    def escapes(self, node: int, passed: frozenset[int]) -> bool:
        seen: set[int] = set()
        work = [node]
        while work:
            onward = self.onward(work.pop())
            if not onward:
                return True
            work += [place for place in onward if place not in passed and place not in seen]
            seen |= onward
        return False


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[Pair]]:
    count = draw(st.integers(1, 8))
    node = st.integers(0, count - 1)
    pairs = draw(st.lists(st.tuples(node, node), max_size=14, unique=True))
    return count, pairs


@st.composite
def flows(draw: st.DrawFn) -> tuple[int, list[Pair]]:
    """Graphs that are mostly valid: forward edges, and back edges to nodes that dominate."""
    count = draw(st.integers(2, 9))
    pairs: list[Pair] = []
    for node in range(1, count):
        sources = draw(st.lists(st.integers(0, node - 1), min_size=1, max_size=2, unique=True))
        pairs += [(source, node) for source in sources]
    literal = Literal(count, pairs)
    candidates = [
        (source, target)
        for source in range(1, count)
        for target in range(1, source + 1)
        if literal.dominates(target, source)
    ]
    if candidates:
        pairs += draw(st.lists(st.sampled_from(candidates), max_size=4, unique=True))
    return count, draw(st.permutations(pairs))


@settings(max_examples=300)
@given(graphs())
def test_immediate_dominators(graph: tuple[int, list[Pair]]) -> None:
    count, pairs = graph
    successors: list[list[int]] = [[] for _ in range(count)]
    for source, target in pairs:
        successors[source].append(target)
    found = immediate_dominators(successors, 0)
    reachable = reached([0], pairs)
    strict = {
        node: {other for other in reachable - {node} if node not in reached([0], pairs, without=other)}
        for node in reachable
    }
    for node in range(count):
        if node not in reachable:
            assert found[node] == -1
        elif node == 0:
            assert found[node] == 0
        else:
            assert found[node] in strict[node]
            assert strict[node] == strict[found[node]] | {found[node]}


@settings(max_examples=400)
@given(graphs(), st.data())
def test_a_graph_is_accepted_if_and_only_if_the_rules_hold(graph: tuple[int, list[Pair]], data: st.DataObject) -> None:
    count, pairs = graph
    literal = Literal(count, pairs)
    others = data.draw(st.frozensets(st.sampled_from(range(count)), max_size=1))
    heads = frozenset(literal.heads) ^ others
    program, errors = compiled(count, pairs, heads)
    in_cycle = {node for source, node in pairs if source in reached([node], pairs)}
    expected = (
        bool(literal.starts)
        and literal.reachable == set(range(count))
        and literal.is_reducible()
        and literal.heads <= heads
        and not (heads - literal.heads) & in_cycle
    )
    assert (program is not None) == expected, errors
    assert ("unreachable_node" in errors) == (literal.reachable != set(range(count)))
    assert ("irreducible_cycle" in errors) == (not literal.is_reducible())
    assert ("no_start_node" in errors) == (not literal.starts)


@settings(max_examples=400)
@given(flows())
def test_loops_and_edges(graph: tuple[int, list[Pair]]) -> None:
    count, pairs = graph
    literal = Literal(count, pairs)
    assume(literal.is_reducible())
    program, errors = compiled(count, pairs, frozenset(literal.heads))
    assert program is not None, errors
    assert list(program.starts) == literal.starts
    assert {loop.head: set(loop.body) for loop in program.loops} == literal.bodies
    for loop in program.loops:
        around = [head for head, body in literal.bodies.items() if loop.head in body and head != loop.head]
        assert loop.depth == len(around) + 1
        parent = None if loop.parent is None else program.loops[loop.parent].head
        assert parent == min(around, key=lambda head: len(literal.bodies[head]), default=None)
        assert set(loop.back_edges) == {at for at in literal.back if pairs[at][1] == loop.head}
        assert set(loop.exit_edges) == {at for at, pair in enumerate(pairs) if loop.head in literal.exits(pair)}
        assert loop.parent is None or loop.parent < loop.index
    for edge in program.edges:
        assert (edge.source, edge.target) == pairs[edge.index]
        assert (edge.back_of is not None) == (edge.index in literal.back)
        assert edge.back_of is None or program.loops[edge.back_of].head == edge.target
        assert [program.loops[index].head for index in edge.exits] == literal.exits(pairs[edge.index])
    for node in program.nodes:
        heads = [program.loops[index].head for index in node.loops]
        inside = [head for head, body in literal.bodies.items() if node.index in body]
        assert heads == sorted(inside, key=lambda head: -len(literal.bodies[head]))
        assert set(node.outgoing) == {at for at, pair in enumerate(pairs) if pair[0] == node.index}
        forward = {at for at, pair in enumerate(pairs) if pair[1] == node.index and at not in literal.back}
        assert set(node.incoming) == forward


@settings(max_examples=400)
@given(flows(), st.data())
def test_coverage(graph: tuple[int, list[Pair]], data: st.DataObject) -> None:
    count, pairs = graph
    literal = Literal(count, pairs)
    assume(literal.is_reducible())
    program, _ = compiled(count, pairs, frozenset(literal.heads))
    assert program is not None
    for _ in range(3):
        passed = data.draw(st.frozensets(st.sampled_from(range(count)), max_size=3))
        assert program.covered(passed) == literal.covered(passed)
        assert program.covered(passed) is program.covered(passed)


# Examples


def test_nested_loops() -> None:
    program = program_of("sa ab bc cb ca cd", heads="ab")
    a, b, c, d, s = range(5)
    outer, inner = program.loops
    assert (outer.head, set(outer.body), outer.parent, outer.depth) == (a, {a, b, c}, None, 1)
    assert (inner.head, set(inner.body), inner.parent, inner.depth) == (b, {b, c}, 0, 2)
    assert program.nodes[c].loops == (0, 1)
    repeat_outer, leave = program.edges[4], program.edges[5]
    assert (repeat_outer.back_of, repeat_outer.exits) == (0, (1,))
    assert (leave.back_of, leave.exits, leave.target) == (None, (1, 0), d)
    assert inner.exit_edges == (4, 5)
    assert program.starts == (s,)


def test_two_back_edges_to_one_head_are_one_loop() -> None:
    program = program_of("sa ab ac ba ca", heads="a")
    (loop,) = program.loops
    assert loop.back_edges == (3, 4)
    assert loop.body == {0, 1, 2}


def test_a_node_may_be_its_own_loop() -> None:
    program = program_of("sa aa ab", heads="a")
    assert program.loops[0].body == {0}
    assert program.nodes[0].incoming == (0,)
    assert program.nodes[0].outgoing == (1, 2)


def test_coverage_of_an_early_join() -> None:
    # Branches a-b and c-d meet in j; x leaves b for a sink of its own.
    program = program_of("sa sc ab cd bj dj jk bx")
    names = "abcdjksx"
    covered = program.covered(frozenset({names.index("j")}))
    assert {names[node] for node in covered} == {"c", "d"}


def test_coverage_through_a_loop_on_the_way_to_the_join() -> None:
    program = program_of("sl lm ml mj sj jk", heads="l")
    names = "jklms"
    covered = program.covered(frozenset({names.index("j")}))
    assert {names[node] for node in covered} == {"l", "m", "s"}


def test_a_join_in_a_loop_covers_nothing_that_may_go_round() -> None:
    program = program_of("sh ha hb aj bj bt jt th tk", heads="h")
    names = "abhjkst"
    assert {names[node] for node in program.covered(frozenset({names.index("j")}))} == {"a"}


def test_latest_names_the_looping_nodes_that_are_read() -> None:
    dsl = {
        "nodes": [
            {"id": "start", "type": "start"},
            {
                "id": "a",
                "type": "template-transform",
                "config": {"allow_loop": True, "template": "{{nodes.start.text}}"},
            },
            {"id": "b", "type": "if-else", "config": {"expression": "nodes.a.output.text > 1"}},
        ],
        "edges": [
            {"source": "start", "target": "a"},
            {"source": "a", "target": "b"},
            {"source": "b", "target": "a", "condition": "false"},
        ],
    }
    program, problems = parse(dsl)
    assert program is not None
    assert not problems
    assert program.latest == {"a"}
    assert program.nodes[2].references == {"a"}


def test_a_compensation_only_node_takes_no_part() -> None:
    program, problems = parse(dsl_of(4, [(0, 1), (2, 3), (1, 3)], compensations={1: 2}), extra_types={"noop": Noop})
    assert program is not None
    assert [problem.code for problem in problems] == ["compensation_has_edges"]
    assert program.starts == (0,)
    assert program.nodes[1].compensation == 2
    assert program.nodes[2].is_compensation_only
    assert program.nodes[2].outgoing == ()
    assert program.nodes[3].incoming == (2,)
    assert program.covered(frozenset({3})) == {0, 1}


@pytest.mark.parametrize("shape", ["chain", "ladder", "nest", "comb", "late preds"])
def test_the_largest_graphs_are_analysed(shape: str) -> None:
    """2 000 nodes and 8 000 edges, in shapes that quadratic algorithms do not finish."""
    count, pairs, heads = 2_000, set[Pair](), frozenset[int]()
    chain = {(node, node + 1) for node in range(count - 1)}
    match shape:
        case "chain":
            pairs = chain
        case "ladder":
            pairs = chain | {(node, node + step) for step in (2, 3, 4) for node in range(count - step)}
        case "nest":
            heads = frozenset(range(1, 9))
            pairs = chain | {(count - 2, head) for head in heads}
        case "comb":
            heads = frozenset(range(1, count - 1))
            pairs = chain | {(head, head) for head in heads}
        case "late preds":
            half = {(node, node + 1) for node in range(999)}
            pairs = half | {(999 - step, node) for node in range(1_000, count) for step in (0, 300, 600, 900, 998)}
    program, errors = compiled(count, sorted(pairs), heads)
    assert program is not None, errors
    assert len(program.loops) == len(heads)


def test_loops_may_be_nested_eight_deep() -> None:
    heads = list(range(1, 10))
    pairs = [(node, node + 1) for node in range(11)] + [(10, head) for head in heads]
    program, errors = compiled(12, pairs[:-1], frozenset(heads[:-1]))
    assert program is not None, errors
    assert program.nodes[9].loops == tuple(range(8))
    assert compiled(12, pairs, frozenset(heads)) == (None, {"loops_too_deep"})
