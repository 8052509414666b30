"""Runs and node runs as the API shows them."""

from __future__ import annotations

from infra.db import instant
from projections.runtime import NodeRun, Run
from schemas.messages import JsonObject


def shown_run(run: Run) -> JsonObject:
    """A run as the API shows it."""
    return {
        "id": run.id,
        "tenant_id": run.tenant_id,
        "status": run.status,
        "mode": run.mode,
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
        "seq": run.seq,
        "trace_id": run.traceparent[3:35] or None,
        "created_at": instant(run.created_at),
        "started_at": instant(run.started_at),
        "ended_at": instant(run.ended_at),
    }


def shown_node_run(node: NodeRun) -> JsonObject:
    """A node run as the API shows it; a queued one that somebody holds is shown as running."""
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
        "lease_expire_time": instant(node.lease_until),
        "created_at": instant(node.created_at),
        "started_at": instant(node.started_at),
        "ended_at": instant(node.ended_at),
    }
