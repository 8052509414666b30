"""Control flow of a directed graph: reachability, dominators, natural loops; in almost linear time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

LOOP_DEPTH_MAX: Final = 8

Successors = Sequence[Sequence[int]]
FaultCode = Literal[
    "no_start_node",
    "unreachable_node",
    "loop_without_entry",
    "cycle_without_allow_loop",
    "irreducible_cycle",
    "allow_loop_not_head",
    "allow_loop_unused",
    "loops_too_deep",
]


class Fault(NamedTuple):
    code: FaultCode
    node: int | None = None
    edge: int | None = None


@dataclass(slots=True)
class NaturalLoop:
    head: int
    back_edges: list[int]
    parent: int | None = None  # Index of the loop around it.
    depth: int = 1
    body: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Shape:
    """`loops` has outer loops before inner ones; it is empty if an error was found."""

    starts: list[int]
    loops: list[NaturalLoop] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def analyse(count: int, edges: Sequence[tuple[int, int]], allow_loop: set[int], aside: set[int]) -> Shape:
    """Nodes are 0..count-1. Nodes in `aside` take no part, nor do edges that touch them."""
    used = [at for at, (source, target) in enumerate(edges) if source not in aside and target not in aside]
    successors: list[list[int]] = [[] for _ in range(count + 1)]
    targets = set()
    for at in used:
        source, target = edges[at]
        successors[source].append(target)
        targets.add(target)
    starts = [node for node in range(count) if node not in targets and node not in aside]
    successors[count] = starts  # A root above all starts.
    shape = Shape(starts)
    if not starts and len(aside) < count:
        shape.faults.append(Fault("no_start_node"))
    dominators = immediate_dominators(successors, count)
    shape.faults += [
        Fault("unreachable_node", node=node) for node in range(count) if dominators[node] < 0 and node not in aside
    ]
    cyclic = _cyclic_components(successors)
    reachable = [at for at in used if dominators[edges[at][0]] >= 0]
    back = _back_edges(reachable, edges, dominators, count)
    shape.faults += _entry_faults(cyclic, dominators, allow_loop)
    shape.faults += [Fault("cycle_without_allow_loop", edge=at) for at in back if edges[at][1] not in allow_loop]
    irreducible = _irreducible(count, reachable, edges, set(back))
    shape.faults += [Fault("irreducible_cycle", edge=min(found)) for found in irreducible]
    tangled = {node for found in irreducible for at in found for node in edges[at]}
    shape.faults += _misplaced(allow_loop - tangled - aside, {edges[at][1] for at in back}, cyclic, dominators)
    if not any(fault.code != "allow_loop_unused" for fault in shape.faults):
        shape.loops = _natural_loops(successors, edges, reachable, back)
        shape.faults += [
            Fault("loops_too_deep", node=loop.head) for loop in shape.loops if loop.depth == LOOP_DEPTH_MAX + 1
        ]
    return shape


def _entry_faults(cyclic: list[list[int]], dominators: list[int], allow_loop: set[int]) -> list[Fault]:
    """Cycles that no start leads to: nothing can begin them."""
    faults: list[Fault] = []
    for component in cyclic:
        if dominators[component[0]] >= 0:
            continue
        heads = sorted(set(component) & allow_loop)
        code: FaultCode = "loop_without_entry" if heads else "cycle_without_allow_loop"
        faults += [Fault(code, node=node) for node in heads or [min(component)]]
    return faults


def _misplaced(allow_loop: set[int], heads: set[int], cyclic: list[list[int]], dominators: list[int]) -> list[Fault]:
    on_cycles = {node for component in cyclic for node in component}
    return [
        Fault("allow_loop_not_head" if node in on_cycles else "allow_loop_unused", node=node)
        for node in sorted(allow_loop - heads)
        if dominators[node] >= 0
    ]


def _back_edges(candidates: list[int], edges: Sequence[tuple[int, int]], dominators: list[int], root: int) -> list[int]:
    """Edges whose target dominates their source, found by intervals over the dominator tree."""
    children: list[list[int]] = [[] for _ in dominators]
    for node, dominator in enumerate(dominators):
        if dominator >= 0 and node != root:
            children[dominator].append(node)
    first = [0] * len(dominators)
    last = [0] * len(dominators)
    clock = 0
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        clock += 1
        if done:
            last[node] = clock
            continue
        first[node] = clock
        stack.append((node, True))
        stack.extend((child, False) for child in children[node])
    return [
        at
        for at in candidates
        if first[edges[at][1]] <= first[edges[at][0]] and last[edges[at][0]] <= last[edges[at][1]]
    ]


def _irreducible(
    count: int, candidates: list[int], edges: Sequence[tuple[int, int]], back: set[int]
) -> list[list[int]]:
    """The edges of each cycle (strongly connected part) that remains without the back edges."""
    forward: list[list[int]] = [[] for _ in range(count)]
    kept = [at for at in candidates if at not in back]
    for at in kept:
        forward[edges[at][0]].append(edges[at][1])
    place: dict[int, int] = {}
    cyclic = _cyclic_components(forward)
    for number, component in enumerate(cyclic):
        place.update(dict.fromkeys(component, number))
    found: list[list[int]] = [[] for _ in cyclic]
    for at in kept:
        source, target = edges[at]
        if source in place and place[source] == place.get(target):
            found[place[source]].append(at)
    return found


def _cyclic_components(successors: Successors) -> list[list[int]]:
    return [found for found in components(successors) if len(found) > 1 or found[0] in successors[found[0]]]


def components(successors: Successors) -> list[list[int]]:
    """The strongly connected components, each before those that lead to it (Tarjan 1972, iterative)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    open_nodes: list[int] = []
    is_open: set[int] = set()
    found: list[list[int]] = []
    for root in range(len(successors)):
        if root in order:
            continue
        order[root] = low[root] = len(order)
        open_nodes.append(root)
        is_open.add(root)
        work = [(root, iter(successors[root]))]
        while work:
            node, rest = work[-1]
            for target in rest:
                if target not in order:
                    order[target] = low[target] = len(order)
                    open_nodes.append(target)
                    is_open.add(target)
                    work.append((target, iter(successors[target])))
                    break
                if target in is_open:
                    low[node] = min(low[node], order[target])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == order[node]:
                    found.append(_close(open_nodes, is_open, node))
    return found


