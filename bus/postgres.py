"""The store on Postgres: set-based statements through asyncpg, never row by row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from bus.statements import Statements, advance_arrays, load_headers, tuple_arrays
from bus.store import (
    Admitted,
    Advance,
    Claimed,
    Fenced,
    Logged,
    Out,
    Outcome,
    Poison,
    Unavailable,
    Unknown,
    Writes,
)
from infra.db import TableSpec, database_of, role_of
from infra.settings import Settings
from schemas import registry
from schemas.decider import Recorded

SESSION = {
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""Worker sessions, besides their role: plans for a handful of rows by key must not change with the tables' sizes."""

ANSWER_SECONDS = 5.0
DRIVER_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""Of these a broken connection may be the cause. InternalClientError comes when a session that the server has ended
is used before its end was noticed."""

FENCED_SQLSTATE = "AP001"

_LOCK = """SELECT ap_fence($1::int2[], ARRAY(
  SELECT l.id FROM unnest($1::int2[], $2::int8[], $3::int8[]) AS a(lane, epoch, expected)
  JOIN lane l ON l.id = a.lane AND l.epoch = a.epoch AND l.next_offset = a.expected
  ORDER BY l.id FOR NO KEY UPDATE OF l))"""

_ADMIT_INBOX = """WITH u AS (SELECT * FROM unnest($1::uuid[], $2::int2[], $3::float8[]) AS u(message_id, redrive, at)),
i AS (INSERT INTO inbox SELECT * FROM u ON CONFLICT DO NOTHING RETURNING message_id, redrive)
SELECT message_id, redrive FROM u EXCEPT SELECT message_id, redrive FROM i"""
_ADMIT_OUTCOMES = """INSERT INTO command_outcome (command_id, tenant_id, type, fingerprint, status, body, created_at,
  reply_partition, deferred)
SELECT id, tenant, type, fingerprint, 'pending', '', at, reply, false
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::float8[], $6::int2[])
  AS u(id, tenant, type, fingerprint, at, reply)
ON CONFLICT DO NOTHING RETURNING command_id"""
_STORED_OUTCOMES = """SELECT command_id, tenant_id, type, fingerprint, status, body, created_at,
  reply_partition, deferred
FROM command_outcome WHERE command_id = ANY($1::uuid[])"""
_CLAIM = """UPDATE lane SET epoch = epoch + 1, owner = $2, claimed_at = clock_timestamp(), stopped = ''
WHERE id = ANY($1::int2[]) RETURNING id, epoch, next_offset, position, sent, floor"""
_DUE_LANES = """SELECT lane FROM unnest($1::int2[]) AS u(lane)
WHERE EXISTS (SELECT FROM timer t WHERE t.lane = u.lane AND t.due_at <= clock_timestamp())"""
_DUE_TIMERS = """DELETE FROM timer WHERE id = ANY(ARRAY(
  SELECT id FROM timer WHERE lane = ANY($1::int2[]) AND due_at <= clock_timestamp() ORDER BY due_at LIMIT 300))
