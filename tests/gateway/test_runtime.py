"""Runs over HTTP: started, listed, stepped, cancelled."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from outbox.tombstones import Tombstone
from projections.runtime import Run
from tests.gateway.test_workflows import GREET, RANDOM, made
from tests.gateway.world import World

CHAIN: dict[str, Any] = {
    "nodes": [{"id": f"n{i}", "type": "template-transform", "config": {"template": str(i)}} for i in range(4)],
    "edges": [{"source": f"n{i}", "target": f"n{i + 1}"} for i in range(3)],
}


async def workflow(http: httpx.AsyncClient, dsl: dict[str, Any], **body: Any) -> str:
    made_workflow = await made(http, "", code="w", name="W", **body)
    await made(http, "/versions", workflow_id=made_workflow["id"], dsl_json=dsl, status="published", **body)
    return str(made_workflow["id"])


async def started(http: httpx.AsyncClient, workflow_id: str, **body: Any) -> dict[str, Any]:
    answer = await http.post("/gateway/runtime/runs", json={"workflow_id": workflow_id, **body})
    assert answer.status_code == 201, answer.text
    shown: dict[str, Any] = answer.json()
    return shown


async def test_a_run_goes_to_its_end(http: httpx.AsyncClient) -> None:
    run = await started(http, await workflow(http, GREET), input_json={"name": "Ada"})
    assert (run["status"], run["inputs"], run["output_text"]) == ("completed", {"name": "Ada"}, "Hello")
    assert (await http.get(f"/gateway/runtime/runs/{run['id']}")).json() == run
    nodes = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"]})).json()["items"]
    assert [node["node_id"] for node in nodes] == ["start", "greet"]


async def test_a_run_that_retention_removed_is_gone_and_another_tenants_is_not_found(
    http: httpx.AsyncClient, world: World
) -> None:
    run = await started(http, await workflow(http, GREET))
    path = f"/gateway/runtime/runs/{run['id']}"
    del world.tables.rows[Run, run["id"]]
    tombstone = Tombstone(run["id"], "public", "run", "completed", 9, 1_700_000_000.0, 1_700_086_400.0)
    world.tables.rows[Tombstone, run["id"]] = tombstone
    for query in ({"at_seq": "1"}, {"tenant_id": "public"}):
        answer = await http.get(path, params=query)
        assert (answer.status_code, answer.json()["code"]) == (410, "run_expired"), query
    answer = await http.get(path)
    assert (answer.status_code, answer.json()["code"]) == (410, "run_expired")
    assert answer.headers["content-type"] == "application/problem+json"
    shown = {name: answer.json()[name] for name in ("ended_status", "ended_at", "removed_at")}
    assert shown == {
        "ended_status": "completed",
        "ended_at": "2023-11-14T22:13:20Z",
        "removed_at": "2023-11-15T22:13:20Z",
    }
    answer = await http.get(path, params={"tenant_id": "t9"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    world.tables.rows[Tombstone, run["id"]] = replace(tombstone, kind="session")
    assert (await http.get(path)).status_code == 404


async def test_the_run_bears_the_requests_trace_and_correlation(http: httpx.AsyncClient, world: World) -> None:
    workflow_id = await workflow(http, GREET)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01", "x-request-id": "req-7"}
    answer = await http.post("/gateway/runtime/runs", json={"workflow_id": workflow_id}, headers=headers)
    assert answer.json()["trace_id"] == trace
    assert answer.headers["x-request-id"] == "req-7"
    assert world.sent[-1][0].correlation_id == "req-7"


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/workflow_version_id"),
        ({"workflow_id": RANDOM}, "/workflow_id"),
        ({"workflow_version_id": RANDOM}, "/workflow_version_id"),
        ({"workflow_id": "wf-1"}, "/workflow_id"),
        ({"workflow_id": RANDOM, "inputs": []}, "/inputs"),
        ({"workflow_id": RANDOM, "mode": "fast"}, "/mode"),
        ({"workflow_id": RANDOM, "session_id": "s" * 129}, "/session_id"),
    ],
)
async def test_a_run_that_cannot_start_names_the_field(
    http: httpx.AsyncClient, body: dict[str, Any], pointer: str
) -> None:
    answer = await http.post("/gateway/runtime/runs", json=body)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_the_first_node_must_be_in_the_dsl(http: httpx.AsyncClient) -> None:
    workflow_id = await workflow(http, CHAIN)
    body = {"workflow_id": workflow_id, "initial_node": {"node_id": "nowhere", "node_type": "llm"}}
    answer = await http.post("/gateway/runtime/runs", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/initial_node/node_id"


async def test_a_manual_run_takes_the_steps_it_is_given(http: httpx.AsyncClient) -> None:
    run = await started(http, await workflow(http, CHAIN, tenant_id="t1"), mode="manual")
    path = f"/gateway/runtime/runs/{run['id']}"

    async def done() -> int:
        nodes = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"], "tenant_id": "t1"})).json()
        return sum(node["status"] == "completed" for node in nodes["items"])

    answer = await http.post(path + "/execute-next?tenant_id=t1", json={"worker_key": "runtime-worker-1"})
    assert (answer.status_code, answer.json()["status"], await done()) == (200, "running", 1)
    answer = await http.post(path + "/execute?tenant_id=t1", json={"max_steps": 2})
    assert (answer.json()["status"], await done()) == ("running", 3)
    answer = await http.post(path + "/execute?tenant_id=t1", json={"worker_key": "w", "max_steps": 16})
    assert (answer.json()["status"], await done()) == ("completed", 4)
    again = await http.post(path + "/execute", json={})
    assert (again.status_code, again.json()) == (200, answer.json())


async def test_one_node_run_is_executed_by_its_id(http: httpx.AsyncClient) -> None:
    run = await started(http, await workflow(http, CHAIN), mode="manual")
    (node,) = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"]})).json()["items"]
    path = f"/gateway/runtime/node-runs/{node['id']}"
    answer = await http.post(path + "/execute", json={"worker_key": "runtime-worker-1"})
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert (await http.post(path + "/execute")).status_code == 409


async def test_workers_take_the_oldest_waiting_node_runs_of_every_tenant(http: httpx.AsyncClient) -> None:
    for tenant in ("t1", "t2"):
        await started(http, await workflow(http, CHAIN, tenant_id=tenant), mode="manual")
    taken = []
    for _ in range(8):
        answer = await http.post(
            "/gateway/runtime/workers/execute-next", json={"worker_key": "w", "lease_seconds": 300}
        )
        assert answer.status_code == 200
        taken.append((answer.json()["tenant_id"], answer.json()["node_id"]))
    assert sorted(taken) == [(tenant, f"n{i}") for tenant in ("t1", "t2") for i in range(4)]
    answer = await http.post("/gateway/runtime/workers/execute-next", json={"worker_key": "w"})
    assert (answer.status_code, answer.json()) == (200, None)


async def test_a_worker_that_names_a_tenant_gets_only_its_work(http: httpx.AsyncClient) -> None:
    await started(http, await workflow(http, CHAIN, tenant_id="t1"), mode="manual")
    answer = await http.post("/gateway/runtime/workers/execute-next", json={"tenant_id": "t2"})
    assert answer.json() is None


async def test_workers_at_the_same_time_take_different_node_runs(http: httpx.AsyncClient, world: World) -> None:
    workflow_id = await workflow(http, CHAIN)
    for _ in range(5):
        await started(http, workflow_id, mode="manual")
    answers = await asyncio.gather(
        *(http.post("/gateway/runtime/workers/execute-next", json={"worker_key": f"w{i}"}) for i in range(5))
    )
    assert len({answer.json()["id"] for answer in answers}) == 5


async def test_a_workers_retry_with_the_same_key_finds_what_it_did(http: httpx.AsyncClient, world: World) -> None:
    run = await started(http, await workflow(http, CHAIN), mode="manual")
    headers = {"idempotency-key": "once"}
    path = "/gateway/runtime/workers/execute-next"
    first = await http.post(path, json={"worker_key": "w"}, headers=headers)
    sent = len(world.sent)
    second = await http.post(path, json={"worker_key": "w"}, headers=headers)
    assert second.json()["id"] == first.json()["id"]
    assert len(world.sent) == sent
    nodes = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"]})).json()["items"]
    assert sum(node["status"] == "completed" for node in nodes) == 1


async def test_the_seeds_status_calls_move_a_run_on(http: httpx.AsyncClient) -> None:
    run = await started(http, await workflow(http, CHAIN), mode="manual")
    (node,) = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"]})).json()["items"]
    path = f"/gateway/runtime/node-runs/{node['id']}/status"
    answer = await http.post(path, json={"status": "running", "worker_key": "runtime-worker-1"})
    assert (answer.json()["status"], answer.json()["worker_key"]) == ("running", "runtime-worker-1")
    answer = await http.post(path, json={"status": "completed", "output_json": {"x": 1}})
    assert (answer.json()["status"], answer.json()["output_json"]) == ("completed", {"x": 1})
    nodes = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"]})).json()["items"]
    assert [(node["node_id"], node["status"]) for node in nodes] == [("n0", "completed"), ("n1", "queued")]
    answer = await http.post(f"/gateway/runtime/runs/{run['id']}/status", json={"status": "completed"})
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")


async def test_cancelling_twice_is_once_and_an_ended_run_cannot_be(http: httpx.AsyncClient) -> None:
    workflow_id = await workflow(http, CHAIN)
    run = await started(http, workflow_id, mode="manual")
    for _ in range(2):
        answer = await http.post(f"/gateway/runtime/runs/{run['id']}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    ended = await started(http, workflow_id)
    assert (await http.post(f"/gateway/runtime/runs/{ended['id']}/cancel")).status_code == 409


async def test_runs_are_filtered_by_field(http: httpx.AsyncClient) -> None:
    workflow_id = await workflow(http, CHAIN)
    done = await started(http, workflow_id, session_id="s1")
    await started(http, workflow_id, mode="manual")

    async def ids(**params: str) -> list[str]:
        answer = await http.get("/gateway/runtime/runs", params=params)
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()["items"]]

    assert await ids(status="completed") == [done["id"]]
    assert await ids(session_id="s1", mode="auto") == [done["id"]]
    assert await ids(workflow_id=RANDOM) == []
    assert len(await ids(workflow_id=workflow_id)) == 2


async def test_a_step_that_is_not_done_in_time_is_202(http: httpx.AsyncClient) -> None:
    code = {"nodes": [{"id": "c", "type": "code", "config": {"language": "python", "code": "result = 1"}}], "edges": []}
    run = await started(http, await workflow(http, code), mode="manual")
    answer = await http.post(f"/gateway/runtime/runs/{run['id']}/execute", json={})
    assert answer.status_code == 202
    told = (await http.get(answer.headers["location"])).json()
    assert told["status"] == "succeeded", "the command was taken; its step goes on"
    (node,) = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"]})).json()["items"]
    answer = await http.post(f"/gateway/runtime/node-runs/{node['id']}/execute")
    assert (answer.status_code, answer.json()["code"]) == (409, "node_run_taken")
