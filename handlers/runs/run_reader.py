"""What every plan reads of a run: its header, and where its node runs stand in a program."""

from __future__ import annotations

from handlers.runs.edges import Iteration, parse_iteration
from handlers.runs.plan import Place
from projections.runtime import NodeRun, Run
from schemas.decider import Rows
from schemas.messages import JsonObject
from schemas.workflow.graph import Node, Program


class RunReader:
    """One run as its rows say it is now."""

    def __init__(self, rows: Rows, program: Program, run_id: str) -> None:
        self._rows = rows
        self._program = program
        self._run_id = run_id

    @property
    def run(self) -> Run:
        return self._rows.get(Run, self._run_id)  # type: ignore[return-value]  # Nothing is decided about a run without it.

    def place(self, row: NodeRun) -> Place:
        """Where a node run stands; of a compensation: its node, in the iteration of what it makes up for."""
        return self._node(row.node_id), self._iteration(row)

    def _node(self, id: str) -> Node:
        return self._program.nodes[self._program.by_id[id]]

    def _iteration(self, row: NodeRun) -> Iteration:
        return parse_iteration(row.iteration, len(self._node(row.path.partition("/")[0]).loops))

    def _scope_without_nodes(self, node: Node) -> JsonObject:
        run = self.run
        return {
            "state": run.state,
            "inputs": run.inputs,
            "current": {"node_id": node.id},
            "run": {"id": run.id},
            "nodes": {},
        }
