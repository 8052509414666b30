"""A compiled workflow: nodes with their closures, edges, loops; plain data, built once per version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas.workflow.control_flow import NaturalLoop
from schemas.workflow.expressions import Expression
from schemas.workflow.node_types import Join, NodeConfig, NodeKind
from schemas.workflow.templates import Template, Value

COVERED_MEMO_MAX: Final = 32  # An entry may hold 2 000 nodes.


@dataclass(frozen=True, slots=True)
class Edge:
    """`index` is its place in the DSL. An edge out of a compensation-only node is in no node's lists."""

    index: int
    source: int
    target: int
    label: str | None
    back_of: int | None
    """The loop that it repeats."""
    exits: tuple[int, ...]
    """The loops that it leaves, innermost first; a back edge may leave loops inside its own."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A natural loop; several back edges to one head are one loop. An outer loop's index is the smaller."""

    index: int
    head: int
    parent: int | None
    depth: int  # 1 for a loop in no other.
    body: frozenset[int]  # With the head and with the bodies of inner loops.
    back_edges: tuple[int, ...]
    exit_edges: tuple[int, ...]
    max_iterations: int


@dataclass(frozen=True, slots=True)
class Node:
    """A node with what its type needs compiled; what it does not need is None."""

    index: int
    id: str
    type: str  # Canonical: aliases are resolved.
    kind: NodeKind
    config: NodeConfig
    loops: tuple[int, ...]  # Outermost first.
    incoming: tuple[int, ...]  # Forward edges only.
    outgoing: tuple[int, ...]
    references: frozenset[str]  # Ids of the nodes that its templates and expressions read.
    compensation: int | None
    is_compensation_only: bool
    expression: Expression | None = None  # if-else
    cases: tuple[tuple[str, Expression], ...] = ()  # if-else
    text: Template | None = None  # answer
    template: Template | None = None  # template-transform, unless its template is JSON
    json_template: Value | None = None  # template-transform whose template is a JSON object or array
    assignments: Value | None = None  # assigner
    outputs: Value | None = None  # end, if it has outputs
    input_value: Value | None = None
    """Effects, waits, children: an object of the config's templated fields, filled in."""


@dataclass(frozen=True, slots=True)
class ForeignReference:
    """A config field that names another aggregate; whoever publishes resolves it."""

    pointer: str
    field: str
    id: str


@dataclass(frozen=True, slots=True)
class Program:
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    loops: tuple[Loop, ...]
    by_id: Mapping[str, int]
    starts: tuple[int, ...]
    latest: frozenset[str]
    """Ids of nodes in loops that some node reads: of several completed runs the last one counts."""
    foreign: tuple[ForeignReference, ...]
    early_joins: tuple[int, ...]
    """Joins that may pass before all their edges are resolved."""
    _onward: Onward = field(repr=False, compare=False)
    _memo: dict[frozenset[int], frozenset[int]] = field(default_factory=dict, repr=False, compare=False)

    def covered(self, passed: frozenset[int]) -> frozenset[int]:
        """The nodes from which every forward path to a sink goes through one of `passed`, without these.

        A path that comes to a back edge goes on at the exits of that loop; where nothing follows is a sink.
        """
        found = self._memo.get(passed)
        if found is None:
            if len(self._memo) >= COVERED_MEMO_MAX:
                self._memo.clear()
            found = self._memo[passed] = self._onward.covered(passed)
        return found


@dataclass(frozen=True, slots=True)
class Onward:
    """Where paths go, reversed. Places beyond the nodes stand for the exits of loops."""

    before: tuple[tuple[int, ...], ...]
    sinks: tuple[int, ...]
    nodes: frozenset[int]

    def covered(self, passed: frozenset[int]) -> frozenset[int]:
        open_places = set(self.sinks) - passed
        work = list(open_places)
        while work:
            for place in self.before[work.pop()]:
                if place not in open_places and place not in passed:
                    open_places.add(place)
                    work.append(place)
        return self.nodes - open_places - passed


