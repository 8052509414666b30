"""Examples for the API's reference: what requests look like, and what answers show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.messages import JsonObject

_ID = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"
_WORKFLOW = "c0a8012e-7b1d-5c11-8f60-2f7d5a1e9b42"
_VERSION = "1b9d6bcd-bbfd-5b2d-9b5d-ab8dfbbd4bed"
_RUN = "7d444840-9dc0-41d1-b245-5ffdce74fad2"
_AT = "2026-05-04T09:30:00.123456Z"
_DSL = {
    "nodes": [
        {"id": "start", "type": "start", "config": {}},
        {"id": "greet", "type": "answer", "config": {"template": "Hello {{state.name}}"}},
    ],
    "edges": [{"source": "start", "target": "greet"}],
}
_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

REQUESTS: Mapping[str, JsonObject] = {
    "CreateApp": {"tenant_id": "t1", "code": "sales_assistant", "name": "Sales Assistant"},
    "ChangeApp": {"name": "Sales Assistant", "description": "Qualifies leads"},
    "CreateWorkflow": {"tenant_id": "t1", "app_id": "app-1", "code": "greet", "name": "Greet"},
    "ChangeWorkflow": {"status": "archived"},
    "CreateWorkflowVersion": {
        "tenant_id": "t1",
        "workflow_id": _WORKFLOW,
        "dsl_json": _DSL,
        "status": "published",
    },
    "PublishWorkflowVersion": {},
    "StartRun": {"tenant_id": "t1", "workflow_id": _WORKFLOW, "inputs": {"name": "Ada"}},
    "RunStatusBody": {"status": "completed"},
    "Cancel": {"compensate": False},
    "ExecuteNextBody": {"worker_key": "runtime-worker-1"},
    "ExecuteRunBody": {"worker_key": "runtime-worker-1", "max_steps": 16},
    "ExecuteNodeBody": {"worker_key": "runtime-worker-1"},
    "NodeStatusBody": {"status": "running", "worker_key": "runtime-worker-1"},
    "WorkerBody": {"worker_key": "runtime-worker-1", "lease_seconds": 300},
    "CreateKey": {"tenant_id": "t1", "name": "local-dev", "scopes": "gateway:agents:* gateway:runtime:read"},
    "KeyStatusBody": {"tenant_id": "t1", "status": "revoked"},
    "DeleteKey": {},
}
"""By the name of the request model."""

_DEFINITION = {
    "id": _WORKFLOW,
    "tenant_id": "t1",
    "code": "greet",
    "name": "Greet",
    "description": "",
    "status": "active",
    "latest_published_version_id": _VERSION,
    "created_at": _AT,
    "updated_at": _AT,
}
_KEY = {
    "id": _ID,
    "tenant_id": "t1",
    "name": "local-dev",
    "scopes": ["gateway:agents:*", "gateway:runtime:read"],
    "user_id": None,
    "status": "active",
    "created_at": _AT,
    "updated_at": _AT,
}
_RUN_SHOWN = {
    "id": _RUN,
    "tenant_id": "t1",
    "status": "completed",
    "mode": "auto",
    "workflow_id": _WORKFLOW,
    "workflow_version_id": _VERSION,
    "app_id": None,
    "app_version_id": None,
    "session_id": None,
    "inputs": {"name": "Ada"},
    "state_json": {"name": "Ada"},
    "output_json": {},
    "output_text": "Hello Ada",
    "error": None,
    "seq": 4,
    "trace_id": _TRACE,
    "created_at": _AT,
    "started_at": _AT,
    "ended_at": _AT,
}
_NODE_RUN = {
    "id": _ID,
    "run_id": _RUN,
    "tenant_id": "t1",
    "node_id": "greet",
    "path": "greet",
    "iteration": "1",
    "node_type": "answer",
    "status": "completed",
    "attempt": 1,
    "seq": 3,
    "input_json": None,
    "output_json": {},
    "output_text": "Hello Ada",
    "error": None,
    "route": None,
    "worker_key": None,
    "due_at": None,
    "lease_expire_time": None,
    "created_at": _AT,
    "started_at": _AT,
    "ended_at": _AT,
}
_AUDIT = {
    "id": _ID,
    "tenant_id": "t1",
    "api_key_id": None,
    "user_id": None,
    "method": "GET",
    "path": "/gateway/runtime/runs",
    "route": "/gateway/runtime/runs",
    "status_code": 200,
    "duration_ms": 1.25,
    "request_id": "b1f6a0f2",
    "created_at": _AT,
}

ANSWERS: Mapping[str, dict[str, Any]] = {
    "App": _DEFINITION | {"code": "sales_assistant", "name": "Sales Assistant"},
    "Workflow": _DEFINITION | {"app_id": "app-1"},
    "WorkflowVersion": {
        "id": _VERSION,
        "tenant_id": "t1",
        "workflow_id": _WORKFLOW,
        "version": 1,
        "status": "published",
        "dsl_json": _DSL,
        "problems": [],
        "description": "",
        "created_at": _AT,
        "published_at": _AT,
    },
    "Run": _RUN_SHOWN,
    "NodeRun": _NODE_RUN,
    "ApiKey": _KEY,
    "ApiKeyMade": _KEY | {"api_key": f"ap_{_ID}_shown-once"},
    "Audit": _AUDIT,
    "AuditStats": {
        "tenant_id": "t1",
        "seconds": 86400,
        "requests": 12,
        "by_status": {"200": 11, "404": 1},
        "mean_duration_ms": 2.5,
        "p95_duration_ms": 6.0,
        "routes": [],
    },
    "CommandOutcome": {"command_id": _ID, "status": "succeeded", "result": {}},
    "Ready": {"status": "ready", "services": {"kafka": "up", "postgres": "up"}},
    "Health": {"status": "ok", "services": {"gateway": "up", "kafka": "up", "postgres": "up"}},
}
"""By the name of what a route shows."""
