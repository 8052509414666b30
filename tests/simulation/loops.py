"""Dominators, natural loops and the resolution of edges by brute force, from the raw DSL."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

ALIASES = {"condition": "if-else"}


@dataclass(frozen=True)
class Edge:
    index: int
    source: str
    target: str
    label: str | None


class NodeRun(NamedTuple):
    node: str
    at: tuple[int, ...]  # One number per enclosing loop, outermost first.

    @property
    def iteration(self) -> str:
        return ".".join(map(str, self.at)) or "1"


class Graph:
    """Edges, dominators and natural loops of a valid DSL. A loop is named by its head."""

    def __init__(self, dsl: Mapping[str, Any]) -> None:
        self.config: dict[str, dict[str, Any]] = {n["id"]: n.get("config") or {} for n in dsl["nodes"]}
        self.kind = {n["id"]: ALIASES.get(n["type"], n["type"]) for n in dsl["nodes"]}
        targets = {e["target"] for e in dsl["edges"]}
        compensations = {c.get("compensation_node_id") for c in self.config.values()}
        self.aside = {n for n in self.kind if n in compensations and n not in targets}
        self.nodes = [n for n in self.kind if n not in self.aside]
        self.edges = [
            Edge(i, e["source"], e["target"], e.get("condition"))
            for i, e in enumerate(dsl["edges"])
            if e["source"] not in self.aside
        ]
        self._out = {n: [e for e in self.edges if e.source == n] for n in self.nodes}
        self.starts = [n for n in self.nodes if n not in targets]
        self.back = {e.index for e in self.edges if self._is_back(e)}
        self.bodies = {
            head: frozenset({head}).union(*(self._reaching(e.source, head) for e in self._back_edges(head)))
            for head in {e.target for e in self.edges if e.index in self.back}
        }
        self.loops = {node: self._loops_of(node) for node in self.nodes}
        self._into = {n: [e for e in self.edges if e.target == n and e.index not in self.back] for n in self.nodes}
        self._onward: dict[str, set[str]] = {n: set().union(*map(self._beyond, self.out(n))) for n in self.nodes}

    def out(self, node: str) -> list[Edge]:
        return self._out[node]

    def forward_into(self, node: str) -> list[Edge]:
        return self._into[node]

    def _back_edges(self, head: str) -> list[Edge]:
        return [e for e in self.edges if e.target == head and e.index in self.back]

    def back_edges(self, head: str) -> set[int]:
        return {e.index for e in self._back_edges(head)}

    def exits(self, edge: Edge) -> list[str]:
        """The loops that the edge leaves, innermost first."""
        return [head for head in reversed(self.loops[edge.source]) if edge.target not in self.bodies[head]]

    def exit_edges(self, head: str) -> list[Edge]:
        return [e for e in self.edges if head in self.exits(e)]

    def onward(self, node: str) -> set[str]:
        """Where a path goes next; at a back edge it goes on at the exits of the loop."""
        return self._onward[node]

    def _beyond(self, edge: Edge) -> set[str]:
        if edge.index not in self.back:
            return {edge.target}
        return set().union(*(self._beyond(e) for e in self.exit_edges(edge.target)))

    def _is_back(self, edge: Edge) -> bool:
        allowed = self.config[edge.target].get("allow_loop", False)
        return bool(allowed) and edge.source not in self._reachable_without(edge.target)

    def _reachable_without(self, avoided: str) -> set[str]:
        seen: set[str] = set()
        todo = [n for n in self.starts if n != avoided]
        while todo:
            node = todo.pop()
            seen.add(node)
            todo += [e.target for e in self.out(node) if e.target not in seen and e.target != avoided]
        return seen

    def _reaching(self, node: str, head: str) -> set[str]:
        seen = {head}
        todo = [node]
        while todo:
            reached = todo.pop()
            if reached not in seen:
                seen.add(reached)
                todo += [e.source for e in self.edges if e.target == reached]
        return seen

    def _loops_of(self, node: str) -> tuple[str, ...]:
        around = [head for head, body in self.bodies.items() if node in body]
        return tuple(sorted(around, key=lambda head: -len(self.bodies[head])))


@dataclass
class Instance:
    """One entry of a loop: its current iteration, exits taken, and how each iteration's back edges ended."""

    iteration: int = 1
    ended: bool = False
    taken: set[int] = field(default_factory=set)
    back: dict[int, dict[int, bool]] = field(default_factory=dict)


class Flow:
    """Which edges have been resolved for which iteration, and which node runs exist but have not ended."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.arrived: dict[tuple[int, tuple[int, ...]], bool] = {}
        self.instances: dict[tuple[str, tuple[int, ...]], Instance] = {}
        self.open: set[NodeRun] = {NodeRun(n, (1,) * len(graph.loops[n])) for n in graph.nodes}

    def resolve(self, run: NodeRun, taken: set[int]) -> None:
        """Resolves all outgoing edges of an ended node run; what is taken leaves before a loop ends."""
        edges = self.graph.out(run.node)
        for edge in sorted(edges, key=lambda e: (e.index not in taken, e.index in self.graph.back)):
            self._leave(edge, self.graph.exits(edge), run.at, edge.index in taken)

    def instance(self, head: str, entry: tuple[int, ...]) -> Instance:
        return self.instances.setdefault((head, entry), Instance())

    def _leave(self, edge: Edge, levels: Sequence[str], at: tuple[int, ...], taken: bool) -> None:
        if not levels:
            return self._land(edge, at, taken)
        instance = self.instance(levels[0], at[:-1])
        if instance.ended or edge.index in instance.taken or not taken:
            return None  # Not taken waits for the end of the loop.
        instance.taken.add(edge.index)
        return self._leave(edge, levels[1:], at[:-1], True)

    def _land(self, edge: Edge, at: tuple[int, ...], taken: bool) -> None:
        if edge.index in self.graph.back:
            instance = self.instance(edge.target, at[:-1])
            instance.back.setdefault(at[-1], {})[edge.index] = taken
            return self._turn(edge.target, at[:-1], instance)
        entered = len(self.graph.loops[edge.target]) - len(at)
        self.arrived[edge.index, at + (1,) * entered] = taken
        return None

    def _turn(self, head: str, entry: tuple[int, ...], instance: Instance) -> None:
        """Starts the next iteration or ends the loop once all back edges of the current one are resolved."""
        resolved = instance.back[instance.iteration]
        if instance.ended or set(resolved) != self.graph.back_edges(head):
            return
        if any(resolved.values()):
            instance.iteration += 1
            at = (*entry, instance.iteration)
            for node in self.graph.bodies[head]:
                self.open.add(NodeRun(node, at + (1,) * (len(self.graph.loops[node]) - len(at))))
            return
        instance.ended = True
        for edge in self.graph.exit_edges(head):
            if edge.index not in instance.taken:
                levels = self.graph.exits(edge)
                self._leave(edge, levels[levels.index(head) + 1 :], entry, False)
