"""Leases in Postgres: claims are fair and read as much however many steps wait; what is given back comes again."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import orjson
import pytest

from bus import postgres
from handlers.steps import leases
from handlers.steps.leases import Claimed, Leases
from infra.local.embedded import EmbeddedStack
from infra.roles.prepare import migrate
from infra.settings import Settings
from tests.live import settings_for

pytestmark = pytest.mark.services

WAITING = """
INSERT INTO node_run (id, run_id, tenant_id, lane, node_id, path, iteration, node_type, kind, seq, status, attempt,
  requeues, worker, lease_token, ready, timeout_seconds, created_at, listed, input)
SELECT gen_random_uuid(), $1, $2, 0, 'a', 'a', '1', 'tool', 'tool', 1, 'queued', 1, 0, '', 1, true, $5,
  $3 + n::float8 / 1000, 1, '{}'::bytea FROM generate_series(1, $4::int) AS n
"""
RUN = """
INSERT INTO run (id, tenant_id, seq, status, kind, mode, workflow_id, workflow_version_id, allowance, active, pending,
  inputs, state, compensates, compensation_failed, compensations, correlation_id, traceparent, actor,
  children, paused, parent_paused)
VALUES ($1, 't', 1, 'running', 'graph', 'auto', $1, $1, 0, 0, 0, '{}', '{}', true, false, 0, 'c', 'tp', '',
  0, false, false)
"""


class Steps:
    """A database with steps that wait, and an executor's leases on it."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.run = str(uuid.uuid4())
        self.leases = Leases(pool, "executor-1", 8.0)

    async def wait(self, tenant_id: str, count: int, *, since: float = 1_000.0, timeout_seconds: float = 0.0) -> None:
        await self.pool.execute(WAITING, self.run, tenant_id, since, count, timeout_seconds)

    async def only(self, query: str, *arguments: Any) -> Any:
        (row,) = await self.pool.fetch(query, *arguments)
        return tuple(row)

    async def pass_time(self, seconds: float) -> None:
        await self.pool.execute("UPDATE node_run SET lease_until = lease_until - $1::float8", seconds)


@pytest.fixture(scope="module")
def settings(services: EmbeddedStack) -> Settings:
    settings = settings_for(services, f"leases_{uuid.uuid4().hex[:8]}")

    async def migrated() -> None:
        await services.new_database(settings.required_database_url.rpartition("/")[2])
        await migrate(settings)

    asyncio.run(migrated())
    return settings


@pytest.fixture
async def steps(settings: Settings) -> AsyncIterator[Steps]:
    pool = await postgres.connect(settings, size=2, application="test")
    await pool.execute("DELETE FROM node_run")
    await pool.execute("DELETE FROM run")
    steps = Steps(pool)
    await pool.execute(RUN, steps.run)
    yield steps
    await pool.close()


def tenants(claimed: list[Claimed]) -> Counter[str]:
    return Counter(each.row.tenant_id for each in claimed)


async def test_the_ten_steps_of_one_tenant_are_in_the_first_claim_beside_fifty_thousand_of_another(
    steps: Steps,
) -> None:
    await steps.wait("big", 50_000, since=1_000.0)
    await steps.wait("small", 10, since=2_000.0)
    await steps.pool.execute("ANALYZE node_run")
    read = await rows_read(steps, count=100)
    assert read <= 100 + 10 + 5, read
    assert tenants(await steps.leases.claim("tool", 20)) == {"big": 10, "small": 10}
    assert tenants(await steps.leases.claim("tool", 100)) == {"big": 100}


async def test_a_claim_reads_no_more_with_a_thousand_tenants(steps: Steps) -> None:
    for number in range(1_000):
        await steps.wait(f"t{number:04}", 2)
    await steps.wait("t0500", 10_000)
    await steps.pool.execute("ANALYZE node_run")
    assert await rows_read(steps, count=100) <= 3 * 100 + 5
    assert await rows_read(steps, count=3) <= 3 * 3 + 5


