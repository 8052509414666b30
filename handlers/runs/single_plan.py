"""The plan of a run of one step: that step, and nothing after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from handlers.runs.edges import Enabled
from handlers.runs.plan import Next, Outcome, Place
from handlers.runs.run_reader import RunReader
from projections.runtime import NodeRun
from schemas.messages import JsonObject
from schemas.runtime import node_run_id
from schemas.workflow.graph import Node

NOTHING = Next()


class SinglePlan(RunReader):
    """Whatever the platform has done as one step, with the retries and time-outs of that step."""

    def first(self, initial_node: str | None) -> Iterable[Enabled]:
        return [Enabled(self._program.nodes[self._program.by_id[cast(str, initial_node)]], ())]

    def after(self, place: Place, node_run_id: str, outcome: Outcome) -> Next:
        return NOTHING

    def output(self) -> Any:
        id = node_run_id(self._run_id, cast(str, self.run.initial_node), "1")
        return cast(NodeRun, self._rows.get(NodeRun, id)).output

    def in_time(self, enabled: Enabled) -> Enabled | None:
        return enabled

    def superfluous(self, pending: Iterable[Enabled]) -> Iterator[NodeRun | Place]:
        return iter(())

    def handles_failure(self, node: Node) -> bool:
        return False

    def compensation_of(self, row: NodeRun) -> Node:
        raise LookupError("a single step is never compensated")

    def scope(self, place: Place, row: NodeRun | None) -> JsonObject:
        return self._scope_without_nodes(place[0])
