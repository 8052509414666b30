"""Removing ended aggregates whole, a chunk a transaction; a tombstone stays.

Any worker may do it, one at a time: each chunk is one transaction under an advisory lock of that transaction. So a
process that is killed in the middle leaves all of a chunk or nothing, and nothing to be cleaned up.

No lane is locked and no epoch raised, although lanes own these rows. Both are there against an owner that decides
on rows in its memory, or writes rows while they change. Neither can happen to what has ended: a lane forgets an
aggregate in the batch that ends it, one that it must load again stays for that batch only, and no decision changes
an aggregate after its end. A command that comes too late finds no head and then the tombstone. One that would make
the aggregate anew, without looking, is refused by the trigger on the head's table: it waits for a removal under way,
and looks for tombstones after it. Rebuild, which writes rows of aggregates whatever their state, takes the same
advisory lock while it does.

Nothing is removed that Kafka may lack: the rows of the log are the outbox of the topic `events`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.db import TableSpec

REMOVAL_LOCK = 7_304_203
"""Key of the advisory lock under which rows of ended aggregates are removed, or mended."""
TAKE_LOCK = f"SELECT pg_advisory_xact_lock({REMOVAL_LOCK})"
_TRY_LOCK = f"SELECT pg_try_advisory_xact_lock({REMOVAL_LOCK})"
AGGREGATES_MAX = 100
EVENTS_MAX = 2_000
"""Of one transaction. An aggregate makes few rows an event, so this bounds the rows too. One with more goes alone."""
TRANSACTION_SECONDS = 60
"""For the largest of them: several million events."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Which aggregates are removed: those of `head` that ended so long ago and match `condition` (SQL, rows are `h`).

    `parts`: tables of their other rows. `head` has the columns status, seq and ended_at, and an index on the last.
    """

    head: TableSpec
    parts: Sequence[TableSpec]
    kept_seconds: float
    condition: str = "true"
    name: str = ""
    """In what is told of a round; where it is not given, the table's."""

    @property
    def label(self) -> str:
        return self.name or self.kind

    @property
    def kind(self) -> str:
        return str(self.head.name)

    @property
    def find(self) -> str:
        """The oldest ones. Parameters: how long they are kept (seconds), how many."""
        return f"""SELECT h.id::text, h.seq FROM {self.kind} h
WHERE h.ended_at < extract(epoch FROM now())::float8 - $1::float8 AND ({self.condition}) AND NOT EXISTS (
  SELECT FROM event e JOIN lane l ON l.id = e.lane
  WHERE e.aggregate_id = h.id AND e.seq = h.seq AND e.position > l.sent)
ORDER BY h.ended_at LIMIT $2::int8"""

    @property
    def oldest(self) -> str:
        """Since when the one that ended first is kept (seconds since 1970)."""
        return f"""SELECT ended_at FROM {self.kind} h WHERE ended_at IS NOT NULL AND ({self.condition})
ORDER BY ended_at LIMIT 1"""


@dataclass(slots=True)
class Removed:
    """What one transaction removed. `rows`: of all tables. `more`: another one may find more."""

    aggregates: int = 0
    rows: int = 0
    more: bool = False


async def remove_some(connection: Any, ended: Ended, *, tombstones: bool = True) -> Removed:
    """Remove the aggregates that ended first, as many as one transaction may; none while somebody else removes any.

    `tombstones` false turns that defence off; only the test that shows its use does that.
    """
    async with connection.transaction():
        if not await connection.fetchval(_TRY_LOCK):
            return Removed()
        found = await connection.fetch(ended.find, ended.kept_seconds, AGGREGATES_MAX)
        ids = _share(found)
        if not ids:
            return Removed()
        await connection.execute(f"SET LOCAL transaction_timeout = '{TRANSACTION_SECONDS}s'")
        rows = 0
        for part in ended.parts:
            rows += await _count(connection, f"DELETE FROM {part.name} WHERE {part.parent} = ANY($1::uuid[])", ids)
        rows += await _count(connection, "DELETE FROM event WHERE aggregate_id = ANY($1::uuid[])", ids)
        rows += await _count(connection, _bury(ended.kind) if tombstones else _delete(ended.kind), ids)
        return Removed(len(ids), rows, more=len(ids) < len(found) or len(found) == AGGREGATES_MAX)


def _share(found: Sequence[Any]) -> list[str]:
    """The first of them, up to EVENTS_MAX together."""
    ids: list[str] = []
    events = 0
    for id, seq in found:
        events += seq
        if ids and events > EVENTS_MAX:
            break
        ids.append(id)
    return ids


def _delete(kind: str) -> str:
    return f"DELETE FROM {kind} WHERE id = ANY($1::uuid[])"


def _bury(kind: str) -> str:
    """Exactly what is deleted gets a tombstone."""
    return f"""WITH gone AS ({_delete(kind)} RETURNING id, tenant_id, status, seq, ended_at)
INSERT INTO tombstone (id, tenant_id, kind, status, last_seq, ended_at, removed_at)
SELECT id, tenant_id, '{kind}', status, seq, ended_at, extract(epoch FROM now()) FROM gone"""


async def _count(connection: Any, statement: str, ids: Sequence[str]) -> int:
    return int((await connection.execute(statement, ids, timeout=TRANSACTION_SECONDS)).split()[-1])
