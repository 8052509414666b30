"""What must be there before a role starts: this program's schema and the topics."""

from __future__ import annotations

from infra import topics
from infra.database import migrate as database
from infra.settings import Settings


async def migrate(settings: Settings) -> None:
    """Bring Postgres to the newest schema. Raises SchemaRefused."""
    await database.migrate(settings.required_database_url, settings.commands_partitions, settings.ingress_partitions)


async def create_topics(settings: Settings) -> None:
    await topics.create(settings)


async def prepared(settings: Settings) -> Settings:
    """The settings as Postgres has recorded them, for a role that starts. Raises SchemaRefused and TopicMismatch."""
    await database.check(settings.required_database_url)
    return await topics.check(settings)
