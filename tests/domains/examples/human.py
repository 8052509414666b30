"""One task is claimed, released, handed on, approved; others are cancelled, escalated, expire, are withdrawn."""

from __future__ import annotations

from schemas.human import (
    AssignTask,
    CancelTask,
    ClaimTask,
    CompleteTask,
    CreateTask,
    ExpireTask,
    OpenTask,
    ReleaseTask,
    WithdrawTask,
)
from schemas.messages import Command
from tests.domains.examples import Internal, Step

BY_HAND = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b11"
CANCELLED = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b12"
LATE = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b13"
ESCALATED = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b14"
WITHDRAWN = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b15"
DUE_AT = 1_700_000_060.0
"""Time stands still in stories."""

GIVEN: tuple[Command | Internal, ...] = ()
STEPS: tuple[Step, ...] = (
    CreateTask(task_id=BY_HAND, task_type="approval", title="批准退款", request_payload={"金额": 99}, run_id="run-1"),
    ClaimTask(task_id=BY_HAND, claimed_by="ops-1"),
    ReleaseTask(task_id=BY_HAND, claimed_by="ops-1"),
    AssignTask(task_id=BY_HAND, assigned_to="ops-2"),
    ClaimTask(task_id=BY_HAND, claimed_by="ops-2"),
    CompleteTask(task_id=BY_HAND, status="approved", response_payload={"approved": True}),
    CreateTask(task_id=CANCELLED, task_type="input", title="t", timeout_seconds=60.0),
    CancelTask(task_id=CANCELLED, reason="not needed"),
    Internal(
        OpenTask(
            task_id=LATE, task_type="approval", title="t", timeout_seconds=60.0, on_timeout="default",
            default_output={"approved": False}, requested_by="ada",
        )
    ),
    Internal(ExpireTask(task_id=LATE, due_at=DUE_AT)),
    Internal(
        OpenTask(
            task_id=ESCALATED, task_type="takeover", title="t", assigned_to="ops-1", timeout_seconds=60.0,
            on_timeout="escalate", escalate_to="boss",
        )
    ),
    Internal(ExpireTask(task_id=ESCALATED, due_at=DUE_AT)),
    Internal(OpenTask(task_id=WITHDRAWN, task_type="pause", title="t")),
    Internal(WithdrawTask(task_id=WITHDRAWN, reason="the run was cancelled")),
)  # fmt: skip
