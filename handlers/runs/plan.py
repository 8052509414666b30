"""What comes next in a run: the protocol between attempts, which know no graph, and the plan of a run's kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from handlers.runs.edges import Enabled, Iteration
from projections.runtime import NodeRun, Run
from schemas.messages import JsonObject
from schemas.runtime import MarkSet
from schemas.workflow.graph import Node

Place = tuple[Node, Iteration]


class Outcome(NamedTuple):
    """How a node run ended. `route`: the label it chose; `clean`: without an error that on_error made good.

    `counts` false: the run is unwinding, nothing follows. `leaving`: only what leaves the node's loop may follow.
    """

    status: Literal["completed", "failed", "skipped"]
    route: str | None = None
    clean: bool = True
    counts: bool = True
    leaving: bool = False


class Next(NamedTuple):
    """What follows an end. `goes_on`: some way was taken; `passed_early`: it made others superfluous."""

    marks: tuple[MarkSet, ...] = ()
    enabled: Sequence[Enabled] = ()
    goes_on: bool = False
    passed_early: bool = False


class Plan(Protocol):
    """Says what a run begins with, what follows each end, and what it has come to. It makes no events."""

    @property
    def run(self) -> Run:
        """The header as it is now."""

    def first(self, initial_node: str | None) -> Iterable[Enabled]:
        """What a fresh run begins with: its start nodes, or `initial_node` with nothing before it."""

    def after(self, place: Place, node_run_id: str, outcome: Outcome) -> Next:
        """What the end of a node run leads to; the event of that end carries `Next.marks`."""

    def output(self) -> Any:
        """What a run that has nothing left to do has come to."""

    def in_time(self, enabled: Enabled) -> Enabled | None:
        """The same, or to be skipped, or None: what was enabled may have become superfluous meanwhile."""

    def superfluous(self, pending: Iterable[Enabled]) -> Iterator[NodeRun | Place]:
        """Node runs to cancel and places to skip after `Next.passed_early`; each is to end before the next is asked."""

    def place(self, row: NodeRun) -> Place:
        """Where a node run stands; of a compensation: its node, in the iteration of what it makes up for."""

    def handles_failure(self, node: Node) -> bool:
        """Whether a failure of that node has a way of its own."""

    def compensation_of(self, row: NodeRun) -> Node:
        """The node that makes up for a node run."""

    def scope(self, place: Place, row: NodeRun | None) -> JsonObject:
        """What the node's templates and expressions read."""
