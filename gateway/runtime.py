"""Routes of runs and node runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Field

from gateway.http.lists import ListOf
from gateway.http.ports import Condition
from gateway.http.progress import (
    ExecuteNextBody,
    ExecuteNodeBody,
    ExecuteRunBody,
    WorkerBody,
    execute_next,
    execute_node,
    execute_run,
    worker_execute_next,
)
from gateway.http.routing import Action, CommandBody, Listing, Object, Post, Read, Route, Target
from gateway.time_travel import PARAMETERS, ListThen, ReadThen
from projections.runtime import NODE_RUNS, RUNS, NodeRun
from projections.runtime_shown import shown_node_run, shown_run
from schemas.messages import Code, ForeignId, Id, JsonObject, Text
from schemas.runtime import (
    LEASE_SECONDS_DEFAULT,
    CancelRun,
    CreateRun,
    InitialNode,
    LeaseSeconds,
    SetNodeStatus,
    SetRunStatus,
    Worker,
)

Inputs = Annotated[
    JsonObject,
    Field(default_factory=dict, validation_alias=AliasChoices("inputs", "input_json", "inputs_json")),
]


class StartRun(CommandBody):
    names: ClassVar[Mapping[str, str]] = {
        "workflow_version_id": "definition_version",
        "workflow_id": "definition",
    }
    workflow_id: Id | None = None
    workflow_version_id: Id | None = None
    app_id: ForeignId | None = None
    app_version_id: ForeignId | None = None
    session_id: ForeignId | None = None
    inputs: Inputs
    mode: Literal["auto", "manual"] = "auto"
    initial_node: InitialNode | None = None

    def command(self, target: Target) -> CreateRun:
        return CreateRun(
            workflow_id=self.workflow_id,
            workflow_version_id=self.workflow_version_id,
            app_id=self.app_id,
            app_version_id=self.app_version_id,
            session_id=self.session_id,
            inputs=self.inputs,
            mode=self.mode,
            initial_node=self.initial_node,
        )


class Cancel(CommandBody):
    compensate: bool = False
    force: bool = False

    def command(self, target: Target) -> CancelRun:
        return CancelRun(run_id=target.id, compensate=self.compensate, force=self.force)


class RunStatusBody(CommandBody):
    status: Literal["running", "completed", "failed", "cancelled"]
    error_code: Code | None = None
    error_message: Text | None = None

    def command(self, target: Target) -> SetRunStatus:
        return SetRunStatus(
            run_id=target.id,
            status=self.status,
            error_code=self.error_code,
            error_message=self.error_message,
        )


class NodeStatusBody(CommandBody):
    status: Literal["running", "completed", "failed", "skipped"]
    worker_key: Worker = ""
    lease_seconds: LeaseSeconds = LEASE_SECONDS_DEFAULT
    output: Annotated[JsonObject | None, Field(validation_alias=AliasChoices("output_json", "output"))] = None
    output_text: Text | None = None
    error_code: Code | None = None
    error_message: Text | None = None

    def command(self, target: Target) -> SetNodeStatus:
        return SetNodeStatus(
            run_id=target.parent,
            node_run_id=target.id,
            status=self.status,
            worker_key=self.worker_key,
            lease_seconds=self.lease_seconds,
            output=self.output,
            output_text=self.output_text,
            error_code=self.error_code,
            error_message=self.error_message,
        )


def _is_held(node: NodeRun) -> bool:
    return node.status == "queued" and node.leased_by is not None


RUN = Object(RUNS, "run")
NODE_RUN = Object(NODE_RUNS, "node run", with_parent=True)

RUN_LIST = ListOf(
    RUNS,
    shown_run,
    ("status", "mode", "workflow_id", "workflow_version_id", "app_id", "app_version_id", "session_id"),
)
NODE_RUN_LIST = ListOf(
    NODE_RUNS,
    shown_node_run,
    ("run_id", "node_id", "node_type", "status", "path", "iteration"),
    order=("created_at", "seq", "id"),
    descending=False,
    others=PARAMETERS,
    special={
        # One that somebody holds is shown as running, so it must be found as that.
        "status": {
            "running": Condition(
                "(status = 'running' or (status = 'queued' and leased_by is not null))",
                lambda node: node.status == "running" or _is_held(node),
            ),
            "queued": Condition(
                "(status = 'queued' and leased_by is null)",
                lambda node: node.status == "queued" and not _is_held(node),
            ),
        }
    },
)

READ, WRITE = "gateway:runtime:read", "gateway:runtime:write"
_RUNS, _NODES = "/gateway/runtime/runs", "/gateway/runtime/node-runs"
_RUN, _NODE = _RUNS + "/{run_id}", _NODES + "/{node_run_id}"

ROUTES: tuple[Route, ...] = (
    ReadThen(_RUN, RUN, READ, "Run", shown_run),
    Post(_RUNS, StartRun, WRITE, "Run", 201),
    Listing(_RUNS, RUN_LIST, READ, "Run"),
    Post(_RUN + "/status", RunStatusBody, WRITE, "Run", object=RUN),
    Post(_RUN + "/cancel", Cancel, WRITE, "Run", object=RUN),
    Action("POST", _RUN + "/execute-next", ExecuteNextBody, WRITE, "Run", execute_next, object=RUN),
    Action("POST", _RUN + "/execute", ExecuteRunBody, WRITE, "Run", execute_run, object=RUN),
    ListThen(_NODES, NODE_RUN_LIST, READ, "NodeRun"),
    Read(_NODE, NODE_RUN, READ, "NodeRun", shown_node_run),
    Post(_NODE + "/status", NodeStatusBody, WRITE, "NodeRun", object=NODE_RUN),
    Action("POST", _NODE + "/execute", ExecuteNodeBody, WRITE, "NodeRun", execute_node, object=NODE_RUN),
    Action("POST", "/gateway/runtime/workers/execute-next", WorkerBody, WRITE, "NodeRun", worker_execute_next),
)
