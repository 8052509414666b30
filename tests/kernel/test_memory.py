"""What lanes keep in memory is bounded, and what has left it is read again, never taken for absent."""

from __future__ import annotations

import pytest

from bus.lanes import ENDED_ROWS_KEPT, Lane
from bus.limits import Limits
from bus.rows import View
from bus.store import Claimed
from infra.db import changed
from projections.runtime import NODE_RUNS, NodeRun
from projections.runtime_fold import _BLANK
from schemas.decider import Missing

SPECS = {NODE_RUNS.row: NODE_RUNS}
RUN = "00000000-0000-4000-8000-000000000001"


def node_run(number: int, status: str = "completed", text: str = "x" * 1_000) -> NodeRun:
    return changed(_BLANK, id=f"node {number}", run_id=RUN, tenant_id="t", status=status, output_text=text)


def lane(limits: Limits) -> Lane:
    return Lane(Claimed(lane=0, epoch=1, next_offset=0, position=0, sent=0, floor=0), limits)


def fill(owned: Lane, run_id: str, rows: list[NodeRun]) -> None:
    aggregate = owned.aggregate(run_id)
    aggregate.whole = True
    for row in rows:
        aggregate.rows[NodeRun, row.id] = row
        owned.grew(run_id, 1_000)


def test_ended_iterations_of_a_long_run_leave_memory_and_are_read_again() -> None:
    owned = lane(Limits(aggregate_bytes_max=50_000))
    fill(owned, RUN, [node_run(0, "pending"), *(node_run(number) for number in range(1, 200))])
    owned.shrink(SPECS)
    aggregate = owned.aggregates[RUN]
    assert len(aggregate.rows) == 1 + ENDED_ROWS_KEPT
    view = View(aggregate, {}, SPECS, set(), "me", "t")
    assert [row.id for row in view.live(NodeRun)] == ["node 0"]
    assert view.get(NodeRun, "node 199") is not None
    assert view.get(NodeRun, "node 200") is None  # Never made.
    with pytest.raises(Missing):
        view.get(NodeRun, "node 1")


def test_a_lane_keeps_no_more_bytes_than_it_may() -> None:
    owned = lane(Limits(lane_bytes_max=100_000))
    for number in range(50):
        fill(owned, f"run {number}", [node_run(each) for each in range(10)])
        owned.shrink(SPECS)
    assert list(owned.aggregates) == [f"run {number}" for number in range(40, 50)]
