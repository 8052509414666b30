"""What the kernel's tables need not remember for ever: inbox rows and outcomes older than any record that counts."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import asyncpg

log = logging.getLogger("agent_platform.retention")

INBOX_SECONDS = 8 * 86_400
"""A day more than records are accepted for (topics keep them 7 days; older ones are refused as `expired`)."""
OUTCOME_SECONDS = 30 * 86_400
ROWS_PER_STATEMENT = 5_000
ROUND_SECONDS = 600.0

_FORGET = {
    "inbox": f"""DELETE FROM inbox WHERE (message_id, redrive) IN (
      SELECT message_id, redrive FROM inbox WHERE at < extract(epoch FROM clock_timestamp()) - {INBOX_SECONDS}
      ORDER BY at LIMIT {ROWS_PER_STATEMENT})""",
    "command_outcome": f"""DELETE FROM command_outcome WHERE command_id IN (
      SELECT command_id FROM command_outcome
      WHERE created_at < extract(epoch FROM clock_timestamp()) - {OUTCOME_SECONDS}
      ORDER BY created_at LIMIT {ROWS_PER_STATEMENT})""",
}


async def forget_old(connection: Any) -> dict[str, int]:
    """Delete what is too old, in statements of bounded size. How many rows of which table."""
    counts = {}
    for table, statement in _FORGET.items():
        total = 0
        while True:
            deleted = int((await connection.execute(statement)).split()[-1])
            total += deleted
            if deleted < ROWS_PER_STATEMENT:
                break
        counts[table] = total
    return counts


class Retention:
    """Runs `forget_old` now and then. Several at once do each other no harm."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def run(self) -> None:
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            try:
                async with self._pool.acquire() as connection:
                    await forget_old(connection)
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                OSError,
                TimeoutError,
            ) as error:
                log.warning("old rows stay a little longer: %s", error)
