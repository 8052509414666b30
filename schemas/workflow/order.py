"""Which nodes may have run before another one does: what a template may hope to find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final, Literal

from schemas.workflow.control_flow import components
from schemas.workflow.node_types import FAILED

PAIRS_MAX: Final = 500
"""Pairs without a path between them that are looked at closely, a millisecond each in the largest graphs; beyond so
many they count as running beside each other."""

Relation = Literal["before", "beside", "never"]


class Order:
    """Nodes are 0..count-1, `edges` (source, target, label). Those in `aside` take no part, nor do their edges.

    Sets of nodes are bits of an integer: all ancestors of 2 000 nodes take milliseconds. `early`: joins that may
    pass before all their edges are resolved.
    """

    def __init__(
        self,
        count: int,
        edges: Sequence[tuple[int, int, str | None]],
        aside: Collection[int],
        early: Collection[int],
    ) -> None:
        self._before: list[list[int]] = [[] for _ in range(count)]
        self._after: list[list[tuple[int, str | None]]] = [[] for _ in range(count)]
        for source, target, label in edges:
            if source not in aside and target not in aside:
                self._before[target].append(source)
                self._after[source].append((target, label))
        self._forks = [node for node in range(count) if len(self._after[node]) > 1]
        entered = {target for _, target, _ in edges}
        self._starts = sum(1 << node for node in range(count) if node not in entered and node not in aside)
        self._above = [0] * count
        """The nodes that lead to a node: itself too if it is on a cycle."""
        self._awaited = [0] * count
        """Those of them that have always ended for good before it begins."""
        self._close(early)
        self._met: dict[tuple[int, int], bool] = {}

    def relation(self, node: int, reader: int) -> Relation:
        """Whether `node` may have run when `reader` does; `beside`: that is a matter of luck."""
        if self._above[reader] >> node & 1:
            return "before"
        if node == reader or self._awaited[node] >> reader & 1 or not self._meet(node, reader):
            return "never"
        return "beside"

    def together(self, node: int, other: int) -> bool:
        """Whether one run may come to both, in whatever order."""
        above = self._above
        return bool(node == other or above[node] >> other & 1 or above[other] >> node & 1 or self._meet(node, other))

    def _close(self, early: Collection[int]) -> None:
        after = [[target for target, _ in lines] for lines in self._after]
        on_cycles = 0
        for component in reversed(components(after)):
            inside = sum(1 << node for node in component)
            sources = {source for node in component for source in self._before[node]}
            outside = [source for source in sources if not inside >> source & 1]
            above = awaited = 0
            for source in outside:
                above |= self._above[source] | 1 << source
                awaited |= self._awaited[source] | 1 << source
            awaited &= ~on_cycles  # What a loop leads to may run while the loop goes on.
            if len(outside) < len(sources):
                above |= inside
                on_cycles |= inside
            if not set(component).isdisjoint(early):
                awaited = 0
            for node in component:
                self._above[node], self._awaited[node] = above, awaited

    def _meet(self, node: int, other: int) -> bool:
        """Whether one run may come to both although neither leads to the other.

        The ways to them part at two start nodes, or where a node takes two edges at once.
        """
        pair = min(node, other), max(node, other)
        if pair not in self._met:
            if len(self._met) >= PAIRS_MAX:
                return True
            self._met[pair] = self._part(*pair)
        return self._met[pair]

    def _part(self, node: int, other: int) -> bool:
        ways = self._above[node] | 1 << node, self._above[other] | 1 << other
        starts = self._starts & ways[0], self._starts & ways[1]
        if all(starts) and (starts[0] | starts[1]).bit_count() > 1:
            return True
        common = ways[0] & ways[1]
        return any(
            common >> fork & 1 and self._both(self._towards(fork, ways[0]), self._towards(fork, ways[1]))
            for fork in self._forks
        )

    def _towards(self, fork: int, way: int) -> dict[str | None, list[int]]:
        """The edges that lead to a node, by label."""
        found: dict[str | None, list[int]] = defaultdict(list)
        for at, (target, label) in enumerate(self._after[fork]):
            if way >> target & 1:
                found[label].append(at)
        return found

    def _both(self, some: dict[str | None, list[int]], others: dict[str | None, list[int]]) -> bool:
        """Whether two edges, one of each, may be taken at once."""
        return any(
            _taken_together(one, two) and (len(some[one]) > 1 or some[one] != others[two])
            for one in some
            for two in _alike(one, others)
        )


def _alike(label: str | None, others: Collection[str | None]) -> list[str | None]:
    return list(others) if label is None else [other for other in (label, None) if other in others]


def _taken_together(one: str | None, two: str | None) -> bool:
    return one == two or (None in (one, two) and FAILED not in (one, two))
