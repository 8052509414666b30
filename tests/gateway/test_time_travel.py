"""A run, and its node runs, as they were behind any of its events or at any time."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import pytest

from gateway.http.postgres import Postgres
from infra.database import migrate as database
from infra.local.embedded import EmbeddedStack
from schemas.decider import Recorded
from schemas.messages import Event
from schemas.runtime import RunCreated
from tests.gateway.test_runtime import CHAIN, started, workflow
from tests.gateway.test_workflows import RANDOM
from tests.gateway.world import World

RUNS, NODES = "/gateway/runtime/runs", "/gateway/runtime/node-runs"


async def stepped(http: httpx.AsyncClient) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A manual run taken to its end step by step: what it looked like at its start, and after each step."""
    run = await started(http, await workflow(http, CHAIN), mode="manual")
    seen = [run]
    while seen[-1]["status"] != "completed":
        answer = await http.post(f"{RUNS}/{run['id']}/execute-next", json={"worker_key": "w"})
        seen.append(answer.json())
    return run, seen


async def test_a_run_is_shown_as_it_was_behind_each_event(http: httpx.AsyncClient, world: World) -> None:
    run, seen = await stepped(http)
    assert len({each["seq"] for each in seen}) == len(seen) >= 4
    for before in seen:
        answer = await http.get(f"{RUNS}/{run['id']}", params={"at_seq": before["seq"]})
        assert (answer.status_code, answer.json()) == (200, before)


async def test_a_run_is_shown_as_it_was_at_a_time(http: httpx.AsyncClient, world: World) -> None:
    run, seen = await stepped(http)
    times = {each.seq: each.at for each in world.events if each.aggregate_id == run["id"]}
    for before in seen:
        for offset, expected in ((0.0, before), (0.4, before)):
            at = datetime.fromtimestamp(times[before["seq"]] + offset, UTC).isoformat()
            answer = await http.get(f"{RUNS}/{run['id']}", params={"at": at})
            assert answer.json()["seq"] == max(seq for seq, time in times.items() if time <= times[expected["seq"]])
    answer = await http.get(f"{RUNS}/{run['id']}", params={"at": "2999-01-01T00:00:00+01:00"})
    assert answer.json() == seen[-1]


async def test_a_time_zones_plus_may_come_as_a_space(http: httpx.AsyncClient) -> None:
    run, seen = await stepped(http)
    answer = await http.get(f"{RUNS}/{run['id']}?at=2999-01-01T00:00:00+01:00")
    assert answer.json() == seen[-1]


async def test_a_place_the_run_never_reached_is_not_found_and_says_how_far_it_came(http: httpx.AsyncClient) -> None:
    run, seen = await stepped(http)
    last = seen[-1]["seq"]
    for path in (f"{RUNS}/{run['id']}?at_seq={last + 1}", f"{NODES}?run_id={run['id']}&at_seq={last + 1}"):
        answer = await http.get(path)
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["last_seq"]) == (404, "seq_not_reached", last)


async def test_a_time_before_the_run_is_not_found(http: httpx.AsyncClient) -> None:
    run, _ = await stepped(http)
    answer = await http.get(f"{RUNS}/{run['id']}", params={"at": "1969-12-31T23:59:59Z"})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_yet_created")


async def test_a_seq_and_a_time_together_are_refused(http: httpx.AsyncClient) -> None:
    run, _ = await stepped(http)
    for query in ("at_seq=1&at=2026-01-01T00:00:00Z", "at_seq=1&at_seq=2"):
        answer = await http.get(f"{RUNS}/{run['id']}?{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, "conflicting_parameters")


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("at_seq=0", "/query/at_seq"),
        ("at_seq=-1", "/query/at_seq"),
        ("at_seq=1.5", "/query/at_seq"),
        ("at_seq=٣", "/query/at_seq"),
        ("at_seq=9999999999", "/query/at_seq"),
        ("at_seq=", "/query/at_seq"),
        ("at=yesterday", "/query/at"),
        ("at=2026-01-01T00:00:00", "/query/at"),
        ("at=", "/query/at"),
    ],
)
async def test_what_is_no_moment_names_itself(http: httpx.AsyncClient, query: str, pointer: str) -> None:
    run, _ = await stepped(http)
    for path in (f"{RUNS}/{run['id']}?{query}", f"{NODES}?run_id={run['id']}&{query}"):
        answer = await http.get(path)
        assert answer.status_code == 422
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_the_past_is_its_tenants_alone(http: httpx.AsyncClient) -> None:
    run, _ = await stepped(http)
    for id in (run["id"], RANDOM):
        answer = await http.get(f"{RUNS}/{id}?at_seq=1", headers={"x-tenant-id": "t2"})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await http.get(f"{NODES}?run_id={run['id']}&at_seq=1", headers={"x-tenant-id": "t2"})
    assert answer.json() == {"items": [], "next_cursor": None}


async def test_node_runs_are_shown_as_they_were(http: httpx.AsyncClient) -> None:
    run = await started(http, await workflow(http, CHAIN), mode="manual")
    path = f"{NODES}?run_id={run['id']}"
    seen = []
    while run["status"] != "completed":
        run = (await http.post(f"{RUNS}/{run['id']}/execute-next", json={"worker_key": "w"})).json()
        seen.append((run["seq"], (await http.get(path)).json()))
    for seq, before in seen:
        assert (await http.get(f"{path}&at_seq={seq}")).json() == before
    seq, before = seen[1]
    statuses = {item["node_id"]: item["status"] for item in before["items"]}
    completed = (await http.get(f"{path}&at_seq={seq}&status=completed")).json()["items"]
    assert [item["node_id"] for item in completed] == [id for id, status in statuses.items() if status == "completed"]
    paged: list[Any] = []
    more = ""
    while not paged or more:
        page = (await http.get(f"{path}&at_seq={seen[-1][0]}&limit=1{more}")).json()
        paged += page["items"]
        more = f"&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert paged == seen[-1][1]["items"]


async def test_the_past_of_node_runs_needs_its_run(http: httpx.AsyncClient) -> None:
    answer = await http.get(f"{NODES}?at_seq=1")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/query/run_id"


@pytest.fixture
async def log(services: EmbeddedStack) -> AsyncIterator[Postgres]:
    """A log with a run of 1 200 events of tenant t1, more than one read takes."""
    url = await services.new_database(f"past_{uuid.uuid4().hex[:12]}")
    await database.migrate(url, 12, 12)
    admin = await asyncpg.connect(url)
    body = RunCreated(workflow_id=RANDOM, workflow_version_id=RANDOM).encode()
    await admin.execute(
        "insert into event select $1, n, 3, n, 'runtime.run_created', 't1', n, 'ada', 'c', 'm', '', $2"
        " from generate_series(1, 1200) n",
        RANDOM,
        body,
    )
    reads = await Postgres.connect(url, connections_max=2)
    try:
        yield reads
    finally:
        await reads.close()
        await admin.close()


async def read(log: Postgres, tenant_id: str, seq_max: int | None) -> list[Recorded[Event]]:
    return [each async for each in log.history(tenant_id, RANDOM, seq_max)]


async def test_postgres_gives_a_history_to_its_tenant_only(log: Postgres) -> None:
    history = await read(log, "t1", None)
    assert [each.seq for each in history] == list(range(1, 1_201))
    assert (history[6].at, history[6].tenant_id, history[6].lane, history[6].actor) == (7.0, "t1", 3, "ada")
    assert isinstance(history[6].event, RunCreated)
    assert [each.seq for each in await read(log, "t1", 600)] == list(range(1, 601))
    assert await read(log, "t2", None) == []
