"""A session of Postgres that ends right after its work has done its work."""

from __future__ import annotations

from typing import Any

import asyncpg

from bus.postgres import PostgresStore
from infra.local.embedded import EmbeddedStack


async def test_a_session_that_ends_between_its_commit_and_its_return_to_the_pool_spoils_nothing(
    services: EmbeddedStack,
) -> None:
    ended = []

    async def end(connection: Any) -> None:
        ended.append(connection)
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    pool = await asyncpg.create_pool(services.database_url, min_size=1, max_size=1, reset=end)
    try:
        store = PostgresStore(pool, {})
        assert await store.now() > 0
        assert await store.now() > 0
    finally:
        pool.terminate()
    assert len(ended) == 2
