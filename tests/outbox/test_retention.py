"""Old inbox rows and outcomes are forgotten; what may still be asked for stays."""

from __future__ import annotations

import uuid

import asyncpg
import pytest

from infra.local.embedded import EmbeddedStack
from infra.roles.prepare import migrate
from outbox.retention import INBOX_SECONDS, OUTCOME_SECONDS, forget_old
from tests.live import settings_for

DAY = 86_400


@pytest.mark.services
async def test_only_what_is_too_old_is_forgotten(services: EmbeddedStack) -> None:
    url = await services.new_database("retention")
    await migrate(settings_for(services, "retention"))
    connection = await asyncpg.connect(url)
    try:
        for age in (INBOX_SECONDS + DAY, INBOX_SECONDS - DAY):
            await connection.execute(
                "INSERT INTO inbox SELECT $1::uuid, 0, extract(epoch FROM now()) - $2::float8", str(uuid.uuid4()), age
            )
        for age in (OUTCOME_SECONDS + DAY, OUTCOME_SECONDS - DAY):
            await connection.execute(
                "INSERT INTO command_outcome SELECT $1::uuid, 't1', 'x', '', 'succeeded', '', "
                "extract(epoch FROM now()) - $2::float8",
                str(uuid.uuid4()),
                age,
            )
        assert await forget_old(connection) == {"inbox": 1, "command_outcome": 1}
        assert await forget_old(connection) == {"inbox": 0, "command_outcome": 0}
        assert await connection.fetchval("SELECT count(*) FROM inbox") == 1
    finally:
        await connection.close()
