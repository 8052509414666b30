"""Roles, grants, row level security and the schema's fingerprint: as declared after every migration."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from gateway.http.postgres import Postgres
from infra.database import migrate as database
from infra.database import policies, schema
from infra.database.tables import ACCESS, metadata
from infra.db import PARTS, ROLE_BYTES_MAX, Part, database_of, role_of, session
from infra.local.embedded import EmbeddedStack
from infra.roles.executor import run_executor
from infra.roles.gateway import run_gateway
from infra.roles.prepare import create_topics
from infra.roles.worker import run_worker
from infra.settings import Settings, SettingsError
from tests.command_line import ap
from tests.live import execute, settings_for
from tests.patience import patient

LATER = sa.Table(
    "later",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant_id", sa.Text, nullable=False),
)
LATER_ACCESS = replace(
    ACCESS,
    tables=[*ACCESS.tables, LATER],
    readable=[*ACCESS.readable, "later"],
    looked_up={**(ACCESS.looked_up or {}), "later": ("tenant_id",)},
)


@contextlib.asynccontextmanager
async def migrated(services: EmbeddedStack, name: str) -> AsyncIterator[str]:
    """The address of a migrated database of that name; database and roles are dropped at the end."""
    url = await services.new_database(name)
    try:
        await database.migrate(url, 2, 1)
        yield url
    finally:
        await services.drop_database(name)
        for part in PARTS:
            await execute(services, f"DROP ROLE IF EXISTS {policies.quoted(role_of(part, name))}")


@pytest.fixture
async def url(services: EmbeddedStack) -> AsyncIterator[str]:
    async with migrated(services, f"policies_{uuid.uuid4().hex[:8]}") as address:
        yield address


@contextlib.asynccontextmanager
async def connected(url: str, part: Part | None = None, role: str = "") -> AsyncIterator[asyncpg.Connection]:
    """A session of a part, of another role, or of the owner."""
    settings = session(url, part) if part else {"role": role} if role else {}
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        yield connection
    finally:
        await connection.close()


# --- names ---------------------------------------------------------------------------------------------------


def test_every_database_has_roles_of_its_own_and_their_names_fit() -> None:
    names = ["a", "b", "A", "agent_platform", "ö" * 29, "x" * 54, "x" * 55, "x" * 63, "x" * 62 + "y", '"; --', "a b"]
    made = [role_of(part, name) for part in PARTS for name in names]
    assert len(set(made)) == len(made)
    assert max(len(role.encode()) for role in made) <= ROLE_BYTES_MAX
    assert made == [role_of(part, name) for part in PARTS for name in names]
    assert role_of("worker", "shop") == "ap_worker_shop"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://u:p@h:5432/shop", "shop"),
        ("postgresql://u:p@h/a%20b%25?sslmode=require", "a b%"),
        ("postgresql://u:p@h/", "u"),
        ("postgresql://u:p@h?dbname=shop", "shop"),
        ("postgresql:///shop?host=/run/postgresql", "shop"),
    ],
)
def test_the_database_is_named_as_the_driver_reads_its_address(url: str, name: str) -> None:
    assert database_of(url) == name


def test_an_address_without_a_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGDATABASE", raising=False)
    monkeypatch.delenv("PGUSER", raising=False)
    with pytest.raises(ValueError, match="names no database"):
        database_of("postgresql://h:5432")


# --- two installations in one cluster ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", " \"%41' é:x"])
async def test_two_databases_of_a_cluster_know_nothing_of_each_other(services: EmbeddedStack, suffix: str) -> None:
    first, second = (f"{each}_{uuid.uuid4().hex[:8]}" for each in ("first", "second"))
    async with _quoted(services, second + suffix) as kept:
        async with migrated(services, first) as gone:
            own = role_of("worker", first)
            async with connected(kept, role=own) as stranger:
                for table in ("run", "lane", "event"):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await stranger.fetch(f"SELECT * FROM {table}")
            async with connected(gone, "worker") as worker:
                assert await worker.fetchval("SELECT count(*) FROM lane") == 3
        async with connected(kept, "worker") as worker:
            assert await worker.fetchval("SELECT count(*) FROM lane") == 3
        await database.migrate(kept, 2, 1)
        reads = await Postgres.connect(kept, connections_max=1)
        assert await reads.tenant_of("run", str(uuid.uuid4())) is None
        assert not await reads.any_api_key()
        await reads.close()


@contextlib.asynccontextmanager
async def _quoted(services: EmbeddedStack, name: str) -> AsyncIterator[str]:
    """As `migrated`, for a name that needs quotes in SQL and escapes in an address."""
    await execute(services, f"CREATE DATABASE {policies.quoted(name)}")
    try:
        address = services.postgres.url_of(quote(name, safe=""))
        await database.migrate(address, 2, 1)
        yield address
    finally:
        await execute(services, f"DROP DATABASE {policies.quoted(name)} WITH (FORCE)")
        for part in PARTS:
            await execute(services, f"DROP ROLE IF EXISTS {policies.quoted(role_of(part, name))}")


# --- policies and grants -------------------------------------------------------------------------------------------


async def test_a_table_added_later_is_protected_by_the_next_migration(url: str) -> None:
    async with connected(url) as owner:
        await owner.execute(str(CreateTable(LATER)))
        await owner.execute("INSERT INTO later VALUES (1, 't1'), (2, 't2')")
        await database.migrate(url, 2, 1, LATER_ACCESS)
        forced = "SELECT relrowsecurity AND relforcerowsecurity FROM pg_class WHERE relname = 'later'"
        assert await owner.fetchval(forced)
    async with connected(url, "gateway") as gateway:
        with pytest.raises(asyncpg.PostgresError, match="no tenant is set"):
            await gateway.fetch("TABLE later")
        await gateway.execute("SELECT set_config('app.tenant_id', 't1', false)")
        assert [tuple(row) for row in await gateway.fetch("TABLE later")] == [(1, "t1")]
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await gateway.execute("DELETE FROM later")
    async with connected(url, "lookup") as lookup:
        assert len(await lookup.fetch("SELECT tenant_id FROM later")) == 2
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await lookup.fetch("SELECT id FROM later")
    async with connected(url, "worker") as worker:
        await worker.execute("UPDATE later SET tenant_id = 't3' WHERE id = 1")
        assert await worker.fetchval("SELECT count(*) FROM later") == 2


async def test_every_declared_table_may_be_used_as_declared_and_no_otherwise(url: str) -> None:
    async with connected(url) as owner:
        held = await owner.fetch(
            "SELECT table_name, privilege_type, grantee FROM information_schema.role_table_grants"
            " WHERE table_schema = 'public' AND grantee LIKE 'ap\\_%'"
        )
    by_part: dict[str, set[tuple[str, str]]] = {part: set() for part in PARTS}
    for row in held:
        part = next(part for part in PARTS if row["grantee"] == role_of(part, database_of(url)))
        by_part[part].add((row["table_name"], row["privilege_type"]))
    every = ("SELECT", "INSERT", "UPDATE", "DELETE")
    assert by_part["worker"] == {(table, right) for table in metadata.tables for right in every}
    wanted = {(table, "SELECT") for table in ACCESS.readable} | {(table, "INSERT") for table in ACCESS.insertable}
    assert by_part["gateway"] == wanted
    whole = {table for table, columns in (ACCESS.looked_up or {}).items() if columns is None}
    assert by_part["lookup"] == {(table, "SELECT") for table in whole}


@pytest.mark.parametrize(
    "damage",
    [
        "DROP POLICY tenant ON run",
        "ALTER POLICY tenant ON run USING (true)",
        "ALTER POLICY tenant ON run TO PUBLIC",
        "CREATE POLICY open ON run USING (true)",
        "ALTER TABLE run NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE run DISABLE ROW LEVEL SECURITY",
        "GRANT DELETE ON run TO {gateway}",
        "GRANT SELECT ON dead_letter TO {lookup}",
        "REVOKE SELECT ON run FROM {gateway}",
    ],
)
async def test_whatever_was_changed_by_hand_the_next_migration_mends(url: str, damage: str) -> None:
    roles = {part: role_of(part, database_of(url)) for part in PARTS}
    async with connected(url) as owner:
        before = await rights(owner)
        await owner.execute(damage.format(**roles))
        assert await rights(owner) != before
        await database.migrate(url, 2, 1)
        assert await rights(owner) == before


async def test_what_is_as_declared_is_left_alone(url: str) -> None:
    """A policy made anew would wait for every transaction on its table."""
    oids = "SELECT array_agg(oid ORDER BY oid) FROM pg_policy"
    async with connected(url) as owner, owner.transaction():
        before = await owner.fetchval(oids)
        await owner.execute("SELECT count(*) FROM run")  # Holds a lock until the end of this transaction.
        await database.migrate(url, 2, 1)
        assert await owner.fetchval(oids) == before


async def rights(owner: asyncpg.Connection) -> Any:
    return await owner.fetch(
        "SELECT c.relname::text, c.relrowsecurity, c.relforcerowsecurity,"
        " array(SELECT unnest(c.relacl)::text ORDER BY 1) AS acl,"
        " array(SELECT ROW(p.polname, p.polroles, pg_get_expr(p.polqual, p.polrelid))::text"
        "   FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY 1) AS policies"
        " FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"
    )


# --- fingerprint ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_tables_and_messages_and_nothing_else() -> None:
    made, wire = schema.statements(), {"runtime.create_run": {"properties": {"inputs": {"type": "object"}}}}
    own = schema.fingerprint_of(made, wire)
    assert own == schema.fingerprint_of(schema.statements(), wire)
    changed = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(changed)
    assert schema.fingerprint_of(schema.statements(changed), wire) == own
    changed.tables["run"].append_column(sa.Column("forgotten", sa.Text))
    assert schema.fingerprint_of(schema.statements(changed), wire) != own
    wire["runtime.create_run"]["properties"]["inputs"]["type"] = "array"
    assert schema.fingerprint_of(made, wire) != own


@pytest.fixture
async def former(services: EmbeddedStack) -> AsyncIterator[Settings]:
    """A database that another program has made."""
    name = f"former_{uuid.uuid4().hex[:8]}"
    settings = settings_for(services, name)
    async with migrated(services, name) as address, connected(address) as owner:
        await create_topics(settings.model_copy(update={"commands_partitions": 2, "ingress_partitions": 1}))
        await owner.execute("UPDATE schema_made SET fingerprint = 'c0ffee', version = '0.0.9'")
        yield settings


REFUSAL = r"has another schema \(c0ffee of version 0\.0\.9\) than this program \([0-9a-f]{12} of version .*--data"


@pytest.mark.parametrize("role", [run_worker, run_executor, run_gateway])
async def test_no_role_works_on_another_schema(former: Settings, role: Any) -> None:
    with pytest.raises(SettingsError, match=REFUSAL):
        await role(former)


async def test_ap_migrate_changes_nothing_of_another_schema(former: Settings) -> None:
    async with connected(former.required_database_url) as owner:
        await owner.execute("DROP POLICY tenant ON run")
        with pytest.raises(SettingsError, match=REFUSAL) as refused:
            await ap(former, "migrate")
        assert "\n" not in str(refused.value)
        assert await owner.fetchval("SELECT count(*) FROM pg_policies WHERE tablename = 'run'") == 1
        await owner.execute("DROP TABLE schema_made")
        with pytest.raises(SettingsError, match=r"\(an older one without a fingerprint\)"):
            await ap(former, "migrate")


async def test_a_copy_gets_roles_of_its_own_by_the_next_migration(services: EmbeddedStack, url: str) -> None:
    name = f"copy_{uuid.uuid4().hex[:8]}"
    await execute(services, f"CREATE DATABASE {name} TEMPLATE {database_of(url)}")
    settings = settings_for(services, name)
    copied = settings.required_database_url
    try:
        with pytest.raises(SettingsError, match=r"lacks its roles, as a copy .*: `ap migrate` makes them"):
            await run_worker(settings)
        await database.migrate(copied, 2, 1)
        await database.check(copied)
        async with connected(copied) as owner:
            policies_of = "SELECT roles::text[] FROM pg_policies WHERE tablename = 'event'"
            assert [row[0] for row in await owner.fetch(policies_of)] == [[role_of("gateway", name)]]
        for part in PARTS:
            async with connected(copied, role=role_of(part, database_of(url))) as former:
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await former.fetch("SELECT id FROM run")
    finally:
        await execute(services, f"DROP DATABASE {name} WITH (FORCE)")


def test_ap_up_refuses_a_folder_with_another_schema_in_one_line(tmp_path: Path) -> None:
    async def make() -> None:
        async with EmbeddedStack(tmp_path / ".ap", with_kafka=False) as stack:
            await database.migrate(stack.database_url, 2, 1)
            async with connected(stack.database_url) as owner:
                await owner.execute("UPDATE schema_made SET fingerprint = 'c0ffee', version = '0.0.9'")

    asyncio.run(make())
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", "up", "--port", "0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(f"{re.escape(str(tmp_path / '.ap'))}: .*{REFUSAL}", done.stderr), done.stderr


async def test_a_role_before_the_first_migration_says_what_to_do(services: EmbeddedStack) -> None:
    name = f"empty_{uuid.uuid4().hex[:8]}"
    await services.new_database(name)
    try:
        with pytest.raises(SettingsError, match=r"has no schema yet: `ap migrate` makes it"):
            await run_worker(settings_for(services, name))
    finally:
        await services.drop_database(name)
