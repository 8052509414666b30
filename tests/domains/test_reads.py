"""Every table as the gateway reads it: its tenant's rows, nobody else's; and every route's example as it takes it."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import asyncpg
import httpx
import pytest

from bus.postgres import PostgresStore
from bus.store import Advance, Writes
from gateway.http.ports import Page
from gateway.http.postgres import Postgres
from gateway.http.state import Gateway
from infra.database.tables import ACCESS
from infra.db import TableSpec, session
from infra.domains import DOMAINS, PROJECTIONS
from infra.local.embedded import EmbeddedStack
from infra.settings import Settings
from tests.contract.stores import SPECS, postgres
from tests.domains.platform import TENANT
from tests.domains.stories import STORIES
from tests.gateway.world import World, client_of, gateway_over

OTHER = "t2"


@dataclass
class Filled:
    """A database with the rows of every story, and the same rows as another tenant's, under ids of their own."""

    url: str
    store: PostgresStore
    reads: Postgres
    rows: dict[str, list[Any]]
    others: dict[str, list[Any]]


async def rows_of_all_stories() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {spec.name: [] for spec in PROJECTIONS}
    for story in STORIES:
        platform = await story.played(len(story.steps))
        for spec in story.domain.tables:
            found[spec.name] += platform.rows()[spec.name].values()
    return found


@pytest.fixture
async def filled(services: EmbeddedStack) -> AsyncIterator[Filled]:
    rows = await rows_of_all_stories()
    others = {name: [replace(row, id=str(uuid.uuid4()), tenant_id=OTHER) for row in of] for name, of in rows.items()}
    async with postgres(services) as backend:
        (claimed,) = await backend.store.claim([0], "test")
        for part in (rows, others):
            advance = Advance(0, claimed.epoch, claimed.next_offset, claimed.next_offset, claimed.position, 0, 0)
            await backend.store.write(Writes([advance], inserts=part))
        database = await backend.store.pool.fetchval("SELECT current_database()")
        url = services.postgres.url_of(database)
        reads = await Postgres.connect(url, connections_max=2)
        try:
            yield Filled(url, backend.store, reads, rows, others)
        finally:
            await reads.close()


async def listed(filled: Filled, tenant_id: str, spec: TableSpec) -> list[Any]:
    return list((await filled.reads.page(tenant_id, Page(spec, ("id",), 1_000, descending=False))).rows)


@pytest.mark.services
async def test_a_tenant_reads_its_own_rows_of_every_table_as_they_were_stored(filled: Filled) -> None:
    for spec in PROJECTIONS:
        assert filled.rows[spec.name], f"no story leaves a row in {spec.name}"
        for tenant, own, foreign in ((TENANT, filled.rows, filled.others), (OTHER, filled.others, filled.rows)):
            assert await listed(filled, tenant, spec) == sorted(own[spec.name], key=lambda row: row.id)
            for row in own[spec.name]:
                assert await filled.reads.one(tenant, spec, row.id) == row
                assert await filled.reads.tenant_of(spec.name, row.id) == tenant
            for row in foreign[spec.name]:
                assert await filled.reads.one(tenant, spec, row.id) is None
        assert await listed(filled, "t3", spec) == []


@pytest.mark.services
async def test_the_gateways_roles_see_no_more_of_a_table_than_they_must(filled: Filled) -> None:
    reading = await asyncpg.connect(filled.url, server_settings=session(filled.url, "gateway"))
    looking = await asyncpg.connect(filled.url, server_settings=session(filled.url, "lookup"))
    try:
        for name in (table.name for table in ACCESS.tables if "tenant_id" in table.columns):
            if name not in ACCESS.readable:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await reading.fetch(f"SELECT 1 FROM {name}")
            if name not in (ACCESS.looked_up or {}):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await looking.fetch(f"SELECT 1 FROM {name}")
        for name in SPECS:
            with pytest.raises(asyncpg.PostgresError, match="no tenant is set"):
                await reading.fetch(f"SELECT 1 FROM {name}")
            for statement in (f"UPDATE {name} SET tenant_id = 'x'", f"DELETE FROM {name}", f"TRUNCATE {name}"):
                for connection in (reading, looking):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(statement)
            if name != "api_key":  # Its hash is what a caller is known by.
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await looking.fetch(f"TABLE {name}")
    finally:
        await reading.close()
        await looking.close()


@pytest.fixture
def gateway() -> Gateway:
    return gateway_over(World(), Settings(outcome_wait_seconds=0.2))


async def test_the_example_of_every_operation_is_a_request_that_it_takes(gateway: Gateway) -> None:
    """What a path or a reference names is not there, which is found out after the body was read."""
    async with client_of(gateway) as client:
        document = (await client.get("/openapi.json")).json()
        asked = 0
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                content = operation.get("requestBody", {}).get("content", {}).get("application/json")
                if content is not None:
                    answer = await _ask(client, method, path, content["example"])
                    read = answer.status_code in (200, 201, 404) or "command_id" in answer.json()
                    assert read, f"{method} {path}: {answer.text}"
                    asked += 1
    assert asked >= len(DOMAINS)


async def _ask(client: httpx.AsyncClient, method: str, path: str, example: Any) -> httpx.Response:
    headers = {"x-tenant-id": example.get("tenant_id", TENANT)}
    return await client.request(method, re.sub(r"\{\w+\}", str(uuid.uuid4()), path), json=example, headers=headers)
