"""Leases of steps in Postgres: claim ready ones, renew ours, find those that ran out or went unacknowledged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import asyncpg
import orjson

from bus.postgres import load_row
from projections.runtime import LEASED, NODE_RUNS, READY, UNLISTED, NodeRun

_NAMES = ", ".join(f'n."{column.name}"' for column in NODE_RUNS.columns)

TENANTS_PER_CLAIM_MAX = 100

_TENANTS = f"least($2, {TENANTS_PER_CLAIM_MAX})"
_WAITING = f"listed = {READY} AND kind = $1"

# The tenants are found one by one in the index, so a claim reads as much however many steps wait behind.
_CLAIM = f"""WITH RECURSIVE behind AS (
  (SELECT tenant_id, 1 AS turn FROM node_run WHERE {_WAITING} AND tenant_id > $5 ORDER BY tenant_id LIMIT 1)
  UNION ALL
  SELECT (SELECT n.tenant_id FROM node_run n WHERE {_WAITING} AND n.tenant_id > t.tenant_id
          ORDER BY n.tenant_id LIMIT 1), t.turn + 1
  FROM behind t WHERE t.tenant_id IS NOT NULL AND t.turn < {_TENANTS}
), before AS (
  (SELECT tenant_id, (SELECT count(tenant_id)::int FROM behind) + 1 AS turn FROM node_run
   WHERE (SELECT count(tenant_id) FROM behind) < {_TENANTS} AND {_WAITING} AND tenant_id <= $5
   ORDER BY tenant_id LIMIT 1)
  UNION ALL
  SELECT (SELECT n.tenant_id FROM node_run n WHERE {_WAITING} AND n.tenant_id > t.tenant_id AND n.tenant_id <= $5
          ORDER BY n.tenant_id LIMIT 1), t.turn + 1
  FROM before t WHERE t.tenant_id IS NOT NULL AND t.turn < {_TENANTS}
), served AS (
  SELECT tenant_id, turn FROM (TABLE behind UNION ALL TABLE before) AS t
  WHERE tenant_id IS NOT NULL AND tenant_id <> ALL ($6::text[])
), candidates AS (
  SELECT c.id, served.turn FROM served CROSS JOIN LATERAL (
    SELECT oldest.id, row_number() OVER () AS place FROM (
      SELECT id FROM node_run WHERE {_WAITING} AND tenant_id = served.tenant_id ORDER BY created_at
      LIMIT (SELECT ceil($2::float8 / greatest(count(*), 1)) FROM served)
    ) AS oldest
  ) AS c ORDER BY c.place, served.turn LIMIT $2
), locked AS (
  SELECT id FROM node_run WHERE id = ANY(ARRAY(SELECT id FROM candidates))
    AND listed + 0 = {READY} AND status = 'queued'  -- Not the column itself: that invites the other index.
  ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
  UPDATE node_run n SET listed = {LEASED}, leased_by = $3, lease_until = extract(epoch FROM clock_timestamp()) + $4,
    started_at = extract(epoch FROM clock_timestamp()),
    deadline_at = CASE WHEN n.timeout_seconds > 0 THEN extract(epoch FROM clock_timestamp()) + n.timeout_seconds END
  FROM locked WHERE n.id = locked.id
  RETURNING n.*
)
SELECT {_NAMES}, r.workflow_version_id, r.traceparent, r.correlation_id, c.turn
FROM claimed n JOIN candidates c ON c.id = n.id LEFT JOIN run r ON r.id = n.run_id"""

GIVEN_BACK_SECONDS = (1, 60)
"""What is given back is offered again after a quarter of its age, within these."""

# It stays listed for the sweepers, with nobody who holds it: they offer it again.
_GIVE_BACK = f"""UPDATE node_run n SET leased_by = NULL, started_at = NULL, deadline_at = NULL,
  lease_until = extract(epoch FROM clock_timestamp()) + least({GIVEN_BACK_SECONDS[1]}, greatest({GIVEN_BACK_SECONDS[0]},
    (extract(epoch FROM clock_timestamp()) - n.created_at) / 4))