async def rows_read(steps: Steps, count: int) -> int:
    """How many rows a claim takes out of the table and its index, in a transaction that is rolled back.

    The rows that are locked, updated and shown are read by their id; those are no more than `count` each.
    """
    async with steps.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        sql = f"EXPLAIN (ANALYZE, FORMAT JSON) {leases._CLAIM}"
        explained = await connection.fetchval(sql, "tool", count, "w", 8.0, "", [])
        await transaction.rollback()
    return sum(_read(orjson.loads(explained)[0]["Plan"]))


def _read(plan: dict[str, Any]) -> list[int]:
    rows = []
    if plan.get("Index Name") == "node_run_ready" or plan["Node Type"] == "Seq Scan":
        filtered = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        rows.append(round((plan["Actual Rows"] + filtered) * plan["Actual Loops"]))
    for child in plan.get("Plans", ()):
        rows += _read(child)
    return rows


async def test_claims_go_on_behind_the_tenant_served_last(steps: Steps) -> None:
    for name in "abcde":
        await steps.wait(name, 4)
    served = [tenants(await steps.leases.claim("tool", 2)) for _ in range(10)]
    assert served == [Counter(pair) for pair in ("ab", "cd", "ea", "bc", "de", "ab", "cd", "ea", "bc", "de")]
    assert await steps.leases.claim("tool", 2) == []


async def test_the_oldest_of_a_tenant_come_first(steps: Steps) -> None:
    await steps.wait("a", 5, since=2_000.0)
    await steps.wait("a", 5, since=1_000.0)
    claimed = await steps.leases.claim("tool", 5)
    assert all(each.row.created_at < 2_000.0 for each in claimed)
    assert {each.run.version_id for each in claimed if each.run} == {steps.run}


async def test_full_tenants_are_passed_over(steps: Steps) -> None:
    await steps.wait("a", 5)
    await steps.wait("b", 5)
    assert tenants(await steps.leases.claim("tool", 4, {"a"})) == {"b": 4}
    assert tenants(await steps.leases.claim("tool", 4, {"a", "b"})) == {}


async def test_a_row_that_cannot_be_read_is_claimed_with_its_problem(steps: Steps) -> None:
    await steps.wait("a", 1)
    await steps.wait("b", 1)
    await steps.pool.execute("UPDATE node_run SET input = 'no json' WHERE tenant_id = 'a'")
    bad, good = sorted(await steps.leases.claim("tool", 5), key=lambda each: each.row.tenant_id)
    assert bad.problem
    assert (bad.row.tenant_id, bad.row.lease_token, bad.row.input) == ("a", 1, None)
    assert (good.problem, good.row.input) == ("", {})


async def test_what_is_given_back_is_offered_again_after_a_while(steps: Steps) -> None:
    """Under the same token, as it was never begun; sooner if it is young."""
    await steps.wait("a", 1)
    (claimed,) = await steps.leases.claim("tool", 1)
    await steps.leases.give_back([claimed.row.id], [2])
    assert await steps.leases.expired([0]) == []
    (by,) = await steps.only("SELECT leased_by FROM node_run")
    assert by == "executor-1"
    await steps.leases.give_back([claimed.row.id], [1])
    assert await steps.leases.expired([0]) == []
    assert await steps.leases.claim("tool", 1) == []
    await steps.pass_time(61.0)
    assert await steps.leases.expired([1]) == []
    assert await steps.leases.claim("tool", 1) == []
    assert await steps.leases.expired([0]) == []
    (again,) = await steps.leases.claim("tool", 1)
    assert (again.row.id, again.row.lease_token) == (claimed.row.id, 1)


async def test_what_is_abandoned_has_run_out(steps: Steps) -> None:
    await steps.wait("a", 2)
    one, two = await steps.leases.claim("tool", 2)
    await steps.pool.execute("UPDATE node_run SET listed = 0")
    await steps.leases.abandon(one.row)
    await steps.leases.finish([(two.row.id, 1, b"done")])
    await steps.leases.abandon(two.row)
    assert [each.id for each in await steps.leases.expired([0])] == [one.row.id]
