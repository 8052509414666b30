"""Request audits: every request leaves one, none is lost, each is its tenant's."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from gateway.audit import BATCH_RECORDS_MAX
from gateway.http.ports import DatabaseUnavailable
from gateway.http.state import Gateway
from tests.gateway.world import World
from tests.patience import patient


async def test_a_request_leaves_what_is_known_about_it(http: httpx.AsyncClient) -> None:
    headers = {"x-tenant-id": "t1", "x-user-id": "ada", "x-request-id": "r-1"}
    await http.get("/gateway/runtime/runs/7d444840-9dc0-41d1-b245-5ffdce74fad2?x=1", headers=headers)
    answer = await http.get("/gateway/audits?tenant_id=t1&limit=20", headers={"x-tenant-id": "t1"})
    (record,) = answer.json()["items"]
    assert record["duration_ms"] > 0
    assert {name: record[name] for name in ("tenant_id", "api_key_id", "user_id", "method", "status_code")} == {
        "tenant_id": "t1",
        "api_key_id": None,
        "user_id": "ada",
        "method": "GET",
        "status_code": 404,
    }
    assert record["path"] == "/gateway/runtime/runs/7d444840-9dc0-41d1-b245-5ffdce74fad2"
    assert record["route"] == "/gateway/runtime/runs/{run_id}"
    assert record["request_id"] == "r-1"


async def test_the_tenant_of_a_body_or_an_object_counts(
    http: httpx.AsyncClient, gateway: Gateway, world: World
) -> None:
    made = await http.post("/gateway/workflows/apps", json={"tenant_id": "t1", "code": "a", "name": "A"})
    await http.get(f"/gateway/workflows/apps/{made.json()['id']}")
    await http.get("/gateway/nowhere/%00")
    await http.get("/ready")
    await gateway.audit.flush()
    assert [(each.tenant_id, each.status_code, each.route) for each in world.audits] == [
        ("t1", 201, "/gateway/workflows/apps"),
        ("t1", 200, "/gateway/workflows/apps/{app_id}"),
        ("public", 404, ""),
    ]


async def test_nothing_is_lost_while_postgres_is_away(http: httpx.AsyncClient, gateway: Gateway, world: World) -> None:
    world.postgres_up = False
    for _ in range(3):
        await http.get("/gateway/nowhere")
    with pytest.raises(DatabaseUnavailable):
        await gateway.audit.flush()
    world.postgres_up = True
    await http.get("/gateway/nowhere")
    await gateway.audit.flush()
    assert len({each.id for each in world.audits}) == len(world.audits) == 4


async def test_batches_are_bounded(http: httpx.AsyncClient, gateway: Gateway, world: World) -> None:
    sizes = []
    write = world.write_audit

    async def counted(records: list[object]) -> None:
        sizes.append(len(records))
        await write(records)  # type: ignore[arg-type]

    world.write_audit = counted  # type: ignore[method-assign, assignment]
    await http.get("/gateway/nowhere")
    call = world.audits
    await gateway.audit.flush()
    for _ in range(BATCH_RECORDS_MAX + 1):
        await http.get("/gateway/nowhere")
    await gateway.audit.flush()
    assert sizes == [1, BATCH_RECORDS_MAX, 1]
    assert len(call) == BATCH_RECORDS_MAX + 2


async def test_the_background_writer_stops_when_told(gateway: Gateway) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(gateway.audit.run(stop))
    stop.set()
    async with asyncio.timeout(patient(5)):
        await task


async def test_stats_count_one_tenants_requests(http: httpx.AsyncClient) -> None:
    for tenant in ("t1", "t1", "t2"):
        await http.get("/gateway/runtime/runs", headers={"x-tenant-id": tenant})
    stats = (await http.get("/gateway/audits/stats?tenant_id=t1", headers={"x-tenant-id": "t1"})).json()
    assert (stats["tenant_id"], stats["requests"]) == ("t1", 2)
    assert (await http.get("/gateway/audits/stats?seconds=0")).status_code == 422


async def test_seconds_with_many_digits_are_refused(http: httpx.AsyncClient) -> None:
    for text in ("0" * 8 + "1" * 400, "1" * 5_000):
        answer = await http.get(f"/gateway/audits/stats?seconds={text}")
        assert answer.status_code == 422
