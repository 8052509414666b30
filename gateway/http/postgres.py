"""Reads from Postgres: one tenant's rows under row level security, and the few look-ups across tenants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from gateway.audit_table import AUDIT_COLUMNS, AUDITS, STATS_SQL
from gateway.http.ports import AuditRecord, Candidate, DatabaseUnavailable, Found, Outcome, Page
from infra.db import Part, TableSpec, metadata, session
from projections.access import API_KEYS, ApiKey
from projections.runtime import BY_HAND
from schemas.decider import Recorded
from schemas.messages import Event
from schemas.registry import decode_event

APPLICATIONS: Mapping[Part, str] = {"gateway": "ap_gateway", "lookup": "ap_lookup"}
"""How sessions of a gateway call themselves."""

_CANDIDATE_COLUMNS = {
    "run": ("status", "paused", "parent_paused"),
    "node_run": ("run_id", "listed", "created_at", "seq"),
}


def looked_up(tables: Iterable[str]) -> dict[str, tuple[str, ...] | None]:
    """What is looked up of these tables across all tenants: these columns and no others; None: all of them."""
    columns: dict[str, tuple[str, ...] | None] = {
        table: (_id_column(table), "tenant_id", *_CANDIDATE_COLUMNS.get(table, ())) for table in tables
    }
    return columns | {"api_key": None, "lane": None}


def _id_column(table: str) -> str:
    """Raises KeyError for what is no table of the platform."""
    (column,) = metadata.tables[table].primary_key.columns
    return column.name


def candidates_sql(tenant_id: str | None, limit: int) -> tuple[str, list[Any]]:
    """The query of what waits for a caller, and its parameters. The limit is written out, so that plans know it."""
    values: list[Any] = []
    of_tenant = "" if tenant_id is None else f" and n.tenant_id = {_parameter(values, tenant_id)}"
    return (
        f"""
select n.id, n.run_id, n.tenant_id
from node_run n join run r on r.id = n.run_id
where n.listed = {BY_HAND}{of_tenant} and r.status in ('queued', 'running', 'waiting')
  and not r.paused and not r.parent_paused
