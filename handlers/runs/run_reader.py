"""What a decision about a run reads: its rows by the places of its graph, and what its templates see."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from handlers.runs.edges import Iteration, Resolution, iteration_text, parse_iteration
from projections.runtime import NodeRun, Run
from schemas.decider import Rows
from schemas.messages import JsonObject
from schemas.runtime import node_run_id
from schemas.workflow.graph import Node, Program


class RunReader:
    """One run as its rows say it is now."""

    def __init__(self, rows: Rows, program: Program, run_id: str) -> None:
        self._rows = rows
        self._program = program
        self._run_id = run_id
        self._counts: Callable[[int], bool] | None = None

    @property
    def run(self) -> Run:
        return self._rows.get(Run, self._run_id)  # type: ignore[return-value]  # Nothing is decided about a run without it.

    def _resolve(
        self,
        node: Node,
        iteration: Iteration,
        takes: Callable[[str | None], bool],
        *,
        leaving: bool = False,
        taken: list[int] | None = None,
    ) -> Resolution:
        """All edges out of a node at once. `leaving`: only those that leave its loop can be taken."""
        resolution = self._resolution()
        edges = [self._program.edges[index] for index in node.outgoing]
        may = [(edge, takes(edge.label) and (not leaving or node.loops[-1] in edge.exits)) for edge in edges]
        if taken is not None:
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

    def _scope(self, node: Node, iteration: Iteration, row: NodeRun | None) -> JsonObject:
        run = self.run
        current: JsonObject = {"node_id": node.id}
        compensates = row.path.split("/")[0] if row is not None and "/" in row.path else None
        if compensates:
            current["compensates"] = compensates
            made_up = self._program.nodes[self._program.by_id[compensates]]
            iteration = parse_iteration(cast(NodeRun, row).iteration, len(made_up.loops))
        scope: JsonObject = {
            "state": run.state,
            "inputs": run.inputs,
            "current": current,
            "run": {"id": run.id},
        }
        if node.references:
            loops = self._program.nodes[self._program.by_id[compensates]].loops if compensates else ()
            scope["nodes"] = self._outputs(node.references, iteration, loops)
        else:
            scope["nodes"] = {}
        return scope

    def _outputs(self, references: frozenset[str], iteration: Iteration, loops: tuple[int, ...]) -> JsonObject:
        """What the templates of a node read of others; of what shares `loops` that iteration's, else the last."""
        ids: dict[str, str] = {}
        for name in sorted(references):
            other = self._program.nodes[self._program.by_id[name]]
            depth = len(other.loops)
            within = iteration[: shared_loops(loops, other.loops)]
            if len(within) == depth:
                ids[name] = node_run_id(self._run_id, name, iteration_text(within))
            elif last := self._resolution().latest(other, within):
                ids[name] = last
        self._rows.want(NodeRun, ids.values())
        found: JsonObject = {}
        for name, id in ids.items():
            row = self._rows.get(NodeRun, id)
            if row is not None and row.status == "completed":
                found[name] = {"output": row.output, "text": row.output_text, "error": row.error}
        return found

    def place(self, row: NodeRun) -> tuple[Node, Iteration]:
        return self._node(row), self._iteration(row)

    def _node(self, row: NodeRun) -> Node:
        return self._program.nodes[self._program.by_id[row.node_id]]

    def _iteration(self, row: NodeRun) -> Iteration:
        """The iteration of a node run; of a compensation that of the node it makes up for."""
        name = row.path.partition("/")[0]
        depth = len(self._program.nodes[self._program.by_id[name]].loops)
        return parse_iteration(row.iteration, depth)

    def _row(self, node: Node, iteration: Iteration) -> NodeRun | None:
        return self._rows.get(NodeRun, node_run_id(self._run_id, node.id, iteration_text(iteration)))

    def _names(self, node: Node, iteration: Iteration) -> JsonObject:
        text = iteration_text(iteration)
        id = node_run_id(self._run_id, node.id, text)
        return {
            "node_run_id": id,
            "node_id": node.id,
            "path": node.id,
            "iteration": text,
            "node_type": node.type,
        }


def shared_loops(loops: tuple[int, ...], others: tuple[int, ...]) -> int:
    """How many loops, from the outermost on, they have in common."""
    return sum(one == other for one, other in zip(loops, others, strict=False))


def _reachable(program: Program, start: int) -> frozenset[int]:
    found, work = {start}, [start]
    while work:
        for index in program.nodes[work.pop()].outgoing:
            target = program.edges[index].target
            if target not in found:
                found.add(target)
                work.append(target)
    return frozenset(found)
