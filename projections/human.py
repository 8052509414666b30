"""What is known about human tasks, folded from their events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, assert_never, cast

from infra.db import Moment, Once, TableSpec, Uuid, index, table
from schemas import human as wire
from schemas.decider import Recorded, Rows
from schemas.messages import JsonObject


@dataclass(frozen=True)
class HumanTask:
    """`answer_to`: who awaits its end. A claim stays when the task ends: it says who had it."""

    id: Uuid
    tenant_id: str
    seq: int
    task_type: Once[str]
    title: Once[str]
    description: Once[str]
    status: str
    run_id: Once[str | None]
    node_run_id: Once[str | None]
    assigned_to: str | None
    request_payload: Once[Any]
    request_hash: Once[str]
    response_payload: Any
    require_claim: Once[bool]
    require_hash: Once[bool]
    four_eyes: Once[bool]
    requested_by: Once[str]
    timeout_seconds: Once[float | None]
    due_at: Moment
    on_timeout: Once[str]
    default_output: Once[JsonObject | None]
    escalate_to: Once[str | None]
    escalated_from: str | None
    escalated_at: Moment
    claimed_by: str | None
    claimed_at: Moment
    completed_by: str
    cancel_reason: str
    late_seconds: float
    answer_to: Once[str]
    created_at: Once[Moment]
    updated_at: Moment
    ended_at: Moment


TASKS = table(
    HumanTask,
    "human_task",
    index("human_task_newest", "tenant_id", "created_at", "id"),
    index("human_task_of_status", "tenant_id", "status", "created_at", "id"),
    index("human_task_of_assignee", "tenant_id", "assigned_to", "created_at", "id", where="assigned_to IS NOT NULL"),
    index("human_task_of_run", "tenant_id", "run_id", "created_at", "id", where="run_id IS NOT NULL"),
    index("human_task_ended", "ended_at", where="ended_at IS NOT NULL"),
)
TABLES: tuple[TableSpec, ...] = (TASKS,)


def evolve(rows: Rows, recorded: Recorded[wire.HumanEvent]) -> Iterable[HumanTask]:
    """Fold one event of a task."""
    event = recorded.event
    if isinstance(event, wire.TaskCreated):
        return [_created(event, recorded)]
    known = cast(HumanTask, rows.get(HumanTask, recorded.aggregate_id))
    return [_after(replace(known, seq=recorded.seq, updated_at=recorded.at), event, recorded)]


def _after(
    task: HumanTask,
    event: wire.TaskClaimed
    | wire.TaskReleased
    | wire.TaskAssigned
    | wire.TaskCompleted
    | wire.TaskCancelled
    | wire.TaskExpired
    | wire.TaskEscalated,
    recorded: Recorded[wire.HumanEvent],
) -> HumanTask:
    """The task, already at this event's seq, with what it changes."""
    at = recorded.at
    match event:
        case wire.TaskClaimed():
            return replace(task, status="claimed", claimed_by=event.claimed_by, claimed_at=at)
        case wire.TaskReleased():
            return _unclaimed(task)
        case wire.TaskAssigned():
            stays = task.claimed_by in (None, event.assigned_to)
            return replace(task if stays else _unclaimed(task), assigned_to=event.assigned_to)
        case wire.TaskCompleted():
            ended = replace(task, status=event.status, ended_at=at, completed_by=event.completed_by)
            return replace(ended, response_payload=event.response_payload)
        case wire.TaskCancelled():
            return replace(task, status="cancelled", ended_at=at, cancel_reason=event.reason)
        case wire.TaskExpired():
            return replace(task, status="expired", ended_at=at, late_seconds=event.late_seconds)
        case wire.TaskEscalated():
            late = replace(_unclaimed(task), due_at=0.0, late_seconds=event.late_seconds)
            return replace(late, assigned_to=event.assigned_to, escalated_from=task.assigned_to, escalated_at=at)
        case _:
            assert_never(event)


def _unclaimed(task: HumanTask) -> HumanTask:
    return replace(task, status="open", claimed_by=None, claimed_at=0.0)


def _created(event: wire.TaskCreated, recorded: Recorded[wire.HumanEvent]) -> HumanTask:
    return HumanTask(
        id=recorded.aggregate_id,
        tenant_id=recorded.tenant_id,
        seq=recorded.seq,
        task_type=event.task_type,
        title=event.title,
        description=event.description,
        status="open",
        run_id=event.run_id,
        node_run_id=event.node_run_id,
        assigned_to=event.assigned_to,
        request_payload=event.request_payload,
        request_hash=event.request_hash,
        response_payload=None,
        require_claim=event.require_claim,
        require_hash=event.require_hash,
        four_eyes=event.four_eyes,
        requested_by=event.requested_by,
        timeout_seconds=event.timeout_seconds,
        due_at=event.due_at,
        on_timeout=event.on_timeout,
        default_output=event.default_output,
        escalate_to=event.escalate_to,
        escalated_from=None,
        escalated_at=0.0,
        claimed_by=None,
        claimed_at=0.0,
        completed_by="",
        cancel_reason="",
        late_seconds=0.0,
        answer_to=event.answer_to,
        created_at=recorded.at,
        updated_at=recorded.at,
        ended_at=0.0,
    )
