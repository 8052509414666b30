"""Writing what the log says over what the tables hold, lane by lane, while their owners are fenced off."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import asyncpg

from infra.db import changed
from infra.history.rebuild.comparison import Comparer, compare, missing
from infra.history.rebuild.folding import Folder
from infra.history.rebuild.log import COLUMNS, END
from infra.history.rebuild.report import Difference, RebuildReport
from outbox.ended import TAKE_LOCK
from projections.runtime import BY_HAND, LEASED, READY, UNLISTED
from schemas.topics import COMMANDS, partition_of

AGGREGATES_PER_STEP = 50
HOLD_SECONDS = 0.5
"""A lane is given back after the step that exceeds this; what is left of it comes again after the other lanes."""
LOCK_SECONDS = 12
"""Longer than any transaction of a worker may last."""
TRIES_MAX = 5
HOLDER = "rebuild"
CACHED = "definition_version"
CACHED_NOTE = "definition versions were repaired: a worker that has read one keeps it until it is started again"

_FENCE = "UPDATE lane SET epoch = epoch + 1 WHERE id = $1"
_EVENTS = f"SELECT {COLUMNS} FROM event e WHERE e.aggregate_id = ANY($1::uuid[]) ORDER BY e.aggregate_id, e.seq"
_LIST = f"""UPDATE node_run SET listed = CASE WHEN status = 'running' THEN {LEASED}
  WHEN status <> 'queued' THEN {UNLISTED}
  WHEN NOT ready AND (SELECT mode FROM run WHERE run.id = run_id) = 'manual' THEN {BY_HAND}
  WHEN NOT ready THEN {UNLISTED}
  WHEN leased_by IS NULL THEN {READY} ELSE {LEASED} END,
  leased_by = CASE WHEN status = 'running' THEN worker ELSE leased_by END,
  lease_until = CASE WHEN status = 'running' THEN coalesce(lease_until, $2) ELSE lease_until END
WHERE id = ANY($1::uuid[])"""
"""A row that was there has kept who holds it, but whether anybody may may have changed."""
_RETRIED = (asyncpg.DeadlockDetectedError, asyncpg.LockNotAvailableError)


class Writer:
    """Writes rows of one table, but for the operational columns of rows that are there."""

    def __init__(self, comparer: Comparer) -> None:
        spec = comparer.spec
        self.comparer = comparer
        self._columns = spec.columns
        self._delete = f"DELETE FROM {spec.name} WHERE id = ANY($1::uuid[]) AND {spec.parent} = ANY($2::uuid[])"
        names = ", ".join(f'"{column.name}"' for column in spec.columns)
        source = ", ".join(f"${place}::{column.pg_type}[]" for place, column in enumerate(spec.columns, 1))
        kept = [column.name for column in spec.columns[1:] if column.name not in spec.operational]
        self._write = (
            f"INSERT INTO {spec.name} ({names}) SELECT * FROM unnest({source}) ON CONFLICT (id) DO UPDATE SET "
            + ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in kept)
        )

    async def delete(self, connection: Any, ids: Sequence[str], aggregate_ids: Sequence[str]) -> None:
        await connection.execute(self._delete, ids, aggregate_ids)

    async def write(self, connection: Any, rows: Sequence[Any], shield_until: float) -> None:
        """A row that was gone and may be claimed comes back as leased: somebody may be executing it still, and when
        that lease has run out its lane hands it out under the next token."""
        volatile = self.comparer.spec.volatile
        if volatile is not None:
            shield = {"leased_by": HOLDER, "lease_until": shield_until, "listed": LEASED}
            rows = [changed(row, **shield) if volatile(row) else row for row in rows]
        arrays = [
            [getattr(row, c.name) if c.dump is None else c.dump(getattr(row, c.name)) for row in rows]
            for c in self._columns
        ]
        await connection.execute(self._write, *arrays)
        if volatile is not None:
            await connection.execute(_LIST, [row.id for row in rows], shield_until)


async def repair(
    pool: asyncpg.Pool,
    comparers: Sequence[Comparer],
    aggregate_ids: Collection[str],
    report: RebuildReport,
    lease_seconds: float,
) -> None:
    """Compare these aggregates again and write what differs.

    Each lane is held, its epoch raised, for a moment at a time: its owner is fenced at its next write, drops its cache
    and claims anew, so nothing is decided on rows that were wrong.
    """
    lanes = await pool.fetchval("SELECT count(*) FROM lane WHERE topic = $1", COMMANDS)
    waiting: dict[int, list[str]] = defaultdict(list)
    for id in sorted(aggregate_ids):
        waiting[partition_of(id, lanes)].append(id)
    writers = [Writer(comparer) for comparer in comparers]
    while waiting:
        for lane in sorted(waiting):
            waiting[lane] = await _hold(pool, lane, waiting[lane], writers, report, lease_seconds)
            if not waiting[lane]:
                del waiting[lane]
    if report.repaired[CACHED]:
        report.notes.append(CACHED_NOTE)


async def _hold(
    pool: asyncpg.Pool,
    lane: int,
    ids: list[str],
    writers: Sequence[Writer],
    report: RebuildReport,
    lease_seconds: float,
) -> list[str]:
    """One transaction on one lane. Returns what is left to do."""
    for tried in itertools.count(1):
        try:
            done, repaired = 0, Counter[str]()
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'")
                await connection.execute(TAKE_LOCK)
                await connection.execute(_FENCE, lane)
                started = time.perf_counter()
                shield_until = lease_seconds + float(
                    await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
                )
                while done < len(ids) and time.perf_counter() - started < HOLD_SECONDS:
                    part = ids[done : done + AGGREGATES_PER_STEP]
                    repaired += await _repair(connection, part, writers, shield_until)
                    done += len(part)
            report.held_seconds.append(time.perf_counter() - started)
            report.repaired += repaired
            return ids[done:]
        except _RETRIED:
            if tried == TRIES_MAX:
                raise
            await asyncio.sleep(0.1 * tried)
    raise AssertionError("unreachable")


async def _repair(connection: Any, ids: Sequence[str], writers: Sequence[Writer], shield_until: float) -> Counter[str]:
    """Compare these aggregates while nobody else can write them, and write what differs. How many rows by table."""
    folder = Folder()
    folder.take(await connection.fetch(_EVENTS, ids))
    folded = folder.take_whole(END)
    rows = {key: row for each in folded.values() if each is not None for key, row in each.rows.items()}
    deleted: dict[str, list[str]] = defaultdict(list)
    written: dict[str, list[Any]] = defaultdict(list)
    found: list[Difference] = []
    for writer in writers:
        comparer = writer.comparer
        stored = await connection.fetch(f"{comparer.select} WHERE t.{comparer.spec.parent} = ANY($1::uuid[])", ids)
        found += compare(comparer, stored, folded)
    found += missing(folded, {writer.comparer.kind: writer.comparer.table for writer in writers})
    kinds = {writer.comparer.table: writer.comparer.kind for writer in writers}
    for difference in found:
        if difference.kind == "extra":
            deleted[difference.table].append(difference.id)
        else:
            written[difference.table].append(rows[kinds[difference.table], difference.id])
    for writer in writers:  # All deletions first: a row may have been moved to another's name.
        name = writer.comparer.table
        if deleted[name]:
            await writer.delete(connection, deleted[name], ids)
    for writer in writers:
        name = writer.comparer.table
        if written[name]:
            await writer.write(connection, written[name], shield_until)
    return Counter(difference.table for difference in found)
