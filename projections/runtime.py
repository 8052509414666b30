"""What is known about runs: run header, node runs, marks, folded from their events; and how they are shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import sqlalchemy as sa

from infra.db import Instant, Json, TableSpec, changed, instant, metadata, table_spec, uuid_column
from schemas import runtime as wire
from schemas.messages import JsonObject
from schemas.runtime import NODE_ENDED


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


@dataclass(frozen=True)
class NodeRun:
    """One node in one iteration. The lease columns are operational: who executes it, until when.

    `ready`: it may be claimed. `lease_token` rises with every attempt and every lost lease.
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


@dataclass(frozen=True, slots=True)
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
    ],
    parent="run_id",
    live=lambda node: node.status not in NODE_ENDED,
    live_sql="status IN ('queued', 'running', 'pending')",
    volatile=lambda node: node.ready and node.status not in NODE_ENDED,
    operational=("leased_by", "lease_until", "deadline_at", "result", "started_at"),
)
MARKS = table_spec(MARK_TABLE, Mark, mutable=("resolved", "taken", "note"), parent="run_id", whole=True)
TABLES: tuple[TableSpec, ...] = (RUNS, NODE_RUNS, MARKS)


def evolve(rows: Any, recorded: Any) -> Iterable[Any]:
    """Fold one event of a run: the rows it changes, the header always among them."""
    event = recorded.event
    kind = type(event)
    if kind is wire.RunCreated:
        return [_created(event, recorded)]
    run = cast(Run, rows.get(Run, recorded.aggregate_id))
    fold = _NODE_FOLDS.get(kind)
    if fold is None:
        run = changed(run, seq=recorded.seq)
        return [_compensating(rows, run, event) if kind is wire.RunCompensating else _evolve_run(run, event, recorded)]
    creates = getattr(event, "node_id", "")  # Only an event that makes a node run names its node.
    before = None if creates else rows.get(NodeRun, event.node_run_id)
    node = fold(before or _fresh(run, event, recorded), run, event, recorded)
    moved: list[Any] = [_moved(run, before, node, recorded), node]
    moved.extend(Mark(m.id, run.id, run.tenant_id, m.resolved, m.taken, m.note) for m in event.marks)
    return moved


_WEIGHT = {"queued": (1, 0), "running": (1, 0), "pending": (0, 1)}
_IDLE = (0, 0)


def _moved(run: Run, before: NodeRun | None, node: NodeRun, recorded: Any) -> Run:
    """The header after an event of a node run: counters, the status that follows, and what an end leaves behind."""
    event = recorded.event
    was = _WEIGHT.get(before.status, _IDLE) if before else _IDLE
    now = _WEIGHT.get(node.status, _IDLE)
    active = run.active + now[0] - was[0]
    pending = run.pending + now[1] - was[1]
    fields: JsonObject = {"seq": recorded.seq, "active": active, "pending": pending}
    if run.status in ("queued", "running", "waiting"):
        fields["status"] = "waiting" if pending and not active else "running"
    if not run.started_at:
        fields["started_at"] = recorded.at
    kind = type(event)
    if kind is wire.NodeCompleted:
        _remember(run, node, event, fields)
    elif kind is wire.NodeFailed:
        if "/" in node.path:
            fields["compensation_failed"] = True
        elif event.compensable:
            fields["lost"] = node.id
    return changed(run, **fields)


def _remember(run: Run, node: NodeRun, event: wire.NodeCompleted, fields: JsonObject) -> None:
    """State, outputs, and the lists of completion."""
    updates = event.output if node.node_type == "start" and not event.error else event.state_updates
    if updates:
        fields["state"] = {**run.state, **updates}
    if node.node_type == "end":
        fields["end_output"] = {**(run.end_output or {}), **event.output}
    elif node.node_type == "answer":
        fields["output_text"] = event.output_text
    if event.sink:
        fields["sink"] = node.id
    if event.compensable:
        fields["compensable"] = node.id


def _compensating(rows: Any, run: Run, event: wire.RunCompensating) -> Run:
    lost, compensable = run.lost, run.compensable
    if event.of != run.compensate_first:
        below = cast(NodeRun, rows.get(NodeRun, event.of)).below_compensable
        lost, compensable = (below, compensable) if event.of == lost else (lost, below)
    return changed(
        run,
        status="compensating" if run.status == "failing" else run.status,
        compensating=event.node_run_id,
        compensate_first=None,
        compensable=compensable,
        lost=lost,
        compensations=run.compensations + 1,
    )


