"""Retention: what is too old is forgotten, in transactions of bounded size that leave Postgres time for others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import asyncpg

from outbox.ended import Ended, remove_some

log = logging.getLogger("agent_platform.retention")

T = TypeVar("T")

DAY_SECONDS = 86_400.0
INBOX_SECONDS = 8 * DAY_SECONDS
"""A day more than records are accepted for (topics keep them 7 days; older ones are refused as `expired`)."""
OUTCOME_SECONDS = 30 * DAY_SECONDS
ROWS_PER_STATEMENT = 5_000
ROUND_SECONDS = 600.0
REST = 4.0
"""After each transaction so many times as long as it took: the busier Postgres is, the slower old rows go."""
REST_SECONDS_MIN = 0.02


@dataclass(frozen=True, slots=True)
class Aged:
    """Rows of a table that are forgotten by their age alone.

    `key`: the table's primary key, `at`: the column of their time, which has an index. `condition`: SQL, which ones.
    """

    what: str
    table: str
    key: str
    at: str
    kept_seconds: float
    condition: str = "true"

    @property
    def delete(self) -> str:
        """Parameters: how long they are kept (seconds), how many at once."""
        return f"""DELETE FROM {self.table} WHERE ({self.key}) IN (
  SELECT {self.key} FROM {self.table}
  WHERE {self.at} < extract(epoch FROM now())::float8 - $1::float8 AND ({self.condition})
  ORDER BY {self.at} LIMIT $2::int8)"""


INBOX = Aged("inbox", "inbox", "message_id, redrive", "at", INBOX_SECONDS)
OUTCOMES = Aged("command_outcome", "command_outcome", "command_id", "created_at", OUTCOME_SECONDS)


@dataclass(slots=True)
class Round:
    """What one round forgot. `rows`: by table or kind; `aggregates`: ended ones removed whole, by kind.

    `oldest`: by kind, the end of the aggregate that ended first and is kept (seconds since 1970).
    """

    rows: dict[str, int] = field(default_factory=dict)
    aggregates: dict[str, int] = field(default_factory=dict)
    oldest: dict[str, float] = field(default_factory=dict)


class Told(Protocol):
    def __call__(self, done: Round, now: float) -> None:
        """Once for each round, at this database time. Must neither block nor raise."""


def nobody(done: Round, now: float) -> None:
    """Nobody wants to know."""


class Retention:
    """Forgets now and then. Every worker has one; several at once do each other no harm.

    `kept_seconds` 0 of an entry means for ever.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        aged: Sequence[Aged],
        ended: Sequence[Ended],
        told: Told = nobody,
        *,
        tombstones: bool = True,
    ) -> None:
        self._pool = pool
        self._aged = [each for each in aged if each.kept_seconds]
        self._ended = ended
        self._told = told
        self._tombstones = tombstones

    async def run(self) -> None:
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            try:
                await self.round()
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                OSError,
                TimeoutError,
            ) as error:
                log.warning("old rows stay a little longer: %s", error)

    async def round(self) -> Round:
        """Forget all that is too old by now. Raises what asyncpg raises; what came before is committed."""
        done = Round()
        for aged in self._aged:
            done.rows[aged.what] = await self._forget(aged)
        for ended in self._ended:
            done.aggregates[ended.label] = done.rows[ended.label] = 0
            if ended.kept_seconds:
                await self._remove(ended, done)
            oldest = await self._pool.fetchval(ended.oldest)
            if oldest is not None:
                done.oldest[ended.label] = oldest
        self._told(done, float(await self._pool.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")))
        return done

    async def _forget(self, aged: Aged) -> int:
        total = 0
        while True:
            deleted = await self._paced(lambda connection: _deleted(connection, aged))
            total += deleted
            if deleted < ROWS_PER_STATEMENT:
                return total

    async def _remove(self, ended: Ended, done: Round) -> None:
        more = True
        while more:
            removed = await self._paced(lambda connection: remove_some(connection, ended, tombstones=self._tombstones))
            done.aggregates[ended.label] += removed.aggregates
            done.rows[ended.label] += removed.rows
            more = removed.more

    async def _paced(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """One transaction, and a rest after it."""
        began = time.monotonic()
        async with self._pool.acquire() as connection:
            done = await work(connection)
        await asyncio.sleep(max(REST_SECONDS_MIN, REST * (time.monotonic() - began)))
        return done


async def _deleted(connection: Any, aged: Aged) -> int:
    return int((await connection.execute(aged.delete, aged.kept_seconds, ROWS_PER_STATEMENT)).split()[-1])
