"""Runs started and awaited in one request."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from bus.record_batches import Keyed
from gateway.http.openapi import openapi_document
from gateway.http.state import Gateway
from gateway.routes import ROUTES
from gateway.until import ENDINGS
from infra.settings import Settings
from projections.runtime import NodeRun, Run
from schemas.envelope import Envelope
from schemas.registry import EVENTS
from schemas.runtime import CompleteNode, FailNode, Failure
from tests.gateway.test_runtime import CHAIN, workflow
from tests.gateway.test_tail import Script, turns
from tests.gateway.test_workflows import GREET
from tests.gateway.world import World, client_of, gateway_over

RUNS = "/gateway/runtime/runs"
UNTIL = RUNS + "?until=ended"
CODE: dict[str, Any] = {
    "nodes": [
        {"id": "c", "type": "code", "config": {"language": "python", "code": "result = 1"}},
        {"id": "say", "type": "answer", "config": {"template": "结果 {{nodes.c.output.result_json}}"}},
    ],
    "edges": [{"source": "c", "target": "say"}],
}
LONG = {"prefer": "wait=60"}


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def gateway(world: World, settings: Settings, script: Script) -> AsyncIterator[Gateway]:
    gateway = gateway_over(world, settings, script)
    tailing = asyncio.create_task(gateway.tail.run())
    yield gateway
    tailing.cancel()
    await asyncio.wait({tailing})


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(gateway) as client:
        yield client


class Runs:
    """What a worker does, and what the reader of events hears of it."""

    def __init__(self, world: World, script: Script) -> None:
        self.world = world
        self.script = script
        self._heard = len(world.events)

    @property
    def newest(self) -> Run:
        found: Run = [row for row in self.world.tables.rows.values() if isinstance(row, Run)][-1]
        return found

    def do(self, kind: type[CompleteNode] | type[FailNode], **fields: Any) -> None:
        (node,) = [row for row in self.world.tables.rows.values() if isinstance(row, NodeRun) and row.ready]
        ids = {"run_id": node.run_id, "node_run_id": node.id, "lease_token": node.lease_token}
        command = kind(**ids, **fields)
        envelope = Envelope(str(uuid.uuid4()), command.type, node.tenant_id, subject=node.run_id)
        self.world.decide(envelope, command)

    def tell(self) -> None:
        """The events since the last call."""
        events, self._heard = self.world.events[self._heard :], len(self.world.events)
        self.script.given.put_nowait(
            [
                Keyed(
                    each.aggregate_id.encode(),
                    [("ce_type", each.event.type.encode()), ("ce_sequence", b"%d" % each.seq)],
                )
                for each in events
            ]
        )


@pytest.fixture
def runs(world: World, script: Script) -> Runs:
    return Runs(world, script)


async def test_a_run_that_ends_at_once_is_shown_ended(http: httpx.AsyncClient) -> None:
    answer = await http.post(UNTIL, json={"workflow_id": await workflow(http, GREET)})
    assert (answer.status_code, answer.json()["status"], answer.json()["output_text"]) == (201, "completed", "Hello")


async def test_the_answer_comes_with_the_event_of_the_end_and_nobody_looks_before(
    http: httpx.AsyncClient, world: World, script: Script, runs: Runs
) -> None:
    workflow_id = await workflow(http, CODE)
    script.ends.put_nowait(None)
    reads = 0
    read = world.one

    async def one(tenant_id: str, spec: Any, id: str) -> Any:
        nonlocal reads
        reads += 1
        return await read(tenant_id, spec, id)

    world.one = one  # type: ignore[method-assign]
    request = asyncio.create_task(http.post(UNTIL, json={"workflow_id": workflow_id}, headers=LONG))
    await turns()
    before = reads
    runs.tell()
    for seq in range(50):
        script.given.put_nowait([Keyed(runs.newest.id.encode(), [("ce_type", b"runtime.x"), ("ce_sequence", b"1")])])
        await turns()
        assert reads == before, seq
    runs.do(CompleteNode, output={"result_json": 1})
    runs.tell()
    answer = await request
    assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=60")
    assert (answer.json()["status"], answer.json()["output_text"]) == ("completed", "结果 1")
    assert reads == before + 1


async def test_a_run_that_fails_is_shown_failed(http: httpx.AsyncClient, script: Script, runs: Runs) -> None:
    workflow_id = await workflow(http, CODE)
    script.ends.put_nowait(None)
    request = asyncio.create_task(http.post(UNTIL, json={"workflow_id": workflow_id}, headers=LONG))
    await turns()
    runs.do(FailNode, error=Failure(code="broken", message="坏了"), retryable=False)
    runs.tell()
    answer = await request
    assert (answer.status_code, answer.json()["status"], answer.json()["error"]["code"]) == (201, "failed", "broken")


async def test_without_kafkas_events_the_end_is_found_all_the_same(http: httpx.AsyncClient, runs: Runs) -> None:
    request = asyncio.create_task(http.post(UNTIL, json={"workflow_id": await workflow(http, CODE)}, headers=LONG))
    await turns()
    runs.do(CompleteNode, output={"result_json": 1})
    assert (await request).json()["status"] == "completed"


@pytest.mark.parametrize("mode", ["auto", "manual"])
async def test_a_run_that_does_not_end_in_time_goes_on_where_202_says(
    http: httpx.AsyncClient, script: Script, runs: Runs, mode: str
) -> None:
    body = {"workflow_id": await workflow(http, CODE, tenant_id="t1"), "mode": mode, "tenant_id": "t1"}
    answer = await http.post(UNTIL, json=body, headers={"idempotency-key": "k"})
    run = runs.newest
    assert (answer.status_code, answer.headers["location"]) == (202, f"{RUNS}/{run.id}")
    told = answer.json()
    assert (told["id"], told["command_id"], told["status"]) == (run.id, run.id, "succeeded")
    shown = (await http.get(answer.headers["location"])).json()
    assert told["result"] == shown
    command = (await http.get(f"/gateway/commands/{told['command_id']}", params={"tenant_id": "t1"})).json()
    assert command["status"] == told["status"]
    if mode == "auto":
        runs.do(CompleteNode, output={"result_json": 1})
        again = await http.post(UNTIL, json=body, headers={"idempotency-key": "k"})
        assert (again.status_code, again.json()["id"], again.json()["status"]) == (201, run.id, "completed")


async def test_a_repeat_waits_for_the_same_run(
    http: httpx.AsyncClient, world: World, script: Script, runs: Runs
) -> None:
    """Also if the first request did not wait."""
    body, headers = {"workflow_id": await workflow(http, CODE)}, {"idempotency-key": "k", **LONG}
    first = await http.post(RUNS, json=body, headers=headers)
    script.ends.put_nowait(None)
    requests = [asyncio.create_task(http.post(UNTIL, json=body, headers=headers)) for _ in range(2)]
    await turns()
    runs.do(CompleteNode, output={"result_json": 1})
    runs.tell()
    for request in requests:
        answer = await request
        assert (answer.status_code, answer.json()["id"]) == (201, first.json()["id"])
        assert answer.json()["status"] == "completed"


async def test_a_start_that_is_not_known_yet_is_as_without_a_wait(http: httpx.AsyncClient, world: World) -> None:
    workflow_id = await workflow(http, CODE)
    world.workers_up = False
    answer = await http.post(UNTIL, json={"workflow_id": workflow_id}, headers={"prefer": "respond-async"})
    told = answer.json()
    assert (answer.status_code, told["status"], told["id"]) == (202, "pending", told["command_id"])
    assert answer.headers["location"] == f"/gateway/commands/{told['command_id']}"
    assert answer.headers["preference-applied"] == "respond-async"


async def test_a_start_that_is_refused_is_as_without_a_wait(http: httpx.AsyncClient) -> None:
    for path in (RUNS, UNTIL):
        answer = await http.post(path, json={"workflow_id": str(uuid.uuid4())})
        assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/workflow_id")


@pytest.mark.parametrize("query", ["until=started", "until=", "until=ended&until=x"])
async def test_there_is_nothing_else_to_wait_for(http: httpx.AsyncClient, world: World, query: str) -> None:
    workflow_id = await workflow(http, GREET)
    sent = len(world.sent)
    answer = await http.post(f"{RUNS}?{query}", json={"workflow_id": workflow_id})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/until")
    assert len(world.sent) == sent


async def test_only_the_end_of_a_run_may_be_awaited_for_a_minute(http: httpx.AsyncClient) -> None:
    body = {"workflow_id": await workflow(http, GREET)}
    for path, seconds in ((UNTIL, "60"), (RUNS, "30")):
        answer = await http.post(path, json=body, headers={"prefer": "wait=3600"})
        assert answer.headers["preference-applied"] == f"wait={seconds}"


async def test_postgres_down_while_a_run_goes_on_is_no_false_answer(
    http: httpx.AsyncClient, world: World, script: Script, runs: Runs
) -> None:
    workflow_id = await workflow(http, CODE, tenant_id="t1")
    script.ends.put_nowait(None)
    body = {"workflow_id": workflow_id, "tenant_id": "t1"}
    request = asyncio.create_task(http.post(UNTIL, json=body, headers={"prefer": "wait=1"}))
    await turns()
    world.postgres_up = False
    runs.do(CompleteNode, output={"result_json": 1})
    runs.tell()
    answer = await request
    assert (answer.status_code, answer.json()["id"]) == (202, runs.newest.id)


async def test_two_tenants_hear_of_their_own_runs(http: httpx.AsyncClient, script: Script, runs: Runs) -> None:
    ids = [await workflow(http, CHAIN if tenant == "t1" else CODE, tenant_id=tenant) for tenant in ("t1", "t2")]
    first = await http.post(UNTIL, json={"workflow_id": ids[0], "tenant_id": "t1"})
    assert (first.status_code, first.json()["tenant_id"]) == (201, "t1")
    foreign = await http.post(UNTIL, json={"workflow_id": ids[1], "tenant_id": "t1"})
    assert foreign.status_code == 422


def test_each_end_of_a_run_is_an_event() -> None:
    assert EVENTS.keys() >= ENDINGS


def test_the_document_says_what_may_be_awaited() -> None:
    operation = openapi_document(ROUTES)["paths"][RUNS]["post"]
    (until,) = [each for each in operation["parameters"] if each["name"] == "until"]
    assert until["schema"] == {"type": "string", "enum": ["ended"]}


async def test_a_step_by_hand_is_awaited_by_events(http: httpx.AsyncClient, script: Script, runs: Runs) -> None:
    workflow_id = await workflow(http, CODE)
    run = (await http.post(RUNS, json={"workflow_id": workflow_id, "mode": "manual"})).json()
    (node,) = (await http.get("/gateway/runtime/node-runs", params={"run_id": run["id"]})).json()["items"]
    script.ends.put_nowait(None)
    runs.tell()
    request = asyncio.create_task(http.post(f"/gateway/runtime/node-runs/{node['id']}/execute", headers=LONG))
    await turns()
    runs.tell()
    await turns()
    assert not request.done()
    runs.do(CompleteNode, output={"result_json": 1})
    runs.tell()
    answer = await request
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
