"""The guided example of `make demo`: a workflow goes on although its worker is killed in the middle."""

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx

Say = Callable[[str], None]

WAIT_SECONDS_MAX = 60.0
POLL_SECONDS = 0.2
ENDED = ("completed", "failed", "cancelled", "compensated")

DSL: dict[str, Any] = {
    "nodes": [
        {"id": "start", "type": "start", "config": {"inputs": {"amount": {"type": "number", "required": True}}}},
        {
            "id": "score",
            "type": "code",
            "config": {
                "language": "python",
                "code": "result = {'score': min(100, payload['amount'] // 10)}",
                "input_json": {"amount": "{{inputs.amount}}"},
            },
        },
        {
            "id": "cool-down",
            "type": "template-transform",
            "config": {"template": "score {{nodes.score.output.result_json.score}}", "delay_seconds": 3},
        },
        {"id": "check", "type": "if-else", "config": {"expression": "nodes.score.output.result_json.score >= 50"}},
        {"id": "accept", "type": "answer", "config": {"template": "Accepted with {{nodes.cool-down.text}}."}},
        {"id": "decline", "type": "answer", "config": {"template": "Declined with {{nodes.cool-down.text}}."}},
        {"id": "end", "type": "end", "config": {"outputs": {"score": "{{nodes.score.output.result_json.score}}"}}},
    ],
    "edges": [
        {"source": "start", "target": "score"},
        {"source": "score", "target": "cool-down"},
        {"source": "cool-down", "target": "check"},
        {"source": "check", "target": "accept", "condition": "true"},
        {"source": "check", "target": "decline", "condition": "false"},
        {"source": "accept", "target": "end"},
        {"source": "decline", "target": "end"},
    ],
}


class DemoFailed(Exception):
    """The example did not end as it must."""


async def run_demo(gateway_url: str, worker_pid: Callable[[], int], say: Say) -> None:
    """Publish a workflow, start two runs, kill the worker between two nodes, show how both end."""
    async with httpx.AsyncClient(base_url=f"{gateway_url}/gateway", timeout=40) as client:
        workflow = await _publish(client, say)
        runs = {amount: await _start(client, workflow, amount) for amount in (720, 90)}
        say(f"Two runs started: {', '.join(runs.values())}")
        await asyncio.sleep(1)
        pid = worker_pid()
        say(f"Killing the worker, process {pid}, with kill -9 while both runs are under way")
        os.kill(pid, signal.SIGKILL)
        for amount, expected in ((720, "Accepted with score 72."), (90, "Declined with score 9.")):
            run = await _until_ended(client, runs[amount])
            say(f"amount {amount}: {run['status']}, {run['output_text']!r}, {run['output_json']}")
            if run["status"] != "completed" or run["output_text"] != expected:
                raise DemoFailed(f"expected {expected!r}, and got {run}")
    say("Nothing was lost and nothing happened twice.")


async def _publish(client: httpx.AsyncClient, say: Say) -> str:
    app = await _post(client, "/workflows/apps", {"code": "demo", "name": "Demo"})
    workflow = await _post(client, "/workflows", {"app_id": app["id"], "code": "scoring", "name": "Scoring"})
    version = await _post(client, "/workflows/versions", {"workflow_id": workflow["id"], "dsl_json": DSL})
    await _post(client, f"/workflows/versions/{version['id']}/publish", {})
    say(f"Workflow published, {len(DSL['nodes'])} nodes: {workflow['id']}")
    return str(workflow["id"])


async def _start(client: httpx.AsyncClient, workflow: str, amount: int) -> str:
    run = await _post(client, "/runtime/runs", {"workflow_id": workflow, "inputs": {"amount": amount}})
    return str(run["id"])


async def _until_ended(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    answered = "never answered"
    for _ in range(int(WAIT_SECONDS_MAX / POLL_SECONDS)):
        response = await client.get(f"/runtime/runs/{run_id}")
        answered = response.text[:500]
        if response.is_success:
            run: dict[str, Any] = response.json()
            if run["status"] in ENDED:
                return run
        await asyncio.sleep(POLL_SECONDS)
    raise DemoFailed(f"run {run_id} did not end within {WAIT_SECONDS_MAX:g} seconds: {answered}")


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        response = await client.post(path, json=body)
    except httpx.TransportError as error:
        raise DemoFailed(f"POST {path}: {error!r}") from error
    if response.status_code not in (200, 201) or "json" not in response.headers.get("content-type", ""):
        raise DemoFailed(f"POST {path} answered {response.status_code}: {response.text[:500]}")
    answer: dict[str, Any] = response.json()
    return answer