def _close(open_nodes: list[int], is_open: set[int], until: int) -> list[int]:
    component = []
    while True:
        node = open_nodes.pop()
        is_open.discard(node)
        component.append(node)
        if node == until:
            return component


def immediate_dominators(successors: Successors, root: int) -> list[int]:
    """Per node its immediate dominator; the root's is itself, an unreachable node's is -1.

    Lengauer and Tarjan (1979), the simple version: O(E log N) whatever the graph.
    """
    nodes, parent = _preorder(successors, root)
    number = {node: at for at, node in enumerate(nodes)}
    predecessors: list[list[int]] = [[] for _ in nodes]
    for at, node in enumerate(nodes):
        for target in successors[node]:
            predecessors[number[target]].append(at)
    forest = _Forest(len(nodes))
    semi = forest.semi
    buckets: list[list[int]] = [[] for _ in nodes]
    idom = [0] * len(nodes)
    for node in range(len(nodes) - 1, 0, -1):
        above = parent[node]
        semi[node] = min(semi[node], *(semi[forest.evaluate(before)] for before in predecessors[node]))
        buckets[semi[node]].append(node)
        forest.ancestor[node] = above
        for waiting in buckets[above]:
            best = forest.evaluate(waiting)
            idom[waiting] = best if semi[best] < semi[waiting] else above
        buckets[above] = []
    for node in range(1, len(nodes)):
        if idom[node] != semi[node]:
            idom[node] = idom[idom[node]]
    result = [-1] * len(successors)
    for at, node in enumerate(nodes):
        result[node] = nodes[idom[at]]
    return result