_BLANK = NodeRun(
    id="",
    run_id="",
    tenant_id="",
    lane=0,
    node_id="",
    path="",
    iteration="",
    node_type="",
    kind="",
    seq=0,
    status="queued",
    attempt=1,
    requeues=0,
    input=None,
    output=None,
    output_text=None,
    error=None,
    route=None,
    worker="",
    below_compensable=None,
    below_sink=None,
    lease_token=0,
    ready=False,
    timeout_seconds=0.0,
    due_at=0.0,
    created_at=0.0,
    started_at=0.0,
    ended_at=0.0,
    leased_by=None,
    lease_until=0.0,
    deadline_at=0.0,
    result=None,
)
_UNLEASED: JsonObject = {"leased_by": None, "lease_until": 0.0, "deadline_at": 0.0, "result": None}


def _fresh(run: Run, event: Any, recorded: Any) -> NodeRun:
    return changed(
        _BLANK,
        id=event.node_run_id,
        run_id=run.id,
        tenant_id=run.tenant_id,
        lane=recorded.lane,
        node_id=event.node_id,
        path=event.path or event.node_id,
        iteration=event.iteration,
        node_type=event.node_type,
        seq=recorded.seq,
        created_at=recorded.at,
    )


def _scheduled(before: NodeRun, run: Run, event: wire.NodeScheduled, recorded: Any) -> NodeRun:
    return changed(
        before,
        kind=event.kind,
        status="pending" if event.due_at else "queued",
        input=event.input,
        ready=event.ready,
        lease_token=1 if event.ready else 0,
        due_at=event.due_at,
        timeout_seconds=event.timeout_seconds,
    )


def _dispatched(before: NodeRun, run: Run, event: wire.NodeDispatched, recorded: Any) -> NodeRun:
    return changed(
        before,
        seq=recorded.seq,
        status="queued",
        kind=event.kind,
        input=event.input,
        ready=True,
        attempt=event.attempt,
        requeues=0,
        lease_token=event.lease_token,
        timeout_seconds=event.timeout_seconds,
        due_at=0.0,
        started_at=0.0,
        **_UNLEASED,
    )


def _queued(before: NodeRun, run: Run, event: wire.NodeQueued, recorded: Any) -> NodeRun:
    return changed(before, seq=recorded.seq, status="queued", attempt=event.attempt, due_at=0.0)


def _started(before: NodeRun, run: Run, event: wire.NodeStarted, recorded: Any) -> NodeRun:
    return changed(before, seq=recorded.seq, status="running", worker=event.worker, started_at=recorded.at)


def _completed(before: NodeRun, run: Run, event: wire.NodeCompleted, recorded: Any) -> NodeRun:
    return _ended(
        before,
        "completed",
        recorded,
        event,
        error=event.error.model_dump() if event.error else None,
        route=event.route,
        below_compensable=run.compensable if event.compensable else None,
        below_sink=run.sink if event.sink else None,
    )


def _failed(before: NodeRun, run: Run, event: wire.NodeFailed, recorded: Any) -> NodeRun:
    return _ended(
        before,
        "failed",
        recorded,
        event,
        error=event.error.model_dump(),
        below_compensable=run.lost if event.compensable else None,
    )


def _retry_scheduled(before: NodeRun, run: Run, event: wire.NodeRetryScheduled, recorded: Any) -> NodeRun:
    return changed(
        before,
        seq=recorded.seq,
        status="pending",
        ready=False,
        attempt=event.attempt + 1,
        error=event.error.model_dump(),
        due_at=event.due_at,
        **_UNLEASED,
    )


def _requeued(before: NodeRun, run: Run, event: wire.StepRequeued, recorded: Any) -> NodeRun:
    return changed(before, seq=recorded.seq, lease_token=event.lease_token, requeues=event.requeues, **_UNLEASED)


def _skipped(before: NodeRun, run: Run, event: wire.NodeSkipped, recorded: Any) -> NodeRun:
    return changed(before, seq=recorded.seq, status="skipped", ended_at=recorded.at)


def _cancelled(before: NodeRun, run: Run, event: wire.NodeCancelled, recorded: Any) -> NodeRun:
    return changed(before, seq=recorded.seq, status="cancelled", ready=False, ended_at=recorded.at, **_UNLEASED)


_NODE_FOLDS: dict[type[Any], Any] = {
    wire.NodeScheduled: _scheduled,
    wire.NodeDispatched: _dispatched,
    wire.NodeQueued: _queued,
    wire.NodeStarted: _started,
    wire.NodeCompleted: _completed,
    wire.NodeFailed: _failed,
    wire.NodeRetryScheduled: _retry_scheduled,
    wire.StepRequeued: _requeued,
    wire.NodeSkipped: _skipped,
    wire.NodeCancelled: _cancelled,
}
"""By type and not by `match`: pydantic's `isinstance` costs more than the fold itself."""


