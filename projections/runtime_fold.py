"""How the events of a run change what is known about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, assert_never, cast

from infra.db import changed
from projections.runtime import BY_HAND, LEASED, READY, UNLISTED, Mark, NodeRun, Run
from schemas import runtime as wire
from schemas.decider import Recorded, Rows
from schemas.messages import JsonObject

Happened = Recorded[wire.RuntimeEvent]


def evolve(rows: Rows, recorded: Happened) -> Iterable[Run | NodeRun | Mark]:
    """Fold one event of a run: the rows it changes, the header always among them."""
    event: Any = recorded.event
    kind = type(event)
    fold = NODE_FOLDS.get(kind)
    if fold is None:
        return [_evolve_run(rows, event, recorded)]
    run: Any = rows.get(Run, recorded.aggregate_id)
    creates = getattr(event, "node_id", "")  # Only an event that makes a node run names its node.
    before = None if creates else rows.get(NodeRun, event.node_run_id)
    node = fold(before or _fresh(run, event, recorded), run, event, recorded)
    moved: list[Run | NodeRun | Mark] = [_moved(run, before, node, recorded), node]
    if event.marks:
        moved.extend(Mark(m.id, run.id, run.tenant_id, m.resolved, m.taken, m.note) for m in event.marks)
    return moved


_WEIGHT = {"queued": (1, 0), "running": (1, 0), "pending": (0, 1)}
_IDLE = (0, 0)


def _moved(run: Run, before: NodeRun | None, node: NodeRun, recorded: Happened) -> Run:
    """The header after an event of a node run: counters, the status that follows, and what an end leaves behind."""
    event: Any = recorded.event
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
    if kind is wire.NodeWaiting and event.on == "run":
        fields["children"] = run.children + 1
    elif kind is wire.NodeCompleted:
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


def _compensating(rows: Rows, run: Run, event: wire.RunCompensating) -> Run:
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
    listed=UNLISTED,
    wait_on=None,
    wait_id=None,
)
_UNLEASED: JsonObject = {
    "leased_by": None, "lease_until": 0.0, "deadline_at": 0.0, "result": None, "listed": UNLISTED
}  # fmt: skip
_CLAIMABLE: JsonObject = {**_UNLEASED, "listed": READY}


def _fresh(run: Run, event: wire.NodeScheduled, recorded: Happened) -> NodeRun:
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


def _scheduled(before: NodeRun, run: Run, event: wire.NodeScheduled, recorded: Happened) -> NodeRun:
    return changed(
        before,
        kind=event.kind,
        input=event.input,
        ready=event.ready,
        listed=READY if event.ready else _of_its_turn(run),
        lease_token=1 if event.ready else 0,
        timeout_seconds=event.timeout_seconds,
    )


def _waiting(before: NodeRun, run: Run, event: wire.NodeWaiting, recorded: Happened) -> NodeRun:
    return changed(
        before,
        seq=recorded.seq,
        status="pending",
        input=before.input if event.input is None else event.input,
        due_at=event.due_at,
        wait_on=event.on,
        wait_id=event.wait_id,
        listed=UNLISTED,
    )


def _dispatched(before: NodeRun, run: Run, event: wire.NodeDispatched, recorded: Happened) -> NodeRun:
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
        wait_on=None,
        wait_id=None,
        **_CLAIMABLE,
    )


def _queued(before: NodeRun, run: Run, event: wire.NodeQueued, recorded: Happened) -> NodeRun:
    return changed(
        before,
        seq=recorded.seq,
        status="queued",
        ready=False,
        attempt=event.attempt,
        due_at=0.0,
        wait_on=None,
        wait_id=None,
        **{**_UNLEASED, "listed": _of_its_turn(run)},
    )


def _of_its_turn(run: Run) -> int:
    """Who has to find a node run that is queued for its turn."""
    return BY_HAND if run.mode == "manual" else UNLISTED


def _started(before: NodeRun, run: Run, event: wire.NodeStarted, recorded: Happened) -> NodeRun:
    deadline_at = recorded.at + event.timeout_seconds if event.timeout_seconds else 0.0
    return changed(
        before,
        seq=recorded.seq,
        status="running",
        input=before.input if event.input is None else event.input,
        worker=event.worker,
        lease_token=event.lease_token,
        timeout_seconds=event.timeout_seconds,
        started_at=recorded.at,
        leased_by=event.worker,
        lease_until=_lease_until(event.lease_seconds, deadline_at, recorded),
        deadline_at=deadline_at,
        listed=LEASED,
    )


def _renewed(before: NodeRun, run: Run, event: wire.LeaseRenewed, recorded: Happened) -> NodeRun:
    lease_until = _lease_until(event.lease_seconds, before.deadline_at, recorded)
    return changed(before, seq=recorded.seq, lease_until=lease_until)


def _lease_until(seconds: int, deadline_at: float, recorded: Happened) -> float:
    until = recorded.at + seconds
    return min(until, deadline_at) if deadline_at else until


def _completed(before: NodeRun, run: Run, event: wire.NodeCompleted, recorded: Happened) -> NodeRun:
    return _ended(
        before,
        "completed",
        recorded,
        event,
        error=event.error.stored() if event.error else None,
        route=event.route,
        below_compensable=run.compensable if event.compensable else None,
        below_sink=run.sink if event.sink else None,
    )


def _failed(before: NodeRun, run: Run, event: wire.NodeFailed, recorded: Happened) -> NodeRun:
    return _ended(
        before,
        "failed",
        recorded,
        event,
        error=event.error.stored(),
        below_compensable=run.lost if event.compensable else None,
    )


def _retry_scheduled(before: NodeRun, run: Run, event: wire.NodeRetryScheduled, recorded: Happened) -> NodeRun:
    return changed(
        before,
        seq=recorded.seq,
        status="queued",
        ready=False,
        attempt=event.attempt + 1,
        error=event.error.stored(),
        due_at=0.0,
        wait_on=None,
        wait_id=None,
        **_UNLEASED,
    )


def _requeued(before: NodeRun, run: Run, event: wire.StepRequeued, recorded: Happened) -> NodeRun:
    fields = _CLAIMABLE if before.ready else _UNLEASED
    if not before.ready and not before.wait_on:
        fields = fields | {"listed": _of_its_turn(run)}
    return changed(
        before,
        seq=recorded.seq,
        status="pending" if before.wait_on else "queued",
        lease_token=event.lease_token,
        requeues=event.requeues,
        **fields,
    )


def _skipped(before: NodeRun, run: Run, event: wire.NodeSkipped, recorded: Happened) -> NodeRun:
    return changed(before, seq=recorded.seq, status="skipped", ready=False, ended_at=recorded.at, **_UNLEASED)


def _cancelled(before: NodeRun, run: Run, event: wire.NodeCancelled, recorded: Happened) -> NodeRun:
    return changed(before, seq=recorded.seq, status="cancelled", ready=False, ended_at=recorded.at, **_UNLEASED)


NODE_FOLDS: Mapping[type[Any], Callable[[NodeRun, Run, Any, Recorded[Any]], NodeRun]] = {
    wire.NodeScheduled: _scheduled,
    wire.NodeWaiting: _waiting,
    wire.NodeDispatched: _dispatched,
    wire.NodeQueued: _queued,
    wire.NodeStarted: _started,
    wire.LeaseRenewed: _renewed,
    wire.NodeCompleted: _completed,
    wire.NodeFailed: _failed,
    wire.NodeRetryScheduled: _retry_scheduled,
    wire.StepRequeued: _requeued,
    wire.NodeSkipped: _skipped,
    wire.NodeCancelled: _cancelled,
}
"""Every one of `wire.NodeRunEvent`, by type and not by `match`: pydantic's `isinstance` costs more than the fold."""


