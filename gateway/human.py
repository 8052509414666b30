"""Routes of human tasks."""

from __future__ import annotations

from gateway.http.lists import ListOf
from gateway.http.routing import Listing, Post, Read, Route
from projections.human_views import HUMAN_TASK
from schemas.human import AssignTask, CancelTask, ClaimTask, CompleteTask, CreateTask, ReleaseTask

TASK_LIST = ListOf(
    HUMAN_TASK,
    ("run_id", "assigned_to", "status"),
    scanned=("task_type", "node_run_id", "claimed_by"),
)
READ, WRITE = "gateway:human:read", "gateway:human:write"
_TASKS = "/gateway/human/tasks"
_TASK = _TASKS + "/{task_id}"

ROUTES: tuple[Route, ...] = (
    Post(
        _TASKS,
        CreateTask,
        WRITE,
        HUMAN_TASK,
        201,
        fixed={"task_id": None},
        words={"request_payload": "request_payload_json"},
    ),
    Listing(_TASKS, TASK_LIST, READ),
    Read(_TASK, HUMAN_TASK, READ),
    Post(_TASK + "/claim", ClaimTask, WRITE, HUMAN_TASK),
    Post(_TASK + "/release", ReleaseTask, WRITE, HUMAN_TASK),
    Post(_TASK + "/assign", AssignTask, WRITE, HUMAN_TASK),
    Post(
        _TASK + "/complete",
        CompleteTask,
        WRITE,
        HUMAN_TASK,
        words={"response_payload": "response_payload_json"},
    ),
    Post(_TASK + "/cancel", CancelTask, WRITE, HUMAN_TASK),
)
