"""The event log in order of aggregates, in chunks; each with the stored rows of the aggregates that end in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from infra.history.rebuild.comparison import Comparer

EVENTS_PER_CHUNK = 4_000
FIRST_ID = "00000000-0000-0000-0000-000000000000"

END = "g"
"""Behind every id."""

COLUMNS = (
    "e.aggregate_id::text, e.seq, e.type, e.data, e.at, e.tenant_id, e.lane, e.actor, e.correlation_id, e.traceparent"
)
_NEXT = f"""SELECT {COLUMNS} FROM event e
WHERE (e.aggregate_id, e.seq) > ($1::uuid, $2::int4) AND e.type LIKE $3 ORDER BY e.aggregate_id, e.seq LIMIT $4"""

_REMOVED = "SELECT id::text FROM tombstone WHERE id = $1"

SESSION = {
    "application_name": "agent-platform rebuild",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
}
"""Plans that walk the keys whatever the statistics say: nothing is sorted, and a chunk costs the same everywhere."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """`events` in order. `until`: aggregates before this id are whole by now; "" if none has come to its end.

    `stored`: the rows of the aggregates from the former chunk's `until` up to this one's, by comparer. `removed`: the
    aggregate that the former chunk ended with, if retention has removed it since.
    """

    events: Sequence[asyncpg.Record]
    until: str
    stored: Sequence[tuple[Comparer, Sequence[asyncpg.Record]]]
    last: bool
    removed: str = ""


class LogReader:
    """Reads chunk by chunk, one ahead. Every chunk is one snapshot of events and rows, held for a moment only.

    Events never change, so folding may go on over several snapshots; what counts is that rows are compared with the
    events of their own snapshot.
    """

    def __init__(self, pool: asyncpg.Pool, comparers: Sequence[Comparer], types: str, events_per_chunk: int) -> None:
        self._pool = pool
        self._comparers = comparers
        self._types = types
        self._events_per_chunk = events_per_chunk
        self._at = (FIRST_ID, 0)
        self._since = FIRST_ID

    async def chunks(self) -> AsyncIterator[Chunk]:
        following: asyncio.Task[Chunk] | None = asyncio.create_task(self.load())
        try:
            while following is not None:
                chunk = await following
                following = None if chunk.last else asyncio.create_task(self.load())
                yield chunk
        finally:
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def load(self) -> Chunk:
        """The next chunk; none follows the last one."""
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            events = await connection.fetch(_NEXT, *self._at, self._types, self._events_per_chunk)
            last = len(events) < self._events_per_chunk
            until = END if last else self._whole_before(events[-1][0])
            removed = await connection.fetchval(_REMOVED, self._at[0]) or ""
            stored = [(each, await self._stored(connection, each, until)) for each in self._comparers if until]
        if events:
            self._at = events[-1][0], events[-1][1]
        self._since = until or self._since
        return Chunk(events, until, stored, last, removed)

    def _whole_before(self, going_on: str) -> str:
        """The chunk's last aggregate may go on in the next one; those before it do not."""
        return going_on if going_on > self._since else ""

    async def _stored(self, connection: Any, comparer: Comparer, until: str) -> list[asyncpg.Record]:
        parent = comparer.spec.parent
        sql = f"{comparer.select} WHERE t.{parent} >= $1::uuid"
        if until == END:
            return await connection.fetch(sql, self._since)  # type: ignore[no-any-return]
        return await connection.fetch(  # type: ignore[no-any-return]
            f"{sql} AND t.{parent} < $2::uuid", self._since, until
        )