def _preorder(successors: Successors, root: int) -> tuple[list[int], list[int]]:
    """Reachable nodes in depth-first order, and for each position the position of its parent."""
    nodes: list[int] = []
    parent: list[int] = []
    seen: set[int] = set()
    work = [(root, 0)]
    while work:
        node, above = work.pop()
        if node in seen:
            continue
        seen.add(node)
        at = len(nodes)
        nodes.append(node)
        parent.append(above)
        work.extend((target, at) for target in reversed(successors[node]) if target not in seen)
    return nodes, parent


class _Forest:
    """The forest of Lengauer and Tarjan: link by `ancestor`, evaluate with path compression."""

    def __init__(self, count: int) -> None:
        self.semi = list(range(count))
        self.ancestor = [-1] * count
        self.label = list(range(count))

    def evaluate(self, node: int) -> int:
        ancestor, label, semi = self.ancestor, self.label, self.semi
        if ancestor[node] < 0:
            return node
        path = [node]
        while ancestor[ancestor[path[-1]]] >= 0:
            path.append(ancestor[path[-1]])
        path.pop()
        for each in reversed(path):
            above = ancestor[each]
            if semi[label[above]] < semi[label[each]]:
                label[each] = label[above]
            ancestor[each] = ancestor[above]
        return label[node]


def _natural_loops(
    successors: Successors, edges: Sequence[tuple[int, int]], candidates: Iterable[int], back: Sequence[int]
) -> list[NaturalLoop]:
    """Loops of a reducible graph, outer before inner; several back edges to one head are one loop.

    Heads are taken innermost first and each finished body is collapsed into its head.
    """
    root = len(successors) - 1
    order = {node: at for at, node in enumerate(_preorder(successors, root)[0])}
    loops: dict[int, NaturalLoop] = {}
    for at in back:
        loops.setdefault(edges[at][1], NaturalLoop(edges[at][1], [])).back_edges.append(at)
    before: list[list[int]] = [[] for _ in successors]
    closing = set(back)
    for at in candidates:
        if at not in closing:
            before[edges[at][1]].append(edges[at][0])
    heads = sorted(loops, key=order.__getitem__)
    around = _collapse(reversed(heads), loops, before, edges)
    return _nest([loops[head] for head in heads], around)


def _collapse(
    heads: Iterable[int], loops: dict[int, NaturalLoop], before: Successors, edges: Sequence[tuple[int, int]]
) -> dict[int, int]:
    """For every node in a loop the head of the innermost one; for a head, that of the loop around its own."""
    standing = list(range(len(before)))

    def stand_in(node: int) -> int:
        while standing[node] != node:
            standing[node] = standing[standing[node]]
            node = standing[node]
        return node

    around: dict[int, int] = {}
    for head in heads:
        inside: set[int] = set()
        work = [stand_in(edges[at][0]) for at in loops[head].back_edges]
        while work:
            node = work.pop()
            if node == head or node in inside:
                continue
            inside.add(node)
            work.extend(stand_in(source) for source in before[node])
        for node in inside:
            around[node] = head
            standing[node] = head
    return around


def _nest(loops: list[NaturalLoop], around: dict[int, int]) -> list[NaturalLoop]:
    index = {loop.head: at for at, loop in enumerate(loops)}
    for loop in loops:
        if loop.head in around:
            loop.parent = index[around[loop.head]]
            loop.depth = loops[loop.parent].depth + 1
        loop.body.add(loop.head)
    if any(loop.depth > LOOP_DEPTH_MAX for loop in loops):
        return loops
    for node, head in around.items():
        at: int | None = index[head]
        while at is not None:
            loops[at].body.add(node)
            at = loops[at].parent
    return loops