order by n.created_at, n.seq, n.id
limit {limit:d}
""",
        values,
    )


_IN_FLIGHT_SQL = """
select exists (
  select from node_run where run_id = $1 and ready and status in ('queued', 'running', 'pending')
)
"""
_HISTORY_SQL = """
select seq, type, data, at, tenant_id, lane, actor, correlation_id, causation_id, traceparent
from event where aggregate_id = $1 and seq > $2 and seq <= $3 order by seq limit $4
"""
_HISTORY_ROWS = 500
_SEQ_MAX = 2**31 - 1
_OUTCOME_SQL = "select status, body from command_outcome where command_id = $1 and status <> 'pending'"


class Postgres:
    """Two pools on one database. Raises DatabaseUnavailable where Postgres fails to answer in time."""

    def __init__(self, reads: asyncpg.Pool, lookups: asyncpg.Pool, acquire_seconds_max: float) -> None:
        self._reads = reads
        self._lookups = lookups
        self._acquire_seconds_max = acquire_seconds_max
        self._one_sql: dict[str, str] = {}

    @classmethod
    async def connect(cls, url: str, *, connections_max: int, seconds_max: float = 5.0) -> Postgres:
        """Pools that connect when first used, so a gateway starts while Postgres is down."""
        reads = await _pool(url, "gateway", connections_max, seconds_max)
        lookups = await _pool(url, "lookup", max(2, connections_max // 4), seconds_max)
        return cls(reads, lookups, seconds_max)

    async def close(self) -> None:
        await self._reads.close()
        await self._lookups.close()

    async def one(self, tenant_id: str, spec: TableSpec, id: str) -> Any | None:
        sql = self._one_sql.get(spec.name)
        if sql is None:
            sql = self._one_sql[spec.name] = f"select {_columns(spec)} from {spec.name} where id = $1"
        async with self._tenant(tenant_id) as connection:
            record = await connection.fetchrow(sql, id)
        return None if record is None else _row(spec, record)

    async def page(self, tenant_id: str, page: Page) -> Found:
        sql, values = page_sql(tenant_id, page)
        scanned_to = None
        async with self._tenant(tenant_id) as connection:
            records = await connection.fetch(sql, *values)
            if page.scans and len(records) < page.limit:
                sql, values = scanned_to_sql(tenant_id, page)
                ends = await connection.fetch(sql, *values)
                scanned_to = _place(page, ends[0]) if len(ends) == 2 else None
        return Found([_row(page.spec, record) for record in records], scanned_to)

    async def history(self, tenant_id: str, aggregate_id: str, seq_max: int | None) -> AsyncIterator[Recorded[Event]]:
        """A part at a time, each a transaction of its own: events never change, and who folds them takes its time."""
        last = 0
        while True:
            async with self._tenant(tenant_id) as connection:
                rows = await connection.fetch(_HISTORY_SQL, aggregate_id, last, seq_max or _SEQ_MAX, _HISTORY_ROWS)
            for seq, name, data, at, *rest in rows:
                yield Recorded(decode_event(name, data), aggregate_id, seq, at or 0.0, *rest)
            if len(rows) < _HISTORY_ROWS:
                return
            last = rows[-1][0]

    async def outcome(self, tenant_id: str, command_id: str) -> Outcome | None:
        async with self._tenant(tenant_id) as connection:
            record = await connection.fetchrow(_OUTCOME_SQL, command_id)
        return None if record is None else Outcome(command_id, record[0], orjson.loads(record[1]))

    async def step_in_flight(self, tenant_id: str, run_id: str) -> bool:
        async with self._tenant(tenant_id) as connection:
            return bool(await connection.fetchval(_IN_FLIGHT_SQL, run_id))

    async def candidates(self, tenant_id: str | None, limit: int) -> Sequence[Candidate]:
        sql, values = candidates_sql(tenant_id, limit)
        async with self._all_tenants() if tenant_id is None else self._tenant(tenant_id) as connection:
            records = await connection.fetch(sql, *values)
        return [Candidate(str(record[0]), str(record[1]), record[2]) for record in records]

    async def tenant_of(self, table: str, id: str) -> str | None:
        column = _id_column(table)
        async with self._all_tenants() as connection:
            tenant_id = await connection.fetchval(f"select tenant_id from {table} where {column} = $1", id)
        return None if tenant_id is None else str(tenant_id)

    async def api_key(self, id: str) -> ApiKey | None:
        async with self._all_tenants() as connection:
            record = await connection.fetchrow(f"select {_columns(API_KEYS)} from api_key where id = $1", id)
        return None if record is None else _row(API_KEYS, record)

    async def any_api_key(self) -> bool:
        async with self._all_tenants() as connection:
            return bool(await connection.fetchval("select exists (select from api_key)"))

    async def write_audit(self, records: Sequence[AuditRecord]) -> None:
        by_tenant: dict[str, list[AuditRecord]] = {}
        for record in records:
            by_tenant.setdefault(record.tenant_id, []).append(record)
        async with self._acquired(self._reads) as connection, connection.transaction():
            for tenant_id, of_tenant in by_tenant.items():
                await connection.execute("select set_config('app.tenant_id', $1, true)", tenant_id)
                await connection.execute(_INSERT_AUDIT_SQL, *_arrays(of_tenant))

    async def audit_stats(self, tenant_id: str, since: float) -> Mapping[str, Any]:
        async with self._tenant(tenant_id) as connection:
            stats: Mapping[str, Any] = orjson.loads(await connection.fetchval(STATS_SQL, since))
        return stats

    async def ping(self) -> None:
        async with self._acquired(self._reads) as connection:
            await connection.execute("select 1")

    @asynccontextmanager
    async def _tenant(self, tenant_id: str) -> AsyncIterator[PoolConnectionProxy]:
        """A read-only transaction that sees one tenant's rows, all as of one moment.

        Begun in one round trip: the tenant goes as hexadecimal, since a script takes no parameters.
        """
        async with self._acquired(self._reads) as connection:
            await connection.execute(
                "begin isolation level repeatable read read only; select set_config('app.tenant_id', "
                f"convert_from('\\x{tenant_id.encode().hex()}'::bytea, 'UTF8'), true)"
            )
            try:
                yield connection
            except BaseException:
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise
            await connection.execute("commit")

    @asynccontextmanager
    async def _all_tenants(self) -> AsyncIterator[PoolConnectionProxy]:
        async with self._acquired(self._lookups) as connection:
            yield connection

    @asynccontextmanager
    async def _acquired(self, pool: asyncpg.Pool) -> AsyncIterator[PoolConnectionProxy]:
        try:
            async with pool.acquire(timeout=self._acquire_seconds_max) as connection:
                try:
                    yield connection
                except _UNAVAILABLE:
                    connection.terminate()  # In doubt, so not for the next one.
                    raise
        except _UNAVAILABLE as error:
            raise DatabaseUnavailable(str(error) or type(error).__name__) from error


_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.InvalidAuthorizationSpecificationError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
)


async def _pool(url: str, part: Part, connections_max: int, seconds_max: float) -> asyncpg.Pool:
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=connections_max,
        command_timeout=seconds_max,
        timeout=seconds_max,
        reset=_keep,
        server_settings=session(
            url,
            part,
            application_name=APPLICATIONS[part],
            statement_timeout=str(int(seconds_max * 1000)),
            idle_in_transaction_session_timeout="3000",
            jit="off",
        ),
    )
    return pool


async def _keep(connection: object) -> None:
    """Nothing outlives a transaction of ours, so a released connection needs no RESET round trip."""


def _columns(spec: TableSpec) -> str:
    return ", ".join(f'"{column.name}"' for column in spec.columns)


def _row(spec: TableSpec, record: asyncpg.Record) -> Any:
    values = zip(spec.columns, record, strict=True)
    return spec.row(*[value if column.load is None else column.load(value) for column, value in values])


def page_sql(tenant_id: str, page: Page) -> tuple[str, list[Any]]:
    """The query of one page and its parameters."""
    values: list[Any] = []
    listed, order = _listed_sql(tenant_id, page, values)
    columns = _columns(page.spec)
    if page.scans:
        listed += f" limit {_parameter(values, page.scan)}"
        wanted = _equal(page.matching, values) + [condition.sql for condition in page.where]
        sql = f"select {columns} from (select {columns} {listed}) as scanned where {' and '.join(wanted)} {order}"
    else:
        sql = f"select {columns} {listed}"
    return f"{sql} limit {_parameter(values, page.limit)}", values


def scanned_to_sql(tenant_id: str, page: Page) -> tuple[str, list[Any]]:
    """The query of where the scan for a page ended: the places of its last row and of the row behind that."""
    values: list[Any] = []
    listed, _ = _listed_sql(tenant_id, page, values)
    return f"select {_names(page)} {listed} offset {_parameter(values, page.scan - 1)} limit 2", values


def _listed_sql(tenant_id: str, page: Page, values: list[Any]) -> tuple[str, str]:
    """The rows of a list behind its cursor, and its order. The tenant is also a condition, for the index's sake."""
    conditions = _equal({"tenant_id": tenant_id, **page.equal}, values)
    names = _names(page)
    if page.after is not None:
        places = ", ".join(_parameter(values, value) for value in page.after)
        conditions.append(f"({names}) {'<' if page.descending else '>'} ({places})")
    direction = " desc" if page.descending else ""
    order = "order by " + ", ".join(f'"{name}"{direction}' for name in page.order)
    return f"from {page.spec.name} where {' and '.join(conditions)} {order}", order


def _names(page: Page) -> str:
    return ", ".join(f'"{name}"' for name in page.order)


def _equal(columns: Mapping[str, Any], values: list[Any]) -> list[str]:
    return [f'"{name}" = {_parameter(values, value)}' for name, value in columns.items()]


def _parameter(values: list[Any], value: Any) -> str:
    values.append(value)
    return f"${len(values)}"


def _place(page: Page, record: asyncpg.Record) -> tuple[Any, ...]:
    loads = {column.name: column.load for column in page.spec.columns}
    pairs = zip(page.order, record, strict=True)
    return tuple(value if (load := loads[name]) is None else load(value) for name, value in pairs)


_INSERT_AUDIT_SQL = (
    f"insert into {AUDITS.name} ({', '.join(AUDIT_COLUMNS)}) select * from unnest("
    + ", ".join(f"${place}::{column.pg_type}[]" for place, column in enumerate(AUDITS.columns, 1))
    + ") on conflict do nothing"
)


def _arrays(records: Sequence[AuditRecord]) -> list[list[Any]]:
    return [[getattr(record, name) for record in records] for name in AUDIT_COLUMNS]
