"""Which nodes a template may hope to read, by brute force over the raw graph."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.simulation.loops import Edge, Graph

NEVER_SET = "state.missing.deep"
_READ = re.compile(r"nodes\.([\w-]+)((?:\.\w+)*)")


class Readable:
    """`may(reader, node)`: whether some run has run the node when the reader reads it."""

    def __init__(self, dsl: Mapping[str, Any]) -> None:
        self.graph = graph = Graph(dsl)
        self.edges = [edge for edge in graph.edges if edge.target not in graph.aside]
        self.out = {node: [edge for edge in self.edges if edge.source == node] for node in graph.nodes}
        self.below = {node: self._below(node) for node in graph.nodes}
        self.early = {
            node
            for node in graph.nodes
            if graph.kind[node] == "join" and graph.config[node].get("join_policy", "all_completed") != "all_completed"
        }
        self.parted = self._parted()

    def may(self, reader: str, node: str) -> bool:
        graph = self.graph
        if node in graph.aside:
            return False
        owners = [each for each in graph.nodes if graph.config[each].get("compensation_node_id") == reader]
        if any(self._together(node, owner) for owner in owners):
            return True
        if reader in graph.aside:
            return False
        if reader in self.below[node]:
            return True
        return (node, reader) in self.parted and not self._waits_for(node, reader)

    def _together(self, one: str, other: str) -> bool:
        return one == other or other in self.below[one] or one in self.below[other] or (one, other) in self.parted

    def _below(self, node: str) -> set[str]:
        seen: set[str] = set()
        todo = [node]
        while todo:
            for edge in self.out[todo.pop()]:
                if edge.target not in seen:
                    seen.add(edge.target)
                    todo.append(edge.target)
        return seen

    def _waits_for(self, node: str, reader: str) -> bool:
        """A path from the reader, which runs once, passes nothing that may go on early."""
        if reader in self.below[reader]:
            return False
        seen, todo = {reader}, [reader]
        while todo:
            for edge in self.out[todo.pop()]:
                if edge.target not in seen and not self._may_be_early(edge.target):
                    seen.add(edge.target)
                    todo.append(edge.target)
        return node in seen

    def _may_be_early(self, node: str) -> bool:
        around = {other for other in self.below[node] if node in self.below[other]} | {node}
        return bool(around & self.early)

    def _parted(self) -> set[tuple[str, str]]:
        """Where two walkers may be at once that go together until they part at edges taken together."""
        starts = self.graph.starts
        todo = [(one, other) for one in starts for other in starts if one != other]
        for node in self.graph.nodes:
            for one in self.out[node]:
                todo += [(one.target, other.target) for other in self.out[node] if _taken_together(one, other)]
        seen = set(todo)
        while todo:
            one, other = todo.pop()
            onward = [(edge.target, other) for edge in self.out[one]] + [(one, edge.target) for edge in self.out[other]]
            fresh = set(onward) - seen
            seen |= fresh
            todo += fresh
        return seen


def _taken_together(one: Edge, other: Edge) -> bool:
    labels = {one.label, other.label}
    return one != other and (len(labels) == 1 or (None in labels and "failed" not in labels))


def reads_of(dsl: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every node with each node that its config reads."""
    for node in dsl["nodes"]:
        for found in _READ.finditer(json.dumps(node["config"], ensure_ascii=False)):
            yield node["id"], found[1]


def without_impossible(dsl: Mapping[str, Any]) -> dict[str, Any]:
    """The same workflow, and in each run the same values: what nothing can set is read from a place never set."""
    readable = Readable(dsl)

    def mended(node: Mapping[str, Any]) -> dict[str, Any]:
        def possible(found: re.Match[str]) -> str:
            return found[0] if readable.may(node["id"], found[1]) else NEVER_SET

        config = _READ.sub(possible, json.dumps(node["config"], ensure_ascii=False))
        return {**node, "config": json.loads(config)}

    return {**dsl, "nodes": [mended(node) for node in dsl["nodes"]]}
