"""Leases of steps in Postgres: claim ready ones, renew ours, find those that ran out or went unacknowledged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import orjson

from bus.postgres import load_row
from projections.runtime import LEASED, NODE_RUNS, READY, UNLISTED, NodeRun

_NAMES = ", ".join(f'n."{column.name}"' for column in NODE_RUNS.columns)

_CLAIM = f"""WITH candidates AS (
  SELECT c.id FROM (
    SELECT id, row_number() OVER (PARTITION BY tenant_id ORDER BY created_at, id) AS turn
    FROM (SELECT id, tenant_id, created_at FROM node_run
          WHERE listed = {READY} AND kind = $1
          ORDER BY created_at LIMIT 1000) AS oldest
  ) AS c ORDER BY c.turn, c.id LIMIT $2
), locked AS (
  SELECT id FROM node_run WHERE id = ANY(ARRAY(SELECT id FROM candidates))
    AND listed + 0 = {READY} AND status = 'queued'  -- Not the column itself: that invites the other index.
  ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE node_run n SET listed = {LEASED}, leased_by = $3, lease_until = extract(epoch FROM clock_timestamp()) + $4,
  started_at = extract(epoch FROM clock_timestamp()),
  deadline_at = CASE WHEN n.timeout_seconds > 0 THEN extract(epoch FROM clock_timestamp()) + n.timeout_seconds END
FROM locked WHERE n.id = locked.id
RETURNING {_NAMES}"""

_RUNS = """SELECT r.id, r.workflow_version_id, r.traceparent, r.correlation_id
FROM run r WHERE r.id = ANY($1::uuid[])"""

_RENEW = """WITH mine AS (
  SELECT n.id, n.run_id FROM unnest($1::uuid[], $2::int4[]) AS u(id, token) JOIN node_run n USING (id)
  WHERE n.lease_token = u.token AND n.leased_by = $3 AND n.ready ORDER BY n.id FOR NO KEY UPDATE OF n
), renewed AS (
  UPDATE node_run n SET lease_until = extract(epoch FROM clock_timestamp()) + $4 FROM mine WHERE n.id = mine.id
)
SELECT mine.id, r.status FROM mine JOIN run r ON r.id = mine.run_id"""

_FINISH = """UPDATE node_run n SET result = u.result, lease_until = extract(epoch FROM clock_timestamp()) + 5
FROM unnest($1::uuid[], $2::int4[], $3::bytea[]) AS u(id, token, result)
WHERE n.id = u.id AND n.lease_token = u.token AND n.leased_by = $4 AND n.ready RETURNING n.id"""

_EXPIRED = f"""SELECT n.id, n.run_id, n.tenant_id, n.lane, n.lease_token, r.traceparent, r.correlation_id
FROM node_run n JOIN run r ON r.id = n.run_id
WHERE n.lane = ANY($1::int2[]) AND n.listed = {LEASED} AND n.result IS NULL
  AND n.lease_until < extract(epoch FROM clock_timestamp()) LIMIT 300"""

_UNACKNOWLEDGED = f"""SELECT n.id, n.run_id, n.tenant_id, n.lane, n.lease_token, n.result, r.traceparent,
  r.correlation_id
FROM node_run n JOIN run r ON r.id = n.run_id
WHERE n.lane = ANY($1::int2[]) AND n.listed = {LEASED} AND n.result IS NOT NULL
  AND n.lease_until < extract(epoch FROM clock_timestamp()) LIMIT 300"""

_LEASED_UNLISTED = f"n.listed = {UNLISTED} AND n.ready AND n.leased_by IS NOT NULL"

_LIST = f"""UPDATE node_run n SET listed = {LEASED}
FROM (SELECT id FROM node_run n WHERE n.id = ANY($1::uuid[]) AND {_LEASED_UNLISTED} ORDER BY id FOR NO KEY UPDATE) AS u
WHERE n.id = u.id"""

_MADE_SINCE = """SELECT e.data FROM unnest($1::int2[], $2::int8[]) AS u(lane, floor) CROSS JOIN LATERAL (
  SELECT data, type FROM event WHERE lane = u.lane AND position > u.floor OFFSET 0  -- Lane by lane, by its index.
) AS e WHERE e.type = 'runtime.node_scheduled'"""


@dataclass(frozen=True, slots=True)
class RunOf:
    version_id: str
    traceparent: str
    correlation_id: str


@dataclass(frozen=True, slots=True)
class ExpiredLease:
    """A step to be told of to its lane. `result`: what its executor stored, if it got that far."""

    id: str
    run_id: str
    tenant_id: str
    lane: int
    lease_token: int
    traceparent: str
    correlation_id: str
    result: bytes | None = None


class Leases:
    """Every call is one statement, outside the lanes' fence: the lease token guards each row."""

    def __init__(self, pool: asyncpg.Pool, owner: str, lease_seconds: float) -> None:
        self._pool = pool
        self._owner = owner
        self._lease_seconds = lease_seconds

    async def claim(self, kind: str, count: int) -> list[tuple[NodeRun, RunOf]]:
        """Lease up to `count` ready steps of a kind, tenants in turn."""
        async with self._pool.acquire() as connection:
            rows = [
                load_row(NODE_RUNS, tuple(row))
                for row in await connection.fetch(_CLAIM, kind, count, self._owner, self._lease_seconds)
            ]
            if not rows:
                return []
            found = await connection.fetch(_RUNS, [row.run_id for row in rows])
        runs = {str(run[0]): RunOf(str(run[1]), run[2], run[3]) for run in found}
        return [(row, runs[row.run_id]) for row in rows]

    async def renew(self, ids: Sequence[str], tokens: Sequence[int]) -> dict[str, str]:
        """Renew these leases; those still ours come back with the status of their run."""
        rows = await self._pool.fetch(_RENEW, ids, tokens, self._owner, self._lease_seconds)
        return {str(row[0]): row[1] for row in rows}

    async def finish(self, results: Sequence[tuple[str, int, bytes]]) -> set[str]:
        """Store answers; those whose lease was still ours come back."""
        columns: list[Any] = [list(column) for column in zip(*sorted(results), strict=True)]
        return {str(row[0]) for row in await self._pool.fetch(_FINISH, *columns, self._owner)}

    async def list_leased(self, ids: Sequence[str]) -> None:
        """Let the sweepers find these steps, as far as they are leased."""
        if ids:
            await self._pool.execute(_LIST, sorted(ids))

    async def list_made(self, floors: Mapping[int, int]) -> None:
        """The same for the steps that lanes have made since these positions."""
        rows = await self._pool.fetch(_MADE_SINCE, list(floors), list(floors.values()))
        await self.list_leased([orjson.loads(row[0])["node_run_id"] for row in rows])

    async def expired(self, lanes: Sequence[int]) -> list[ExpiredLease]:
        rows = await self._pool.fetch(_EXPIRED, sorted(lanes))
        return [ExpiredLease(str(r[0]), str(r[1]), r[2], r[3], r[4], r[5], r[6]) for r in rows]

    async def unacknowledged(self, lanes: Sequence[int]) -> list[ExpiredLease]:
        rows = await self._pool.fetch(_UNACKNOWLEDGED, sorted(lanes))
        return [ExpiredLease(str(r[0]), str(r[1]), r[2], r[3], r[4], r[6], r[7], r[5]) for r in rows]