def onward(nodes: Sequence[Node], edges: Sequence[Edge], loops: Sequence[Loop]) -> Onward:
    """A back edge leads to its loop's place, this one to the targets of the loop's exit edges."""
    count = len(nodes)
    after: list[set[int]] = [set() for _ in range(count + len(loops))]

    def place(edge: Edge) -> int:
        return edge.target if edge.back_of is None else count + edge.back_of

    for loop in loops:  # Outer loops first: an exit that repeats an outer loop ends where that one does.
        for at in loop.exit_edges:
            beyond = place(edges[at])
            if beyond < count or after[beyond]:
                after[count + loop.index].add(beyond)
    taking_part = [node for node in nodes if not node.is_compensation_only]
    for node in taking_part:
        places = (place(edges[at]) for at in node.outgoing)
        after[node.index] = {beyond for beyond in places if beyond < count or after[beyond]}
    before: list[list[int]] = [[] for _ in after]
    for source, targets in enumerate(after):
        for target in targets:
            before[target].append(source)
    sinks = tuple(node.index for node in taking_part if not after[node.index])
    return Onward(tuple(map(tuple, before)), sinks, frozenset(node.index for node in taking_part))


@dataclass(frozen=True, slots=True)
class Wiring:
    """Edges and loops, and per node its loops and edges."""

    edges: tuple[Edge, ...]
    loops: tuple[Loop, ...]
    loops_of: tuple[tuple[int, ...], ...]
    incoming: tuple[tuple[int, ...], ...]
    outgoing: tuple[tuple[int, ...], ...]


def wire(
    count: int,
    ends: Sequence[tuple[int, int]],
    labels: Sequence[str | None],
    natural: Sequence[NaturalLoop],
    max_iterations: Sequence[int],
    aside: set[int],
) -> Wiring:
    """`ends` are (source, target) per edge, `max_iterations` is per node."""
    loops_of: list[list[int]] = [[] for _ in range(count)]
    for index, loop in enumerate(natural):
        for node in loop.body:
            loops_of[node].append(index)
    back_of = {at: index for index, loop in enumerate(natural) for at in loop.back_edges}
    exit_edges: list[list[int]] = [[] for _ in natural]
    incoming: list[list[int]] = [[] for _ in range(count)]
    outgoing: list[list[int]] = [[] for _ in range(count)]
    edges: list[Edge] = []
    for at, (source, target) in enumerate(ends):
        exits = tuple(index for index in reversed(loops_of[source]) if target not in natural[index].body)
        edges.append(Edge(at, source, target, labels[at], back_of.get(at), exits))
        if source in aside:
            continue
        outgoing[source].append(at)
        if at not in back_of:
            incoming[target].append(at)
        for index in exits:
            exit_edges[index].append(at)
    loops = tuple(
        Loop(
            index=index,
            head=loop.head,
            parent=loop.parent,
            depth=loop.depth,
            body=frozenset(loop.body),
            back_edges=tuple(loop.back_edges),
            exit_edges=tuple(exit_edges[index]),
            max_iterations=max_iterations[loop.head],
        )
        for index, loop in enumerate(natural)
    )
    return Wiring(tuple(edges), loops, _frozen(loops_of), _frozen(incoming), _frozen(outgoing))


def _frozen(lists: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(each) for each in lists)


def early_joins(nodes: Sequence[Node]) -> tuple[int, ...]:
    return tuple(
        node.index
        for node in nodes
        if isinstance(node.config, Join) and node.config.join_policy != "all_completed" and len(node.incoming) > 1
    )


def node_reads(paths: frozenset[tuple[str, ...]]) -> frozenset[str]:
    return frozenset(path[1] for path in paths if path[0] == "nodes")


def latest(nodes: Sequence[Node]) -> frozenset[str]:
    looping = {node.id for node in nodes if node.loops}
    read = {name for node in nodes for name in node.references}
    return frozenset(looping & read)