RETURNING lane, 'commands', partition, key, headers, body, tenant_id, due_at"""
_UNSENT_EVENTS = """SELECT aggregate_id, seq, lane, position, type, tenant_id, at, actor, correlation_id, causation_id,
traceparent, data FROM event WHERE lane = $1 AND position > $2 ORDER BY position"""
_UNSENT_OUTBOX = """SELECT lane, position, topic, partition, key, headers, body, tenant_id
FROM outbox WHERE lane = $1 AND position > $2 ORDER BY position"""


class PostgresStore:
    """`Store` over a pool of sessions made by `connect`."""

    def __init__(self, pool: asyncpg.Pool, specs: Mapping[str, TableSpec]) -> None:
        self._pool = pool
        self._statements = Statements(specs)

    @property
    def pool(self) -> asyncpg.Pool:
        return self._pool

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[PostgresUnit]:
        async with self._connection() as connection:
            transaction = connection.transaction()
            with _PortErrors():
                await transaction.start()
            try:
                yield PostgresUnit(self, connection)
            except BaseException:
                await _rollback(connection, transaction)
                raise
            with _PortErrors(committing=True):
                await transaction.commit()

    async def write(self, writes: Writes) -> None:
        async with self._connection() as connection:
            with _PortErrors(committing=True):
                await self.save(connection, writes)

    async def save(self, connection: Any, writes: Writes) -> None:
        sql, arguments = self._statements.of(writes)
        await connection.fetchval(sql, *arguments)

    async def read(self, spec: TableSpec, ids: Sequence[str]) -> list[Any]:
        async with self._connection() as connection:
            with _PortErrors():
                rows = await connection.fetch(f"{_select(spec)} WHERE id = ANY($1::uuid[])", ids)
        return [load_row(spec, row) for row in rows]

    async def claim(self, lanes: Sequence[int], owner: str) -> list[Claimed]:
        async with self._connection() as connection:
            with _PortErrors():
                rows = await connection.fetch(_CLAIM, sorted(lanes), owner)
        return [Claimed(*row) for row in rows]

    async def unsent(self, lane: int, sent: int) -> tuple[list[Logged], list[Out]]:
        async with self._connection() as connection:
            with _PortErrors():
                events = await connection.fetch(_UNSENT_EVENTS, lane, sent)
                outs = await connection.fetch(_UNSENT_OUTBOX, lane, sent)
        return [_logged(row) for row in events], [
            Out(lane, row[1], row[2], row[3], row[4], load_headers(row[5]), row[6], row[7]) for row in outs
        ]

    async def due_lanes(self, lanes: Sequence[int]) -> list[int]:
        async with self._connection() as connection:
            with _PortErrors():
                return [row[0] for row in await connection.fetch(_DUE_LANES, sorted(lanes))]

    async def restarted(self, lanes: Sequence[int], epochs: Sequence[int]) -> list[int]:
        async with self._connection() as connection:
            with _PortErrors():
                rows = await connection.fetch(
                    "SELECT l.id FROM unnest($1::int2[], $2::int8[]) AS u(id, epoch) JOIN lane l USING (id)"
                    " WHERE l.epoch > u.epoch",
                    lanes,
                    epochs,
                )
                return [row[0] for row in rows]

    async def stop(self, lane: int, epoch: int, reason: str) -> None:
        async with self._connection() as connection:
            with _PortErrors():
                await connection.execute(
                    "UPDATE lane SET stopped = $3 WHERE id = $1 AND epoch = $2", lane, epoch, reason
                )

    async def now(self) -> float:
        async with self._connection() as connection:
            with _PortErrors():
                return float(await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8"))

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        try:
            connection = await self._pool.acquire(timeout=5)
        except DRIVER_ERRORS as error:
            raise Unavailable(f"no connection to Postgres: {error}") from error
        try:
            yield connection
        finally:
            with suppress(*DRIVER_ERRORS):  # A session that ended after its work says nothing about it.
                await self._pool.release(connection)


def _logged(row: Any) -> Logged:
    recorded = Recorded(
        event=registry.decode_event(row["type"], row["data"]),
        aggregate_id=str(row["aggregate_id"]),
        seq=row["seq"],
        at=row["at"],
        tenant_id=row["tenant_id"],
        lane=row["lane"],
        actor=row["actor"],
        correlation_id=row["correlation_id"],
        causation_id=row["causation_id"],
        traceparent=row["traceparent"],
    )
    return Logged(row["position"], recorded, row["data"])


class PostgresUnit:
    """`Unit`: one transaction on one connection."""

    def __init__(self, store: PostgresStore, connection: Any) -> None:
        self._store = store
        self.connection = connection

    async def lock(self, advances: Sequence[Advance]) -> None:
        with _PortErrors():
            await self.connection.fetchval(_LOCK, *advance_arrays(advances)[:3])

    async def admit(self, inbox: Sequence[tuple[str, int, float]], outcomes: Sequence[Outcome]) -> Admitted:
        repeats: frozenset[tuple[str, int]] = frozenset()
        stored: dict[str, Outcome] = {}
        with _PortErrors():
            if inbox:
                rows = await self.connection.fetch(_ADMIT_INBOX, *tuple_arrays(sorted(inbox)))
                repeats = frozenset((str(row[0]), row[1]) for row in rows)
            if outcomes:
                ordered = sorted(outcomes, key=lambda outcome: outcome.command_id)
                arrays = tuple_arrays(
                    [(o.command_id, o.tenant_id, o.type, o.fingerprint, o.at, o.reply_partition) for o in ordered]
                )
                fresh = {str(row[0]) for row in await self.connection.fetch(_ADMIT_OUTCOMES, *arrays)}
                known = [o.command_id for o in ordered if o.command_id not in fresh]
                if known:
                    stored = await self.stored_outcomes(known)
        return Admitted(repeats, stored)

    async def load(self, spec: TableSpec, ids: Sequence[str]) -> list[Any]:
        return await self._select(spec, "id = ANY($1::uuid[])", ids)

    async def load_live(self, spec: TableSpec, parents: Sequence[str]) -> list[Any]:
        return await self._select(spec, f"{spec.parent} = ANY($1::uuid[]) AND ({spec.live_sql})", parents)

    async def stored_outcomes(self, ids: Sequence[str]) -> dict[str, Outcome]:
        with _PortErrors():
            rows = await self.connection.fetch(_STORED_OUTCOMES, ids)
        return {str(row[0]): Outcome(str(row[0]), *row[1:]) for row in rows}

    async def due_timers(self, lanes: Sequence[int]) -> list[Out]:
        with _PortErrors():
            rows = await self.connection.fetch(_DUE_TIMERS, sorted(lanes))
        ordered = sorted(rows, key=lambda row: row["due_at"])
        return [Out(r[0], 0, r[1], r[2], r[3], load_headers(r[4]), r[5], r[6]) for r in ordered]

    async def save(self, writes: Writes) -> None:
        with _PortErrors():
            await self._store.save(self.connection, writes)

    async def _select(self, spec: TableSpec, condition: str, ids: Sequence[str]) -> list[Any]:
        lock = " ORDER BY id FOR NO KEY UPDATE" if spec.volatile else ""
        with _PortErrors():
            rows = await self.connection.fetch(f"{_select(spec)} WHERE {condition}{lock}", sorted(set(ids)))
        return [load_row(spec, row) for row in rows]


def _select(spec: TableSpec) -> str:
    names = ", ".join(f'"{column.name}"' for column in spec.columns)
    return f"SELECT {names} FROM {spec.name}"


def load_row(spec: TableSpec, row: Sequence[Any]) -> Any:
    """A row of Postgres as its row type; the columns must be in the table's order."""
    return spec.row(
        *(value if column.load is None else column.load(value) for column, value in zip(spec.columns, row, strict=True))
    )


