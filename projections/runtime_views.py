"""Runs and node runs as the API shows them."""

from __future__ import annotations

from typing import Annotated, Any

from typing_extensions import TypedDict

from infra.db import instant
from projections.runtime import NODE_RUNS, RUNS, NodeRun, Run
from projections.views import Moment, OneOf, Tenant, Uuid, View
from schemas.examples import Example
from schemas.messages import JsonObject
from schemas.runtime import RUN_ENDED, NodeStatus, RunKind, RunMode, RunStatus, WaitOn


class RunView(TypedDict):
    """A run of a workflow version; `seq` is the number of its events. A child run names the node run that awaits it."""

    id: Uuid
    tenant_id: Tenant
    status: Annotated[str, OneOf(RunStatus), Example("completed")]
    mode: Annotated[str, OneOf(RunMode), Example("auto")]
    kind: Annotated[str, OneOf(RunKind), Example("graph")]
    workflow_id: Uuid
    workflow_version_id: Uuid
    app_id: str | None
    app_version_id: str | None
    session_id: str | None
    inputs: Annotated[JsonObject, Example({"name": "Ada"})]
    state_json: Annotated[JsonObject, Example({"name": "Ada"})]
    output_json: Annotated[Any, Example({})]
    output_text: Annotated[str | None, Example("Hello Ada")]
    error: JsonObject | None
    parent_run_id: Uuid | None
    parent_node_run_id: Uuid | None
    root_run_id: Uuid
    depth: Annotated[int, Example(0)]
    seq: Annotated[int, Example(4)]
    trace_id: Annotated[str | None, Example("4bf92f3577b34da6a3ce929d0e0e4736")]
    created_at: Moment
    started_at: Moment
    ended_at: Moment


def run_view(run: Run) -> RunView:
    origin = run.origin or {}
    return {
        "id": run.id,
        "tenant_id": run.tenant_id,
        "status": "paused" if run.is_held and run.status not in RUN_ENDED else run.status,
        "mode": run.mode,
        "kind": run.kind,
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
        "parent_run_id": origin.get("parent_run_id"),
        "parent_node_run_id": origin.get("parent_node_run_id"),
        "root_run_id": origin.get("root_run_id", run.id),
        "depth": origin.get("depth", 0),
        "seq": run.seq,
        "trace_id": run.traceparent[3:35] or None,
        "created_at": instant(run.created_at),
        "started_at": instant(run.started_at),
        "ended_at": instant(run.ended_at),
    }


class WaitView(TypedDict):
    """What a pending node run waits for, or has waited for last: `id` is that of the task, the run or the event."""

    on: Annotated[str, OneOf(WaitOn), Example("task")]
    id: Uuid


class NodeRunView(TypedDict):
    """One node of a run in one iteration; a queued one that somebody holds is shown as running."""

    id: Uuid
    run_id: Uuid
    tenant_id: Tenant
    node_id: Annotated[str, Example("greet")]
    path: Annotated[str, Example("greet")]
    iteration: Annotated[str, Example("1")]
    node_type: Annotated[str, Example("answer")]
    status: Annotated[str, OneOf(NodeStatus), Example("completed")]
    attempt: Annotated[int, Example(1)]
    seq: Annotated[int, Example(3)]
    input_json: JsonObject | None
    output_json: Annotated[JsonObject | None, Example({})]
    output_text: Annotated[str | None, Example("Hello Ada")]
    error: JsonObject | None
    route: str | None
    worker_key: str | None
    due_at: Annotated[Moment, Example(None)]
    wait: WaitView | None
    lease_expire_time: Annotated[Moment, Example(None)]
    created_at: Moment
    started_at: Moment
    ended_at: Moment


def node_run_view(node: NodeRun) -> NodeRunView:
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
        "wait": {"on": node.wait_on, "id": node.wait_id} if node.wait_on and node.wait_id else None,
        "lease_expire_time": instant(node.lease_until),
        "created_at": instant(node.created_at),
        "started_at": instant(node.started_at),
        "ended_at": instant(node.ended_at),
    }


RUN = View("run", RUNS, RunView, run_view)
NODE_RUN = View("node run", NODE_RUNS, NodeRunView, node_run_view)