def _ended(
    before: NodeRun, status: str, recorded: Any, event: wire.NodeCompleted | wire.NodeFailed, **fields: Any
) -> NodeRun:
    return changed(
        before,
        seq=recorded.seq,
        status=status,
        ready=False,
        attempt=event.attempt,
        output=event.output,
        output_text=event.output_text,
        worker=event.worker or before.worker,
        started_at=event.started_at or recorded.at,
        ended_at=event.ended_at or recorded.at,
        **_UNLEASED,
        **fields,
    )


def _created(event: wire.RunCreated, recorded: Any) -> Run:
    return Run(
        id=recorded.aggregate_id,
        tenant_id=recorded.tenant_id,
        seq=recorded.seq,
        status="queued",
        mode=event.mode,
        workflow_id=event.workflow_id,
        workflow_version_id=event.workflow_version_id,
        app_id=event.app_id,
        app_version_id=event.app_version_id,
        session_id=event.session_id,
        inputs=event.inputs,
        initial_node=event.initial_node,
        state={},
        output=None,
        output_text=None,
        end_output=None,
        error=None,
        allowance=0,
        active=0,
        pending=0,
        compensable=None,
        lost=None,
        sink=None,
        compensating=None,
        compensate_first=None,
        compensates=True,
        compensation_failed=False,
        compensations=0,
        correlation_id=recorded.correlation_id,
        traceparent=recorded.traceparent,
        actor=recorded.actor,
        created_at=recorded.at,
        started_at=0.0,
        ended_at=0.0,
    )


def _evolve_run(run: Run, event: Any, recorded: Any) -> Run:
    match event:
        case wire.StepsAllowed():
            return changed(run, allowance=event.allowance)
        case wire.RunFailing():
            first = event.node_run_id if event.compensable else None
            return changed(run, status="failing", error=event.error.model_dump(), compensate_first=first)
        case wire.RunCancelling():
            return changed(run, status="cancelling", compensates=event.compensate)
        case wire.RunCompleted():
            return changed(
                run,
                status="completed",
                output=event.output,
                output_text=event.output_text,
                ended_at=recorded.at,
            )
        case wire.RunFailed():
            return changed(run, status="failed", error=event.error.model_dump(), ended_at=recorded.at)
        case wire.RunCancelled():
            return changed(run, status="cancelled", ended_at=recorded.at)
        case wire.RunCompensated():
            return changed(run, status="compensated", error=event.error.model_dump(), ended_at=recorded.at)
        case _:
            raise TypeError(f"{event.type} is not an event of a run")


def shown_run(run: Run) -> JsonObject:
    """A run as the API shows it."""
    return {
        "id": run.id,
        "tenant_id": run.tenant_id,
        "status": run.status,
        "mode": run.mode,
        "workflow_id": run.workflow_id,
        "workflow_version_id": run.workflow_version_id,
        "app_id": run.app_id,
        "app_version_id": run.app_version_id,
        "session_id": run.session_id,
        "inputs": run.inputs,
        "state_json": run.state,
        "output_json": run.output,
        "output_text": run.output_text,
        "error": run.error,
        "seq": run.seq,
        "trace_id": run.traceparent[3:35] or None,
        "created_at": instant(run.created_at),
        "started_at": instant(run.started_at),
        "ended_at": instant(run.ended_at),
    }


def shown_node_run(node: NodeRun) -> JsonObject:
    """A node run as the API shows it; a queued one that somebody holds is shown as running."""
    held = node.status == "queued" and node.leased_by is not None
    return {
        "id": node.id,
        "run_id": node.run_id,
        "tenant_id": node.tenant_id,
        "node_id": node.node_id,
        "path": node.path,
        "iteration": node.iteration,
        "node_type": node.node_type,
        "status": "running" if held else node.status,
        "attempt": node.attempt,
        "seq": node.seq,
        "input_json": node.input,
        "output_json": node.output,
        "output_text": node.output_text,
        "error": node.error,
        "route": node.route,
        "worker_key": node.leased_by or node.worker or None,
        "due_at": instant(node.due_at),
        "lease_expire_time": instant(node.lease_until),
        "created_at": instant(node.created_at),
        "started_at": instant(node.started_at),
        "ended_at": instant(node.ended_at),
    }
