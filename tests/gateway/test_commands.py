"""A command's way out and its outcome's way back: waits, retries, limits, faults."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.http.ports import Outcome
from gateway.http.state import Gateway
from infra.settings import Settings
from schemas.messages import UUID_PATTERN, natural_id
from schemas.topics import partition_of
from tests.gateway.world import World, client_of, gateway_over

APPS = "/gateway/workflows/apps"
APP = {"tenant_id": "t1", "code": "a", "name": "A"}


async def test_a_command_goes_to_its_aggregates_partition_with_all_that_its_envelope_says(
    http: httpx.AsyncClient, world: World
) -> None:
    await http.post(APPS, json=APP, headers={"x-user-id": "ada", "x-request-id": "r-1"})
    envelope, _, partition = world.sent[0]
    assert envelope.subject == natural_id("t1", "app", "a")
    assert partition == partition_of(envelope.subject, 12)
    assert (envelope.actor, envelope.correlation_id, envelope.reply_partition) == ("ada", "r-1", 0)
    assert len(envelope.fingerprint) == 64
    assert envelope.time.endswith("Z")


async def test_respond_async_is_202_with_where_to_ask(http: httpx.AsyncClient, world: World) -> None:
    answer = await http.post(APPS, json=APP, headers={"prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    id = answer.json()["command_id"]
    assert answer.headers["location"] == f"/gateway/commands/{id}"
    told = (await http.get(answer.headers["location"])).json()
    assert (told["command_id"], told["status"], told["result"]["code"]) == (id, "succeeded", "a")


async def test_no_outcome_in_time_is_202_never_success(http: httpx.AsyncClient, world: World) -> None:
    world.workers_up = False
    answer = await http.post(APPS, json=APP)
    assert answer.status_code == 202
    pending = await http.get(answer.headers["location"])
    assert pending.json() == {"command_id": answer.json()["command_id"], "status": "pending"}
    assert "retry-after" in pending.headers


async def test_a_lost_reply_is_found_in_the_outcome_row(http: httpx.AsyncClient, world: World) -> None:
    world.replies_lost = True
    answer = await http.post(APPS, json=APP, headers={"prefer": "wait=0.0, wait=1"})
    assert (answer.status_code, answer.json()["code"]) == (201, "a")
    assert answer.headers["preference-applied"] == "wait=1"


@pytest.mark.parametrize(("prefer", "applied"), [("wait=90", "wait=30"), ("wait=2", "wait=2"), ("wait=x", None)])
async def test_the_wait_asked_for_is_capped(http: httpx.AsyncClient, prefer: str, applied: str | None) -> None:
    answer = await http.post(APPS, json=APP, headers={"prefer": prefer})
    assert answer.status_code == 201
    assert answer.headers.get("preference-applied") == applied


async def test_a_rejection_is_told_as_the_outcome_too(http: httpx.AsyncClient) -> None:
    await http.post(APPS, json=APP)
    answer = await http.post(APPS, json=APP)
    told = (await http.get(f"/gateway/commands/{answer.json()['command_id']}", params={"tenant_id": "t1"})).json()
    assert (told["status"], told["error"]["code"]) == ("rejected", "definition_exists")


async def test_an_id_nobody_issued_and_another_tenants_are_both_pending(http: httpx.AsyncClient) -> None:
    answer = await http.post(APPS, json=APP, headers={"prefer": "respond-async"})
    for id in (answer.json()["command_id"], "7d444840-9dc0-41d1-b245-5ffdce74fad2"):
        told = await http.get(f"/gateway/commands/{id}", headers={"x-tenant-id": "t2"})
        assert told.json() == {"command_id": id, "status": "pending"}


async def test_the_same_key_and_request_have_one_effect(http: httpx.AsyncClient, world: World) -> None:
    headers = {"idempotency-key": "k-1"}
    answers = [await http.post(APPS, json=APP, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 201]
    assert len({answer.text for answer in answers}) == 1
    assert len(world.events) == 1
    assert {envelope.id for envelope, _, _ in world.sent} == {natural_id("t1", "command", "k-1")}


async def test_the_same_key_with_another_request_is_refused_and_the_first_outcome_stays(
    http: httpx.AsyncClient, world: World
) -> None:
    headers = {"idempotency-key": "k-1"}
    await http.post(APPS, json=APP, headers=headers)
    other = await http.post(APPS, json=APP | {"name": "B"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    again = await http.post(APPS, json=APP, headers=headers)
    assert again.status_code == 201


async def test_the_same_key_with_another_request_is_refused_while_the_first_is_in_flight(
    gateway: Gateway, world: World
) -> None:
    world.workers_up = False
    async with client_of(gateway) as http:
        headers = {"idempotency-key": "k-1", "prefer": "wait=5"}
        first = asyncio.create_task(http.post(APPS, json=APP, headers=headers))
        envelope, command = await world.arrivals.get()
        other = await http.post(APPS, json=APP | {"name": "B"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert len(world.sent) == 1
        world.resolve(world.handle(envelope, command))
        assert (await first).status_code == 201


async def test_keys_of_different_tenants_do_not_meet(http: httpx.AsyncClient, world: World) -> None:
    headers = {"idempotency-key": "k-1"}
    for tenant in ("t1", "t2"):
        assert (await http.post(APPS, json=APP | {"tenant_id": tenant}, headers=headers)).status_code == 201
    assert len(world.events) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb"])
async def test_a_key_that_cannot_be_one_is_refused(http: httpx.AsyncClient, key: str) -> None:
    answer = await http.post(APPS, json=APP, headers={"idempotency-key": key})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_idempotency_key")


async def test_two_requests_with_one_key_share_one_outcome(gateway: Gateway, world: World) -> None:
    world.workers_up = False
    async with client_of(gateway) as http:
        headers = {"idempotency-key": "k-1", "prefer": "wait=5"}
        calls = [asyncio.create_task(http.post(APPS, json=APP, headers=headers)) for _ in range(2)]
        await world.arrivals.get()
        envelope, command = await world.arrivals.get()
        assert gateway.in_flight.count("t1") == 1
        world.resolve(world.handle(envelope, command))
        assert [(await call).status_code for call in calls] == [201, 201]
        assert gateway.in_flight.count("t1") == 0


async def test_too_many_commands_in_flight_are_refused_per_tenant(world: World) -> None:
    gateway = gateway_over(world, Settings(outcome_wait_seconds=0, commands_in_flight_max=2))
    world.workers_up = False
    async with client_of(gateway) as http:

        async def status(tenant: str, code: str) -> tuple[int, dict[str, str]]:
            answer = await http.post(APPS, json={"tenant_id": tenant, "code": code, "name": "x"})
            return answer.status_code, dict(answer.headers)

        assert [(await status("t1", code))[0] for code in "ab"] == [202, 202]
        refused, headers = await status("t1", "c")
        assert refused == 429
        assert "retry-after" in headers
        assert (await status("t2", "c"))[0] == 202
        envelope, command, _ = world.sent[0]
        world.resolve(world.handle(envelope, command))
        assert (await status("t1", "d"))[0] == 202
        world.now += 61
        assert (await status("t1", "e"))[0] == 202, "a command whose reply got lost stops counting"


async def test_kafka_down_is_503_with_the_commands_id(http: httpx.AsyncClient, world: World) -> None:
    world.bus_up = False
    answer = await http.post(APPS, json=APP)
    assert (answer.status_code, answer.json()["code"]) == (503, "kafka_unavailable")
    assert UUID_PATTERN.match(answer.json()["command_id"])
    assert "retry-after" in answer.headers
    ready = await http.get("/ready")
    assert (ready.status_code, ready.json()["services"]) == (503, {"kafka": "down", "postgres": "up"})


async def test_postgres_down_is_503_for_reads_and_unknown_for_writes(http: httpx.AsyncClient, world: World) -> None:
    world.postgres_up = False
    world.replies_lost = True
    read = await http.get("/gateway/runtime/runs")
    assert (read.status_code, "command_id" in read.json()) == (503, False)
    write = await http.post(APPS, json=APP)
    assert write.status_code == 503
    assert UUID_PATTERN.match(write.json()["command_id"])
    health = await http.get("/gateway/services/health")
    assert (health.status_code, health.json()["services"]["postgres"]) == (200, "down")


async def test_a_failed_command_is_a_500_with_its_reason(http: httpx.AsyncClient, world: World) -> None:
    world.workers_up = False
    call = asyncio.create_task(http.post(APPS, json=APP, headers={"prefer": "wait=5"}))
    envelope, _ = await world.arrivals.get()
    body = {"code": "internal_error", "detail": "poison", "status": 500}
    world.resolve(Outcome(envelope.id, "failed", body))
    answer = await call
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
