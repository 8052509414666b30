"""What is known about runs: run header, node runs and marks, and their tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infra.db import Moment, Once, Operational, Small, TableSpec, Uuid, index, table
from schemas.messages import JsonObject
from schemas.runtime import NODE_ENDED

UNLISTED, READY, LEASED, BY_HAND = 0, 1, 2, 3
"""`NodeRun.listed`."""


@dataclass(frozen=True)
class Run:
    """The header of a run. `active`: node runs queued or running; `pending`: waiting for time or people.

    `compensable`, `lost` and `sink` head linked lists through NodeRun.below_compensable (the first two) and
    NodeRun.below_sink, so that remembering the order of completion costs the same however long the run is.
    `lost`: steps whose lease ran out while the run unwound; what they did is compensated like a failure.
    `children`: child runs it has started.
    """

    id: Uuid
    tenant_id: str
    seq: int
    status: str
    mode: Once[str]
    workflow_id: Once[Uuid]
    workflow_version_id: Once[Uuid]
    app_id: Once[str | None]
    app_version_id: Once[str | None]
    session_id: Once[str | None]
    inputs: Once[JsonObject]
    initial_node: Once[str | None]
    state: JsonObject
    output: Any
    output_text: str | None
    end_output: JsonObject | None
    error: JsonObject | None
    allowance: int
    active: int
    pending: int
    compensable: Uuid | None
    lost: Uuid | None
    sink: Uuid | None
    compensating: Uuid | None
    compensate_first: Uuid | None
    compensates: bool
    compensation_failed: bool
    compensations: int
    correlation_id: Once[str]
    traceparent: Once[str]
    actor: Once[str]
    created_at: Once[Moment]
    started_at: Moment
    ended_at: Moment
    kind: Once[str]
    origin: Once[JsonObject | None]
    children: int
    paused: bool
    parent_paused: bool

    @property
    def is_held(self) -> bool:
        """Whether a pause keeps it from starting anything."""
        return self.paused or self.parent_paused


@dataclass(frozen=True)
class NodeRun:
    """One node in one iteration. The lease columns are operational: who executes it, until when.

    `ready`: it may be claimed. `lease_token` rises with every attempt and every lost lease. `listed`: who has to find
    it: nobody (UNLISTED), executors (READY), the sweepers of leases (LEASED) or callers who take a manual run's steps
    (BY_HAND). Only this is indexed, so that a step that its lane's owner executes at once changes no index (ADR 012).
    `wait_on`: what it waits for while it is pending (`schemas.runtime.WaitOn`), `wait_id`: which one; both stay when
    the node run has ended.
    """

    id: Uuid
    run_id: Uuid
    tenant_id: str
    lane: Once[Small]
    node_id: Once[str]
    path: Once[str]
    iteration: Once[str]
    node_type: Once[str]
    kind: str
    seq: int
    status: str
    attempt: int
    requeues: int
    input: JsonObject | None
    output: JsonObject | None
    output_text: str | None
    error: JsonObject | None
    route: str | None
    worker: str
    below_compensable: Uuid | None
    below_sink: Uuid | None
    lease_token: int
    ready: bool
    timeout_seconds: float
    due_at: Moment
    created_at: Once[Moment]
    started_at: Operational[Moment]
    ended_at: Moment
    leased_by: Operational[str | None]
    lease_until: Operational[Moment]
    deadline_at: Operational[Moment]
    result: Operational[bytes | None]
    listed: Operational[Small]
    wait_on: str | None
    wait_id: Uuid | None


@dataclass(frozen=True)
class Mark:
    """A counter of a run that outlives one node run.

    Of a node with several incoming edges: how many are resolved and taken; note `passed` once it is decided,
    `early` once a join has completed before all of them were resolved.
    Of a loop's iteration: the same for its back edges. Of a loop instance: note lists the exits taken, or
    `ended`. Of a loop's node that others read: note is the id of its last node run that
    completed or failed.
    """

    id: Uuid
    run_id: Uuid
    tenant_id: str
    resolved: int
    taken: int
    note: str


RUNS = table(
    Run,
    "run",
    index("run_newest", "tenant_id", "created_at", "id"),
    index("run_of_workflow", "tenant_id", "workflow_id", "created_at", "id"),
    index("run_of_session", "tenant_id", "session_id", "created_at", "id", where="session_id IS NOT NULL"),
    index("run_ended", "kind", "ended_at", where="ended_at IS NOT NULL"),
    storage="fillfactor = 70",
)
NODE_RUNS = table(
    NodeRun,
    "node_run",
    index("node_run_of", "run_id"),
    index("node_run_ready", "kind", "tenant_id", "created_at", where=f"listed = {READY}"),
    index("node_run_leased", "lane", where=f"listed = {LEASED}"),
    index("node_run_by_hand", "created_at", where=f"listed = {BY_HAND}"),
    index("node_run_by_hand_of", "tenant_id", "created_at", where=f"listed = {BY_HAND}"),
    parent="run_id",
    live=lambda node: node.status not in NODE_ENDED,
    live_sql="status IN ('queued', 'running', 'pending')",
    volatile=lambda node: node.ready and node.status == "queued",  # What is claimed by hand changes by events only.
    storage="fillfactor = 50",
)
MARKS = table(Mark, "run_mark", index("run_mark_of", "run_id"), parent="run_id", whole=True, storage="fillfactor = 70")
TABLES: tuple[TableSpec, ...] = (RUNS, NODE_RUNS, MARKS)