async def _rollback(connection: Any, transaction: Any) -> None:
    try:
        await transaction.rollback()
    except DRIVER_ERRORS:
        with suppress(asyncpg.InterfaceError):  # The pool may have dropped it already.
            connection.terminate()  # Its state is not known: the pool makes a new one.


class _PortErrors:
    """Turn the driver's errors into those of the port. `committing`: a lost connection leaves the end unknown."""

    __slots__ = ("_committing",)

    def __init__(self, *, committing: bool = False) -> None:
        self._committing = committing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        if isinstance(error, asyncio.CancelledError):
            return
        if isinstance(error, asyncpg.PostgresError):
            state = getattr(error, "sqlstate", None) or ""
            if state == FENCED_SQLSTATE:
                detail = getattr(error, "detail", "") or ""
                raise Fenced(int(lane) for lane in detail.split(",") if lane) from None
            if state[:2] in ("22", "23"):
                raise Poison(f"{state}: {error}") from error
            if state[:2] == "08" and self._committing:
                raise Unknown(str(error)) from error
            if state in ("57P01", "57P02", "57P03") and self._committing:
                raise Unknown(str(error)) from error
            raise Unavailable(f"{state}: {error}") from error
        if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
            # A value the driver cannot encode (its own DataError): nothing was sent, and no later try can differ.
            raise Poison(f"not encodable: {error}") from error
        if isinstance(error, DRIVER_ERRORS):
            if self._committing:
                raise Unknown(str(error)) from error
            raise Unavailable(str(error)) from error


async def _keep(connection: object) -> None:
    """No statement of ours leaves anything in its session, so a released connection needs no RESET round trip."""


def session(settings: Settings, application: str) -> dict[str, str]:
    """What a worker session sets: nobody waits for others, or keeps them waiting, longer than the settings say."""
    return SESSION | {
        "role": role_of("worker", database_of(settings.required_database_url)),
        "application_name": f"agent-platform {application}",
        "transaction_timeout": _milliseconds(settings.transaction_timeout_seconds),
        "idle_in_transaction_session_timeout": _milliseconds(settings.idle_in_transaction_timeout_seconds),
        "lock_timeout": _milliseconds(settings.lock_timeout_seconds),
    }


def _milliseconds(seconds: float) -> str:
    return f"{max(1, round(seconds * 1_000))}ms"  # 0 would mean without end.


async def connect(settings: Settings, *, size: int = 4, application: str = "worker") -> asyncpg.Pool:
    """A pool of worker sessions. Raises Unavailable if Postgres does not answer."""
    try:
        return await asyncpg.create_pool(
            settings.required_database_url,
            min_size=min(2, size),
            max_size=size,
            # Of the driver, for a server that says nothing any more: one that does ends a transaction before.
            command_timeout=settings.transaction_timeout_seconds + ANSWER_SECONDS,
            statement_cache_size=1_000,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
            reset=_keep,
            server_settings=session(settings, application),
        )
    except DRIVER_ERRORS as error:
        raise Unavailable(f"no connection to Postgres: {error}") from error
