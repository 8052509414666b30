"""The plan of a workflow: the edges of its graph, with their labels, joins and loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from handlers.runs.edges import Enabled, Iteration, Resolution, iteration_text
from handlers.runs.plan import Next, Outcome, Place
from handlers.runs.run_reader import RunReader
from projections.runtime import NodeRun
from schemas.decider import Rows
from schemas.messages import JsonObject
from schemas.runtime import node_run_id
from schemas.workflow.graph import Node, Program


class GraphPlan(RunReader):
    """What follows in one run of a workflow version."""

    def __init__(self, rows: Rows, program: Program, run_id: str) -> None:
        super().__init__(rows, program, run_id)
        self._counts: Callable[[int], bool] | None = None
        self._coverable_nodes: frozenset[int] | None = None

    def first(self, initial_node: str | None) -> Iterable[Enabled]:
        starts = (self._program.by_id[initial_node],) if initial_node else self._program.starts
        for node in (self._program.nodes[index] for index in starts):
            yield Enabled(node, (1,) * len(node.loops))

    def after(self, place: Place, node_run_id: str, outcome: Outcome) -> Next:
        node, iteration = place
        early = False
        taken: list[int] = []
        if outcome.counts:
            resolution = self._resolve(place, _takes(outcome), leaving=outcome.leaving, taken=taken)
            if node.index in self._program.early_joins and outcome.status == "completed" and outcome.clean:
                early = resolution.pass_early(node, iteration)
        else:
            resolution = self._resolution()  # Its edges lead nowhere now; compensations may read it.
        if node.id in self._program.latest and outcome.status != "skipped":
            resolution.remember(node, iteration, node_run_id)
        return Next(resolution.marks, resolution.enabled, bool(taken), early)

    def output(self) -> Any:
        """The `end` nodes' outputs; without them that of the last node, or of several by node id."""
        run = self.run
        if run.end_output is not None:
            return run.end_output
        sinks: list[NodeRun] = []
        at = run.sink
        while at is not None:
            row = cast(NodeRun, self._rows.get(NodeRun, at))
            sinks.append(row)
            at = row.below_sink
        outputs = {row.node_id: row.output for row in reversed(sinks)}
        return sinks[0].output if len(outputs) == 1 else outputs

    def handles_failure(self, node: Node) -> bool:
        return any(self._program.edges[index].label == "failed" for index in node.outgoing)

    def compensation_of(self, row: NodeRun) -> Node:
        return self._program.nodes[cast(int, self._node(row.node_id).compensation)]

    # --- what becomes superfluous ----------------------------------------------------------------------------

    def in_time(self, enabled: Enabled) -> Enabled | None:
        node, iteration = enabled.node, enabled.iteration
        if node.index not in self._coverable():
            return enabled
        if self._row(node, iteration) is not None:
            return None
        return enabled._replace(why="skip") if self._resolution().covered(node, iteration) else enabled

    def superfluous(self, pending: Iterable[Enabled]) -> Iterator[NodeRun | Place]:
        """A join passed early: all that leads to such joins only ends now, whether it has begun or not."""
        rows = [row for row in sorted(self._rows.live(NodeRun), key=lambda row: row.seq) if "/" not in row.path]
        in_flight = [self.place(row) for row in rows] + [(each.node, each.iteration) for each in pending]
        for row in rows:
            if self._resolution().covered(*self.place(row)):
                yield row
        now = self._resolution()
        waiting = [
            (node, iteration)
            for node in (self._program.nodes[index] for index in sorted(self._coverable()))
            for iteration in _open_iterations(node, in_flight)
            if self._reaches(node.index) and now.covered(node, iteration)
        ]
        self._rows.want(NodeRun, [self._id(*place) for place in waiting])
        for node, iteration in waiting:
            if self._row(node, iteration) is None:
                yield node, iteration

    def _coverable(self) -> frozenset[int]:
        """The nodes that an early join could ever make superfluous."""
        if self._coverable_nodes is None:
            early = frozenset(self._program.early_joins)
            self._coverable_nodes = self._program.covered(early) | early if early else early
        return self._coverable_nodes

    # --- edges -----------------------------------------------------------------------------------------------

    def _resolve(
        self, place: Place, takes: Callable[[str | None], bool], *, leaving: bool, taken: list[int]
    ) -> Resolution:
        """All edges out of a node at once. `leaving`: only those that leave its loop can be taken."""
        node, iteration = place
        resolution = self._resolution()
        edges = [self._program.edges[index] for index in node.outgoing]
        may = [(edge, takes(edge.label) and (not leaving or node.loops[-1] in edge.exits)) for edge in edges]
        taken.extend(edge.index for edge, take in may if take)
        if len(may) > 1:  # What is taken leaves a loop before a back edge that is not taken ends it.
            may.sort(key=lambda each: (not each[1], each[0].back_of is not None))
        for edge, take in may:
            resolution.edge(edge, iteration, take)
        return resolution

    def _resolution(self) -> Resolution:
        return Resolution(self._rows, self._program, self._run_id, self._counts_of())

    def _counts_of(self) -> Callable[[int], bool] | None:
        """Which nodes can run at all, if the run began in the middle of the graph."""
        if self.run.initial_node is None:
            return None
        if self._counts is None:
            self._counts = _reachable(self._program, self._program.by_id[self.run.initial_node]).__contains__
        return self._counts

    def _reaches(self, index: int) -> bool:
        counts = self._counts_of()
        return counts is None or counts(index)

    # --- what templates read ---------------------------------------------------------------------------------

    def scope(self, place: Place, row: NodeRun | None) -> JsonObject:
        node, iteration = place
        scope = self._scope_without_nodes(node)
        loops: tuple[int, ...] = ()
        if row is not None and "/" in row.path:
            made_up = row.path.split("/")[0]
            loops = self._node(made_up).loops
            before = self._rows.get(NodeRun, node_run_id(self._run_id, made_up, row.iteration))
            error = before.error if before is not None and before.error else self.run.error
            scope["current"] |= {"compensates": made_up, "error": error}
        if node.references:
            scope["nodes"] = self._ended(node.references, iteration, loops)
        return scope

    def _ended(self, references: frozenset[str], iteration: Iteration, loops: tuple[int, ...]) -> JsonObject:
        """What the templates of a node read of others; of what shares `loops` that iteration's, else the last."""
        ids: dict[str, str] = {}
        for name in sorted(references):
            other = self._node(name)
            within = iteration[: shared_loops(loops, other.loops)]
            if len(within) == len(other.loops):
                ids[name] = self._id(other, within)
            elif last := self._resolution().latest(other, within):
                ids[name] = last
        self._rows.want(NodeRun, ids.values())
        found: JsonObject = {}
        for name, id in ids.items():
            row = self._rows.get(NodeRun, id)
            if row is not None and row.status in ("completed", "failed"):
                found[name] = {"output": row.output, "text": row.output_text, "error": row.error}
        return found

    def _row(self, node: Node, iteration: Iteration) -> NodeRun | None:
        return self._rows.get(NodeRun, self._id(node, iteration))

    def _id(self, node: Node, iteration: Iteration) -> str:
        return node_run_id(self._run_id, node.id, iteration_text(iteration))


def _takes(outcome: Outcome) -> Callable[[str | None], bool]:
    if outcome.status == "completed":
        return lambda label: label is None or label == outcome.route
    return lambda label: label == "failed" and outcome.status == "failed"


def shared_loops(loops: tuple[int, ...], others: tuple[int, ...]) -> int:
    """How many loops, from the outermost on, they have in common."""
    return sum(one == other for one, other in zip(loops, others, strict=False))


def _open_iterations(node: Node, in_flight: list[Place]) -> list[Iteration]:
    """The iterations in which a node may be still to come: the first of each loop inside what is in flight."""
    depth = len(node.loops)
    found = {(1,) * depth}
    for other, iteration in in_flight:
        shared = shared_loops(node.loops, other.loops)
        found.add((*iteration[:shared], *(1,) * (depth - shared)))
    return sorted(found)


def _reachable(program: Program, start: int) -> frozenset[int]:
    found, work = {start}, [start]
    while work:
        for index in program.nodes[work.pop()].outgoing:
            target = program.edges[index].target
            if target not in found:
                found.add(target)
                work.append(target)
    return frozenset(found)
