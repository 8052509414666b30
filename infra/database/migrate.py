"""The database as the roles find it: migrated, its lanes made, its partition counts those of the topics."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from bus.lanes import INGRESS_BASE
from infra.database import policies, schema
from infra.database.tables import ACCESS
from infra.db import PARTS, database_of, role_of
from infra.settings import SettingsError
from schemas.topics import COMMANDS, INGRESS

MIGRATION_LOCK = 7_304_201
"""Key of the advisory lock under which migrations run."""


_LANES = """INSERT INTO lane (id, topic, partition) SELECT $1::int4 + p, $2, p
FROM generate_series(0, $3::int4) AS p WHERE NOT EXISTS (SELECT FROM lane WHERE topic = $2)"""
"""Once: further ones come by `ap topics grow`, which knows what must move with them."""


_MADE = "SELECT fingerprint, version FROM schema_made"
_KNOWN = "SELECT to_regclass('public.schema_made') IS NOT NULL, to_regclass('public.alembic_version') IS NOT NULL"


class SchemaRefused(SettingsError):
    """The database has no schema, another one than this program's, or not its roles."""


async def migrate(url: str, commands: int, ingress: int, access: policies.Access = ACCESS) -> None:
    """Bring the schema to the newest revision, apply who may do what, and make the lanes if there are none.

    Raises SchemaRefused and RolesRefused. `url`: postgresql://…, read by the driver alone.
    """
    engine = create_async_engine("postgresql+asyncpg://", async_creator=lambda: asyncpg.connect(url))
    try:
        async with engine.begin() as connection:
            await connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            driver = await _driver(connection)
            made, migrated = await driver.fetchrow(_KNOWN)
            if made or migrated:
                await _refuse_other(driver, url)
            await connection.run_sync(_upgrade)
            if not made:
                await driver.execute("INSERT INTO schema_made VALUES ($1, $2)", schema.fingerprint(), _version())
            await policies.apply(driver, access, database_of(url))
            for base, topic, count in ((0, COMMANDS, commands), (INGRESS_BASE, INGRESS, ingress)):
                await driver.execute(_LANES, base, topic, count - 1)
    finally:
        await engine.dispose()


async def check(url: str) -> None:
    """Raises SchemaRefused unless the database has this program's schema, and the roles to work with it."""
    connection = await asyncpg.connect(url)
    try:
        if not any(await connection.fetchrow(_KNOWN) or ()):
            raise SchemaRefused([f"database {database_of(url)} has no schema yet: `ap migrate` makes it"])
        await _refuse_other(connection, url)
        roles = [role_of(part, database_of(url)) for part in PARTS]
        if await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = ANY($1)", roles) < len(roles):
            raise SchemaRefused(
                [f"database {database_of(url)} lacks its roles, as a copy or under a new name: `ap migrate` makes them"]
            )
    finally:
        await connection.close()


async def _refuse_other(connection: Any, url: str) -> None:
    own, row = schema.fingerprint(), None
    if await connection.fetchval("SELECT to_regclass('public.schema_made')") is not None:
        row = await connection.fetchrow(_MADE)
    if row is not None and row["fingerprint"] == own:
        return
    there = "an older one without a fingerprint" if row is None else f"{row['fingerprint']} of version {row['version']}"
    raise SchemaRefused(
        [
            f"database {database_of(url)} has another schema ({there}) than this program ({own} of version"
            f" {_version()}), and before the first release nothing leads from one to the other: go on with the program"
            " that made it, or begin with an empty database, which for `ap up` is another folder (--data)"
        ]
    )


def _version() -> str:
    return version("agent-platform")


async def _driver(connection: AsyncConnection) -> Any:
    return (await connection.get_raw_connection()).driver_connection


def _upgrade(connection: sa.Connection) -> None:
    config = Config()
    # A percent sign would be taken for a reference to another option.
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def recorded_partitions(url: str) -> dict[str, int]:
    """How many lanes each consumed topic has in Postgres."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT topic, count(*) AS lanes FROM lane GROUP BY topic")
        return {row["topic"]: row["lanes"] for row in rows}
    finally:
        await connection.close()
