"""Runs by hand and at once, with a step that is lost, fails and is tried again; runs that end in every way."""

from __future__ import annotations

import uuid

from handlers.catalog import version_id
from schemas.catalog import CreateDefinition, CreateVersion, TakeCheck, definition_id
from schemas.messages import Command, JsonObject, derive, derive_near
from schemas.runtime import (
    CancelRun,
    CompleteNode,
    ContinueRun,
    CreateRun,
    ExecuteNode,
    ExecuteRun,
    ExpireLease,
    FailNode,
    FailRun,
    Failure,
    PauseChild,
    PauseRun,
    ResumeChild,
    ResumeHuman,
    ResumeNode,
    ResumeRun,
    SetNodeStatus,
    SetRunStatus,
    StartChild,
    StartSingle,
    node_run_id,
)
from tests.domains.examples import Changed, Internal, Step
from tests.domains.platform import TENANT, message_id

MANUAL, LONG, CANCELLED, BROKEN, SET, SINGLE, PARENT, ASKING = (
    str(uuid.UUID(int=number, version=4)) for number in range(101, 109)
)
STEPWISE, AT_ONCE, NESTED, APPROVED = (
    definition_id(TENANT, "workflow", code) for code in ("stepwise", "at-once", "nested", "approved")
)
CALL = node_run_id(PARENT, "call", "1")
CHILD = derive_near(CALL, "run:1")
ASK = node_run_id(ASKING, "ask", "1")
TASK = derive_near(ASK, "task:1")
A, B = (node_run_id(MANUAL, name, "1") for name in "ab")
RETRIED = {"max_attempts": 2, "retry_delay_seconds": 2}
CODE = {"language": "python", "code": "def main():\n    return {}"}
FAILURE = Failure(code="broken")


def version(workflow: str, nodes: list[JsonObject], edges: str) -> CreateVersion:
    """`edges`: "ab" is one from a to b."""
    arrows = [{"source": arrow[0], "target": arrow[1]} for arrow in edges.split()]
    spec = {"nodes": nodes, "edges": arrows}
    return CreateVersion(definition_id=workflow, kind="workflow", spec=spec, status="published")


def checked(workflow: str, number: int) -> Internal:
    """The check that command `number` began has found nothing, so that version is published."""
    id = message_id(number)
    return Internal(TakeCheck(definition_id=workflow, version_id=version_id(id), check_id=derive(id, "check")))


GIVEN: tuple[Command | Internal, ...] = (
    CreateDefinition(kind="workflow", code="stepwise", name="Step by step"),
    version(
        STEPWISE,
        [
            {"id": "a", "type": "code", "config": CODE},
            {"id": "b", "type": "code", "config": {**CODE, "retry_policy": RETRIED}},
        ],
        "ab",
    ),
    checked(STEPWISE, 1),
    CreateDefinition(kind="workflow", code="at-once", name="At once"),
    version(AT_ONCE, [{"id": name, "type": "answer", "config": {"text": name}} for name in "abcde"], "ab ac bd cd de"),
    checked(AT_ONCE, 4),
    CreateDefinition(kind="workflow", code="nested", name="Nested"),
    version(NESTED, [{"id": "call", "type": "workflow", "config": {"workflow_id": STEPWISE}}], ""),
    checked(NESTED, 7),
    CreateDefinition(kind="workflow", code="approved", name="批准"),
    version(APPROVED, [{"id": "ask", "type": "approval", "config": {"title": "批准退款"}}], ""),
    checked(APPROVED, 10),
)
STEPS: tuple[Step, ...] = (
    Internal(StartSingle(run_id=SINGLE, step="check", inputs={"version_id": SINGLE})),
    CreateRun(run_id=MANUAL, workflow_id=STEPWISE, mode="manual"),
    ExecuteNode(run_id=MANUAL, node_run_id=A),
    Internal(CompleteNode(run_id=MANUAL, node_run_id=A, lease_token=1, output={"x": 1})),
    ExecuteRun(run_id=MANUAL, max_steps=1),
    Changed("node_run", B, {"leased_by": "executor", "lease_until": 1.0, "started_at": 1.0}),
    Internal(ExpireLease(run_id=MANUAL, node_run_id=B, lease_token=1)),
    Internal(FailNode(run_id=MANUAL, node_run_id=B, lease_token=2, error=FAILURE)),
    Internal(ResumeNode(run_id=MANUAL, node_run_id=B, wait_id=derive_near(B, "timer:2"))),
    SetNodeStatus(run_id=MANUAL, node_run_id=B, status="completed", output={"y": 2}),
    CreateRun(run_id=LONG, workflow_id=AT_ONCE),
    Internal(ContinueRun(run_id=LONG)),
    CreateRun(run_id=CANCELLED, workflow_id=STEPWISE),
    CancelRun(run_id=CANCELLED),
    CreateRun(run_id=BROKEN, workflow_id=STEPWISE),
    Internal(FailRun(run_id=BROKEN, error=FAILURE)),
    CreateRun(run_id=SET, workflow_id=STEPWISE),
    SetRunStatus(run_id=SET, status="failed"),
    CreateRun(run_id=ASKING, workflow_id=APPROVED),
    SetNodeStatus(run_id=ASKING, node_run_id=ASK, status="completed", output={"approved": True}),
    ResumeHuman(run_id=ASKING, node_run_id=ASK, human_task_id=TASK),
    CreateRun(run_id=PARENT, workflow_id=NESTED),
    Internal(
        StartChild(
            run_id=CHILD,
            workflow_id=STEPWISE,
            parent_run_id=PARENT,
            parent_node_run_id=CALL,
            root_run_id=PARENT,
            depth=1,
        )
    ),
    PauseRun(run_id=PARENT),
    Internal(PauseChild(run_id=CHILD)),
    ResumeRun(run_id=PARENT),
    Internal(ResumeChild(run_id=CHILD)),
    CancelRun(run_id=CHILD),
    Internal(ResumeNode(run_id=PARENT, node_run_id=CALL, wait_id=CHILD, error=Failure(code="run_cancelled"))),
)
