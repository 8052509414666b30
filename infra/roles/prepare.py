"""What must be there before the first role starts: the newest schema and the topics."""

from __future__ import annotations

from infra import topics
from infra.database import migrate as database
from infra.settings import Settings


async def migrate(settings: Settings) -> None:
    """Bring Postgres to the newest schema."""
    await database.migrate(settings.sqlalchemy_url, settings.commands_partitions, settings.ingress_partitions)


async def create_topics(settings: Settings) -> None:
    await topics.create(settings)
