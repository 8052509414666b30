"""Runs by hand and at once, with a step that is lost, fails and is tried again; runs that end in every way."""

from __future__ import annotations

import uuid

from schemas.catalog import CreateDefinition, CreateVersion, definition_id
from schemas.messages import Command, JsonObject
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
    SetNodeStatus,
    SetRunStatus,
    WakeNode,
    node_run_id,
)
from tests.domains.examples import Changed, Internal, Step
from tests.domains.platform import TENANT

MANUAL, LONG, CANCELLED, BROKEN, SET = (str(uuid.UUID(int=number, version=4)) for number in range(101, 106))
STEPWISE, AT_ONCE = (definition_id(TENANT, "workflow", code) for code in ("stepwise", "at-once"))
A, B = (node_run_id(MANUAL, name, "1") for name in "ab")
RETRIED = {"max_attempts": 2, "retry_delay_seconds": 2}
CODE = {"language": "python", "code": "def main():\n    return {}"}
FAILURE = Failure(code="broken")


def version(workflow: str, nodes: list[JsonObject], edges: str) -> CreateVersion:
    """`edges`: "ab" is one from a to b."""
    arrows = [{"source": arrow[0], "target": arrow[1]} for arrow in edges.split()]
    spec = {"nodes": nodes, "edges": arrows}
    return CreateVersion(definition_id=workflow, kind="workflow", spec=spec, status="published")


GIVEN: tuple[Command, ...] = (
    CreateDefinition(kind="workflow", code="stepwise", name="Step by step"),
    version(
        STEPWISE,
        [
            {"id": "a", "type": "code", "config": CODE},
            {"id": "b", "type": "code", "config": {**CODE, "retry_policy": RETRIED}},
        ],
        "ab",
    ),
    CreateDefinition(kind="workflow", code="at-once", name="At once"),
    version(AT_ONCE, [{"id": name, "type": "answer", "config": {"text": name}} for name in "abcde"], "ab ac bd cd de"),
)
STEPS: tuple[Step, ...] = (
    CreateRun(run_id=MANUAL, workflow_id=STEPWISE, mode="manual"),
    ExecuteNode(run_id=MANUAL, node_run_id=A),
    Internal(CompleteNode(run_id=MANUAL, node_run_id=A, lease_token=1, output={"x": 1})),
    ExecuteRun(run_id=MANUAL, max_steps=1),
    Changed("node_run", B, {"leased_by": "executor", "lease_until": 1.0, "started_at": 1.0}),
    Internal(ExpireLease(run_id=MANUAL, node_run_id=B, lease_token=1)),
    Internal(FailNode(run_id=MANUAL, node_run_id=B, lease_token=2, error=FAILURE)),
    Internal(WakeNode(run_id=MANUAL, node_run_id=B, attempt=2)),
    SetNodeStatus(run_id=MANUAL, node_run_id=B, status="completed", output={"y": 2}),
    CreateRun(run_id=LONG, workflow_id=AT_ONCE),
    Internal(ContinueRun(run_id=LONG)),
    CreateRun(run_id=CANCELLED, workflow_id=STEPWISE),
    CancelRun(run_id=CANCELLED),
    CreateRun(run_id=BROKEN, workflow_id=STEPWISE),
    Internal(FailRun(run_id=BROKEN, error=FAILURE)),
    CreateRun(run_id=SET, workflow_id=STEPWISE),
    SetRunStatus(run_id=SET, status="failed"),
)
