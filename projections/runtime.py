"""What is known about runs: run header, node runs and marks, and their tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from infra.db import Instant, Json, TableSpec, metadata, table_spec, uuid_column
from schemas.messages import JsonObject
from schemas.runtime import NODE_ENDED

UNLISTED, READY, LEASED = 0, 1, 2
"""`NodeRun.listed`."""


@dataclass(frozen=True)
class Run:
    """The header of a run. `active`: node runs queued or running; `pending`: waiting for time or people.

    `compensable`, `lost` and `sink` head linked lists through NodeRun.below_compensable (the first two) and
    NodeRun.below_sink, so that remembering the order of completion costs the same however long the run is.
    `lost`: steps whose lease ran out while the run unwound; what they did is compensated like a failure.
    """

    id: str
    tenant_id: str
    seq: int
    status: str
    mode: str
    workflow_id: str
    workflow_version_id: str
    app_id: str | None
    app_version_id: str | None
    session_id: str | None
    inputs: JsonObject
    initial_node: str | None
    state: JsonObject
    output: Any
    output_text: str | None
    end_output: JsonObject | None
    error: JsonObject | None
    allowance: int
    active: int
    pending: int
    compensable: str | None
    lost: str | None
    sink: str | None
    compensating: str | None
    compensate_first: str | None
    compensates: bool
    compensation_failed: bool
    compensations: int
    correlation_id: str
    traceparent: str
    actor: str
    created_at: float
    started_at: float
    ended_at: float
    kind: str
    origin: JsonObject | None


@dataclass(frozen=True)
class NodeRun:
    """One node in one iteration. The lease columns are operational: who executes it, until when.

    `ready`: it may be claimed. `lease_token` rises with every attempt and every lost lease. `listed`: who has to find
    it: nobody (UNLISTED), executors (READY) or the sweepers of leases (LEASED). Only this is indexed, so that a step
    that its lane's owner executes at once changes no index (ADR 012).
    """

    id: str
    run_id: str
    tenant_id: str
    lane: int
    node_id: str
    path: str
    iteration: str
    node_type: str
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
    below_compensable: str | None
    below_sink: str | None
    lease_token: int
    ready: bool
    timeout_seconds: float
    due_at: float
    created_at: float
    started_at: float
    ended_at: float
    leased_by: str | None
    lease_until: float
    deadline_at: float
    result: bytes | None
    listed: int


@dataclass(frozen=True)
class Mark:
    """A counter of a run that outlives one node run.

    Of a node with several incoming edges: how many are resolved and taken; note `passed` once it is decided,
    `early` once a join has completed before all of them were resolved.
    Of a loop's iteration: the same for its back edges. Of a loop instance: note lists the exits taken, or
    `ended`. Of a loop's node that others read: note is the id of its last completed node run.
    """

    id: str
    run_id: str
    tenant_id: str
    resolved: int
    taken: int
    note: str


RUN_TABLE = sa.Table(
    "run",
    metadata,
    uuid_column("id", primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("mode", sa.Text, nullable=False),
    uuid_column("workflow_id", nullable=False),
    uuid_column("workflow_version_id", nullable=False),
    sa.Column("app_id", sa.Text),
    sa.Column("app_version_id", sa.Text),
    sa.Column("session_id", sa.Text),
    sa.Column("inputs", Json),
    sa.Column("initial_node", sa.Text),
    sa.Column("state", Json),
    sa.Column("output", Json),
    sa.Column("output_text", sa.Text),
    sa.Column("end_output", Json),
    sa.Column("error", Json),
    sa.Column("allowance", sa.Integer, nullable=False),
    sa.Column("active", sa.Integer, nullable=False),
    sa.Column("pending", sa.Integer, nullable=False),
    uuid_column("compensable"),
    uuid_column("lost"),
    uuid_column("sink"),
    uuid_column("compensating"),
    uuid_column("compensate_first"),
    sa.Column("compensates", sa.Boolean, nullable=False),
    sa.Column("compensation_failed", sa.Boolean, nullable=False),
    sa.Column("compensations", sa.Integer, nullable=False),
    sa.Column("correlation_id", sa.Text, nullable=False),
    sa.Column("traceparent", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("created_at", Instant),
    sa.Column("started_at", Instant),
    sa.Column("ended_at", Instant),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("origin", Json),
)

NODE_RUN_TABLE = sa.Table(
    "node_run",
    metadata,
    uuid_column("id", primary_key=True),
    uuid_column("run_id", nullable=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("lane", sa.SmallInteger, nullable=False),
    sa.Column("node_id", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("iteration", sa.Text, nullable=False),
    sa.Column("node_type", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("seq", sa.Integer, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("requeues", sa.Integer, nullable=False),
    sa.Column("input", Json),
    sa.Column("output", Json),
    sa.Column("output_text", sa.Text),
    sa.Column("error", Json),
    sa.Column("route", sa.Text),
    sa.Column("worker", sa.Text, nullable=False),
    uuid_column("below_compensable"),
    uuid_column("below_sink"),
    sa.Column("lease_token", sa.Integer, nullable=False),
    sa.Column("ready", sa.Boolean, nullable=False),
    sa.Column("timeout_seconds", sa.Double, nullable=False),
    sa.Column("due_at", Instant),
    sa.Column("created_at", Instant),
    sa.Column("started_at", Instant),
    sa.Column("ended_at", Instant),
    sa.Column("leased_by", sa.Text),
    sa.Column("lease_until", Instant),
    sa.Column("deadline_at", Instant),
    sa.Column("result", sa.LargeBinary),
    sa.Column("listed", sa.SmallInteger, nullable=False),
)

MARK_TABLE = sa.Table(
    "run_mark",
    metadata,
    uuid_column("id", primary_key=True),
    uuid_column("run_id", nullable=False),
    sa.Column("tenant_id", sa.Text, nullable=False),
    sa.Column("resolved", sa.Integer, nullable=False),
    sa.Column("taken", sa.Integer, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)

RUNS = table_spec(
    RUN_TABLE,
    Run,
    mutable=[
        "seq",
        "status",
        "state",
        "output",
        "output_text",
        "end_output",
        "error",
        "allowance",
        "active",
        "pending",
        "compensable",
        "lost",
        "sink",
        "compensating",
        "compensate_first",
        "compensates",
        "compensation_failed",
        "compensations",
        "started_at",
        "ended_at",
    ],
)
NODE_RUNS = table_spec(
    NODE_RUN_TABLE,
    NodeRun,
    mutable=[
        "kind",
        "seq",
        "status",
        "attempt",
        "requeues",
        "input",
        "output",
        "output_text",
        "error",
        "route",
        "worker",
        "below_compensable",
        "below_sink",
        "lease_token",
        "ready",
        "timeout_seconds",
        "due_at",
        "started_at",
        "ended_at",
        "leased_by",
        "lease_until",
        "deadline_at",
        "result",
        "listed",
    ],
    parent="run_id",
    live=lambda node: node.status not in NODE_ENDED,
    live_sql="status IN ('queued', 'running', 'pending')",
    volatile=lambda node: node.ready and node.status == "queued",  # What is claimed by hand changes by events only.
    operational=("leased_by", "lease_until", "deadline_at", "result", "started_at", "listed"),
)
MARKS = table_spec(MARK_TABLE, Mark, mutable=("resolved", "taken", "note"), parent="run_id", whole=True)
TABLES: tuple[TableSpec, ...] = (RUNS, NODE_RUNS, MARKS)
