"""Routes of runs and node runs."""

from __future__ import annotations

from typing import get_args

from gateway.http.lists import ListOf
from gateway.http.ports import Condition
from gateway.http.progress import ExecuteNext, execute_next, execute_node_run, execute_run, execute_run_next
from gateway.http.routing import Action, Listing, Post, Read, Route
from gateway.run_events import RUN_EVENT_LIST
from gateway.time_travel import PARAMETERS, ListThen, ReadThen
from gateway.until import StartRun
from projections.catalog_views import WORKFLOW, WORKFLOW_VERSION
from projections.runtime import NodeRun
from projections.runtime_views import NODE_RUN, RUN
from schemas.runtime import (
    RUN_ENDED,
    CancelRun,
    CreateRun,
    ExecuteNode,
    ExecuteRun,
    PauseRun,
    ResumeHuman,
    ResumeRun,
    RunStatus,
    SetNodeStatus,
    SetRunStatus,
)


def _is_held(node: NodeRun) -> bool:
    return node.status == "queued" and node.leased_by is not None


def _with_pause(status: str) -> Condition:
    """A run whose pause holds it is shown as paused, so it must be found as that, and as nothing else."""
    if status in RUN_ENDED:
        return Condition(f"status = '{status}'", lambda run: run.status == status)
    if status == "paused":
        ended = ", ".join(f"'{each}'" for each in sorted(RUN_ENDED))
        return Condition(
            f"((paused or parent_paused) and status not in ({ended}))",
            lambda run: run.is_held and run.status not in RUN_ENDED,
        )
    return Condition(
        f"(status = '{status}' and not paused and not parent_paused)",
        lambda run: run.status == status and not run.is_held,
    )


RUN_LIST = ListOf(
    RUN,
    ("session_id", "workflow_id"),
    scanned=("status", "mode", "workflow_version_id", "app_id", "app_version_id", "kind"),
    special={"status": {status: _with_pause(status) for status in get_args(RunStatus)}},
    unless={"kind": Condition("kind = 'graph'", lambda run: run.kind == "graph")},
)
NODE_RUN_LIST = ListOf(
    NODE_RUN,
    ("run_id",),
    scanned=("node_id", "node_type", "status", "path", "iteration"),
    needs="run_id",
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
    ReadThen(_RUN, RUN, READ),
    StartRun(
        "POST",
        _RUNS,
        CreateRun,
        WRITE,
        RUN,
        201,
        fixed={"run_id": None},
        words={"inputs": ("inputs", "input_json", "inputs_json")},
        owners={"workflow_version_id": WORKFLOW_VERSION, "workflow_id": WORKFLOW},
        operation="startRun",
    ),
    Listing(_RUNS, RUN_LIST, READ),
    Listing(_RUN + "/events", RUN_EVENT_LIST, READ, RUN),
    Post(_RUN + "/status", SetRunStatus, WRITE, RUN),
    Post(_RUN + "/cancel", CancelRun, WRITE, RUN),
    Post(_RUN + "/pause", PauseRun, WRITE, RUN),
    Post(_RUN + "/resume", ResumeRun, WRITE, RUN),
    Action("POST", _RUN + "/execute-next", ExecuteRun, WRITE, RUN, execute_run_next, fixed={"max_steps": 1}),
    Action("POST", _RUN + "/execute", ExecuteRun, WRITE, RUN, execute_run, defaults={"max_steps": 100}),
    ListThen(_NODES, NODE_RUN_LIST, READ),
    Read(_NODE, NODE_RUN, READ),
    Post(
        _NODE + "/status",
        SetNodeStatus,
        WRITE,
        NODE_RUN,
        words={"output": ("output_json", "output")},
        operation="setNodeRunStatus",
    ),
    Post(_NODE + "/resume-human", ResumeHuman, WRITE, NODE_RUN, operation="resumeHuman"),
    Action("POST", _NODE + "/execute", ExecuteNode, WRITE, NODE_RUN, execute_node_run),
    Action("POST", "/gateway/runtime/workers/execute-next", ExecuteNext, WRITE, NODE_RUN, execute_next),
)