FROM (SELECT id, token FROM unnest($1::uuid[], $2::int4[]) AS u(id, token) ORDER BY id) AS u
WHERE n.id = u.id AND n.lease_token = u.token AND n.leased_by = $3 AND n.ready AND n.result IS NULL"""

_ABANDON = f"""UPDATE node_run SET listed = {LEASED}, lease_until = extract(epoch FROM clock_timestamp())
WHERE id = $1 AND lease_token = $2 AND leased_by = $3 AND ready AND result IS NULL"""

_OFFER_AGAIN = f"""UPDATE node_run n SET listed = {READY}, lease_until = NULL
FROM (SELECT id FROM node_run WHERE lane = ANY($1::int2[]) AND listed = {LEASED} AND leased_by IS NULL
  AND lease_until < extract(epoch FROM clock_timestamp()) ORDER BY id LIMIT 300 FOR NO KEY UPDATE SKIP LOCKED) AS u
WHERE n.id = u.id"""

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
WHERE n.lane = ANY($1::int2[]) AND n.listed = {LEASED} AND n.result IS NULL AND n.leased_by IS NOT NULL
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


class Claimed(NamedTuple):
    """A leased step. `problem`: why its row cannot be read; then only its names are there. `run` None: it has none."""

    row: NodeRun
    run: RunOf | None
    problem: str = ""


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


class HeldLeases(Protocol):
    """What an executor does with leases: `Leases`, or some in memory."""

    async def claim(self, kind: str, count: int, full: Set[str] = frozenset()) -> list[Claimed]: ...

    async def renew(self, ids: Sequence[str], tokens: Sequence[int]) -> dict[str, str]: ...

    async def finish(self, results: Sequence[tuple[str, int, bytes]]) -> set[str]: ...

    async def give_back(self, ids: Sequence[str], tokens: Sequence[int]) -> None: ...


class LostLeases(Protocol):
    """What a sweeper looks for."""

    async def expired(self, lanes: Sequence[int]) -> list[ExpiredLease]: ...

    async def unacknowledged(self, lanes: Sequence[int]) -> list[ExpiredLease]: ...


class Leases:
    """Every call is one statement, outside the lanes' fence: the lease token guards each row."""

    def __init__(self, pool: asyncpg.Pool, owner: str, lease_seconds: float) -> None:
        self._pool = pool
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._served: dict[str, str] = {}  # By kind the tenant that was served last.

    async def claim(self, kind: str, count: int, full: Set[str] = frozenset()) -> list[Claimed]:
        """Lease up to `count` ready steps of a kind: the oldest of each tenant, tenants in turn, but none of `full`.

        One claim goes on behind the last tenant that the one before it served.
        """
        after = self._served.get(kind, "")
        rows = await self._pool.fetch(_CLAIM, kind, count, self._owner, self._lease_seconds, after, sorted(full))
        claimed = [_claimed(row) for row in rows]
        if rows:
            turns = [row["turn"] for row in rows]
            self._served[kind] = claimed[turns.index(max(turns))].row.tenant_id
        return claimed

    async def give_back(self, ids: Sequence[str], tokens: Sequence[int]) -> None:
        """Leases of steps that were not begun: they are offered again after a while, under the same token."""
        if ids:
            await self._pool.execute(_GIVE_BACK, ids, tokens, self._owner)

    async def abandon(self, row: NodeRun) -> None:
        """The lease of a step that may have been executed and has no answer: the sweepers find it at once."""
        await self._pool.execute(_ABANDON, row.id, row.lease_token, self._owner)

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
        """The leases of these lanes' steps that ran out. What was given back is offered again where it is time."""
        await self._pool.execute(_OFFER_AGAIN, sorted(lanes))
        rows = await self._pool.fetch(_EXPIRED, sorted(lanes))
        return [ExpiredLease(str(r[0]), str(r[1]), r[2], r[3], r[4], r[5], r[6]) for r in rows]

    async def unacknowledged(self, lanes: Sequence[int]) -> list[ExpiredLease]:
        rows = await self._pool.fetch(_UNACKNOWLEDGED, sorted(lanes))
        return [ExpiredLease(str(r[0]), str(r[1]), r[2], r[3], r[4], r[6], r[7], r[5]) for r in rows]


def _claimed(record: asyncpg.Record) -> Claimed:
    values = tuple(record)
    count = len(NODE_RUNS.columns)
    version_id, traceparent, correlation_id = values[count : count + 3]
    run = None if version_id is None else RunOf(str(version_id), traceparent, correlation_id)
    try:
        return Claimed(load_row(NODE_RUNS, values[:count]), run)
    except Exception as error:  # Whatever is wrong with it must not touch those that were claimed with it.
        return Claimed(load_row(NODE_RUNS, _without_json(values[:count])), run, f"{type(error).__name__}: {error}")


def _without_json(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        None if column.pg_type == "bytea" else value for column, value in zip(NODE_RUNS.columns, values, strict=True)
    )
