"""The tables as the code knows them are the tables that the migrations make."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from infra.database import migrate as database
from infra.database.tables import ACCESS, OPERATIONAL, metadata
from infra.domains import PROJECTIONS
from infra.local.embedded import EmbeddedStack
from infra.settings import load_settings


@pytest.fixture
async def migrated(services: EmbeddedStack) -> AsyncIterator[AsyncConnection]:
    settings = load_settings(database_url=await services.new_database(f"schema_{uuid.uuid4().hex[:8]}"))
    await database.migrate(settings.required_database_url, 2, 1)
    engine = create_async_engine(settings.required_database_url.replace("postgresql:", "postgresql+asyncpg:"))
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def test_migrations_make_exactly_the_tables_of_the_code(migrated: AsyncConnection) -> None:
    assert await migrated.run_sync(differences, metadata) == []


async def test_a_column_or_index_that_no_migration_makes_is_noticed(migrated: AsyncConnection) -> None:
    changed = sa.MetaData()
    for table in metadata.tables.values():
        table.to_metadata(changed)
    changed.tables["run"].append_column(sa.Column("forgotten", sa.Text))
    changed.tables["lane"].c.owner.type = sa.Integer()
    sa.Index("forgotten_too", changed.tables["run"].c.status)
    found = await migrated.run_sync(differences, changed)
    assert len(found) == 3, found


async def test_tables_are_stored_as_they_are_declared_to_be(migrated: AsyncConnection) -> None:
    rows = await migrated.execute(sa.text("SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL"))
    declared = {name: table.info["storage"] for name, table in metadata.tables.items() if table.info.get("storage")}
    found = {name: ", ".join(options).replace("=", " = ") for name, options in rows}
    assert {name: found.get(name) for name in declared} == declared
    assert "fillfactor = 50" in declared["node_run"]


async def test_every_tenant_table_has_row_level_security_forced(migrated: AsyncConnection) -> None:
    rows = await migrated.execute(
        sa.text("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity AND relkind = 'r'")
    )
    assert set(rows.scalars()) == set(ACCESS.tenant_tables)


async def test_migrating_twice_changes_nothing(migrated: AsyncConnection) -> None:
    before = (await migrated.execute(sa.text("SELECT id, epoch FROM lane ORDER BY id"))).all()
    url = migrated.engine.url.set(drivername="postgresql")
    await database.migrate(url.render_as_string(hide_password=False), 2, 1)
    assert (await migrated.execute(sa.text("SELECT id, epoch FROM lane ORDER BY id"))).all() == before
    assert len(before) == 3


def test_every_table_is_declared_to_be_of_one_kind() -> None:
    """The log is the truth; all else is folded from it, or says how the system works right now."""
    kinds = [spec.name for spec in PROJECTIONS] + [table.name for table in OPERATIONAL] + ["event"]
    assert sorted(kinds) == sorted(metadata.tables)


def differences(connection: sa.Connection, wanted: sa.MetaData) -> list[Any]:
    """Tables, columns, types and indexes that differ."""
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, wanted))
