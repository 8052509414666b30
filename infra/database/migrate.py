"""The database as the roles find it: migrated, its lanes made, its partition counts those of the topics."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.ext.asyncio import create_async_engine

from bus.lanes import INGRESS_BASE
from outbox.tables import LANE
from schemas.topics import COMMANDS, INGRESS

MIGRATION_LOCK = 7_304_201
"""Key of the advisory lock under which migrations run."""


_LANES = sa.text("""INSERT INTO lane (id, topic, partition) SELECT :base + p, :topic, p
FROM generate_series(0, :last) AS p WHERE NOT EXISTS (SELECT FROM lane WHERE topic = :topic)""")
"""Once: further ones come by `ap topics grow`, which knows what must move with them."""


async def migrate(url: str, commands: int, ingress: int) -> None:
    """Bring the schema to the newest revision, and make the lanes if there are none. `url`: postgresql+asyncpg://…"""
    engine = create_async_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            await connection.run_sync(_upgrade)
            for base, topic, count in ((0, COMMANDS, commands), (INGRESS_BASE, INGRESS, ingress)):
                await connection.execute(_LANES, {"base": base, "topic": topic, "last": count - 1})
    finally:
        await engine.dispose()


def _upgrade(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def recorded_partitions(url: str) -> dict[str, int]:
    """How many lanes each consumed topic has in Postgres."""
    engine = create_async_engine(url)
    try:
        async with engine.connect() as connection:
            counted = sa.select(LANE.c.topic, sa.func.count().label("lanes")).group_by(LANE.c.topic)
            rows = await connection.execute(counted)
            return {row.topic: row.lanes for row in rows}
    finally:
        await engine.dispose()
