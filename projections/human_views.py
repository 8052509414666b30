"""Human tasks as the API shows them."""

from __future__ import annotations

from typing import Annotated, Any

from typing_extensions import TypedDict

from infra.db import instant
from projections.human import TASKS, HumanTask
from projections.views import Moment, OneOf, Tenant, Uuid, View
from schemas.examples import Example
from schemas.human import OnTimeout, TaskStatus, TaskType
from schemas.messages import JsonObject


class HumanTaskView(TypedDict):
    """A human task. `request_hash` is of what is shown: send it back as `shown_hash` when completing.

    `late_seconds`: so long after the due time it was noticed.
    """

    id: Uuid
    tenant_id: Tenant
    task_type: Annotated[str, OneOf(TaskType), Example("approval")]
    title: Annotated[str, Example("Approve refund")]
    description: Annotated[str, Example("")]
    status: Annotated[str, OneOf(TaskStatus), Example("approved")]
    run_id: Annotated[str | None, Example("run-id")]
    node_run_id: Annotated[str | None, Example("node-run-id")]
    assigned_to: Annotated[str | None, Example("ops-1")]
    request_payload_json: Annotated[Any, Example({"amount": 99})]
    request_hash: Annotated[str, Example("8f1c0d57ce0d6b4fa3b1a0a25cd4e9f2f3d3c6b14d1d2a5e9f0b7c8d6e5f4a3b")]
    response_payload_json: Annotated[Any, Example({"approved": True})]
    require_claim: Annotated[bool, Example(False)]
    require_hash: Annotated[bool, Example(False)]
    four_eyes: Annotated[bool, Example(False)]
    requested_by: str | None
    timeout_seconds: float | None
    due_at: Moment
    on_timeout: Annotated[str, OneOf(OnTimeout), Example("fail")]
    default_output: JsonObject | None
    escalate_to: str | None
    escalated_from: str | None
    escalated_at: Moment
    claimed_by: Annotated[str | None, Example("ops-1")]
    claimed_at: Moment
    completed_by: Annotated[str | None, Example("ops-1")]
    cancel_reason: Annotated[str, Example("")]
    late_seconds: Annotated[float, Example(0.0)]
    created_at: Moment
    updated_at: Moment
    ended_at: Moment


def human_task_view(task: HumanTask) -> HumanTaskView:
    return {
        "id": task.id,
        "tenant_id": task.tenant_id,
        "task_type": task.task_type,
        "title": task.title,
        "description": task.description,
        "status": task.status,
        "run_id": task.run_id,
        "node_run_id": task.node_run_id,
        "assigned_to": task.assigned_to,
        "request_payload_json": task.request_payload,
        "request_hash": task.request_hash,
        "response_payload_json": task.response_payload,
        "require_claim": task.require_claim,
        "require_hash": task.require_hash,
        "four_eyes": task.four_eyes,
        "requested_by": task.requested_by or None,
        "timeout_seconds": task.timeout_seconds,
        "due_at": instant(task.due_at),
        "on_timeout": task.on_timeout,
        "default_output": task.default_output,
        "escalate_to": task.escalate_to,
        "escalated_from": task.escalated_from,
        "escalated_at": instant(task.escalated_at),
        "claimed_by": task.claimed_by,
        "claimed_at": instant(task.claimed_at),
        "completed_by": task.completed_by or None,
        "cancel_reason": task.cancel_reason,
        "late_seconds": task.late_seconds,
        "created_at": instant(task.created_at),
        "updated_at": instant(task.updated_at),
        "ended_at": instant(task.ended_at),
    }


HUMAN_TASK = View("human task", TASKS, HumanTaskView, human_task_view)