def _ended(
    before: NodeRun,
    status: str,
    recorded: Happened,
    event: wire.NodeCompleted | wire.NodeFailed,
    **fields: Any,
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


def _created(event: wire.RunCreated, recorded: Happened) -> Run:
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
        kind=event.kind,
        origin=event.origin.model_dump(exclude_defaults=True) if event.origin else None,
        children=0,
        paused=False,
        parent_paused=False,
    )


def _evolve_run(rows: Rows, event: wire.RunEvent, recorded: Happened) -> Run:
    """The header after an event that is of no node run."""
    if isinstance(event, wire.RunCreated):
        return _created(event, recorded)
    run = changed(cast(Run, rows.get(Run, recorded.aggregate_id)), seq=recorded.seq)
    match event:
        case wire.StepsAllowed():
            return changed(run, allowance=event.allowance)
        case wire.RunPaused() | wire.RunResumed():
            flag = "paused" if event.by == "self" else "parent_paused"
            return changed(run, **{flag: isinstance(event, wire.RunPaused)})
        case wire.RunFailing():
            first = event.node_run_id if event.compensable else None
            return changed(run, status="failing", error=event.error.stored(), compensate_first=first)
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
            return changed(run, status="failed", error=event.error.stored(), ended_at=recorded.at)
        case wire.RunCancelled():
            return changed(run, status="cancelled", ended_at=recorded.at)
        case wire.RunCompensated():
            return changed(run, status="compensated", error=event.error.stored(), ended_at=recorded.at)
        case wire.RunCompensating():
            return _compensating(rows, run, event)
        case _:
            assert_never(event)
