"""The same reads on the real thing: row level security, look-ups across tenants, pages, audits."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from itertools import product, takewhile
from typing import Any

import asyncpg
import orjson
import pytest

from gateway.audit_table import AUDITS
from gateway.http.ports import AuditRecord, Condition, DatabaseUnavailable, Found, Page
from gateway.http.postgres import Postgres, candidates_sql, page_sql
from gateway.http.routing import Listing
from gateway.platform import AUDIT_LIST
from gateway.routes import ROUTES
from gateway.runtime import NODE_RUN_LIST
from gateway.time_travel import of_page
from infra.database import migrate as database
from infra.db import Part, TableSpec, database_of, role_of, session
from infra.domains import PROJECTIONS
from infra.local.embedded import EmbeddedStack
from outbox.tables import OUTCOME
from projections.access import API_KEYS, ApiKey
from projections.catalog import DEFINITIONS, Definition
from projections.runtime import BY_HAND, LEASED, NODE_RUNS, READY, RUNS, NodeRun, Run

pytestmark = pytest.mark.services


def fresh() -> str:
    return str(uuid.uuid4())


EMPTY: dict[str, Any] = {"text": "", "uuid": "", "bool": False, "float8": 0.0, "bytea": {}}
BLANKS = {spec.row: spec for spec in (*PROJECTIONS, AUDITS)}


def blank(row: type[Any], /, **given: Any) -> Any:
    """A row with an empty value in every field that is not given."""
    values = {
        column.name: given[column.name]
        if column.name in given
        else None
        if BLANKS[row].table.columns[column.name].nullable and column.pg_type != "float8"
        else EMPTY.get(column.pg_type, 0)
        for column in BLANKS[row].columns
    }
    return row(**values)


@dataclass
class Database:
    """A migrated database of this file's own. `admin` sees all; `url` is what the gateway connects to."""

    admin: asyncpg.Connection
    reads: Postgres
    url: str

    async def put(self, spec: TableSpec, *rows: Any) -> None:
        names = ", ".join(f'"{column.name}"' for column in spec.columns)
        places = ", ".join(f"${place}" for place in range(1, len(spec.columns) + 1))
        for row in rows:
            values = [
                column.dump(getattr(row, column.name)) if column.dump else getattr(row, column.name)
                for column in spec.columns
            ]
            await self.admin.execute(f"insert into {spec.name} ({names}) values ({places})", *values)


@pytest.fixture
async def db(services: EmbeddedStack) -> AsyncIterator[Database]:
    name = f"gateway_{uuid.uuid4().hex[:12]}"
    first = await asyncpg.connect(services.database_url)
    await first.execute(f"create database {name}")
    url = services.postgres.url_of(name)
    await database.migrate(url, 12, 12)
    admin = await asyncpg.connect(url)
    reads = await Postgres.connect(url, connections_max=4)
    try:
        yield Database(admin, reads, url)
    finally:
        await reads.close()
        await admin.close()
        await first.execute(f"drop database {name} with (force)")
        await first.close()


def run(tenant_id: str = "t1", **given: Any) -> Run:
    made: Run = blank(
        Run,
        **{
            "id": fresh(),
            "tenant_id": tenant_id,
            "status": "running",
            "mode": "manual",
            "workflow_id": fresh(),
            "workflow_version_id": fresh(),
            "created_at": 1.0,
            **given,
        },
    )
    return made


def node(of: Run, **given: Any) -> NodeRun:
    made: NodeRun = blank(
        NodeRun,
        **{
            "id": fresh(),
            "run_id": of.id,
            "tenant_id": of.tenant_id,
            "node_id": "n",
            "status": "queued",
            "iteration": "1",
            "created_at": 1.0,
            **given,
        },
    )
    return made


async def test_a_row_comes_back_as_it_was_to_its_tenant_only(db: Database) -> None:
    stored = run(inputs={"客户": [1, 2.5, None]}, output=["x"], ended_at=7.25)
    await db.put(RUNS, stored)
    assert await db.reads.one("t1", RUNS, stored.id) == stored
    assert await db.reads.one("t2", RUNS, stored.id) is None
    assert await db.reads.one("t1", RUNS, fresh()) is None


@pytest.mark.parametrize("tenant_id", ["t1' or true --", "'); drop table run; --", "客户", "\\x7431", "a" * 128])
async def test_a_tenants_name_is_a_value_never_sql(db: Database, tenant_id: str) -> None:
    mine, other = run(tenant_id), run("t1")
    await db.put(RUNS, mine, other)
    assert await db.reads.one(tenant_id, RUNS, mine.id) == mine
    assert await db.reads.one(tenant_id, RUNS, other.id) is None


async def test_without_a_tenant_the_gateways_role_gets_an_error_not_rows(db: Database) -> None:
    await db.put(RUNS, run())
    connection = await asyncpg.connect(db.url, server_settings=session(db.url, "gateway"))
    try:
        with pytest.raises(asyncpg.PostgresError, match="no tenant is set"):
            await connection.fetch("select id from run")
        for statement in ("update run set status = 'x'", "delete from run", "truncate run", "drop table run"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


async def test_the_setting_of_one_request_is_gone_in_the_next(db: Database) -> None:
    stored = run()
    await db.put(RUNS, stored)
    one = await Postgres.connect(db.url, connections_max=1)
    try:
        assert await one.one("t1", RUNS, stored.id) == stored
        # Postgres keeps a setting that was made once as an empty one: that is no tenant either.
        async with one._acquired(one._reads) as connection:
            assert await connection.fetchval("select current_setting('app.tenant_id')") == ""
            with pytest.raises(asyncpg.PostgresError, match="no tenant is set"):
                await connection.fetchval("select count(*) from run")
    finally:
        await one.close()


async def test_look_ups_cross_tenants_and_see_no_more_than_they_must(db: Database) -> None:
    stored = run("t7")
    key = blank(ApiKey, id=fresh(), tenant_id="t8", secret_sha256="a" * 64, status="active", created_at=1.0)
    assert not await db.reads.any_api_key()
    await db.put(RUNS, stored)
    await db.put(API_KEYS, key)
    assert await db.reads.tenant_of("run", stored.id) == "t7"
    assert await db.reads.tenant_of("node_run", stored.id) is None
    assert await db.reads.api_key(key.id) == key
    assert await db.reads.any_api_key()
    connection = await asyncpg.connect(db.url, server_settings=session(db.url, "lookup"))
    try:
        for statement in ("select inputs from run", "select output from node_run", "table event", "table definition"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(statement)
    finally:
        await connection.close()


async def test_an_outcome_is_its_tenants(db: Database) -> None:
    id = fresh()
    columns = [column.name for column in OUTCOME.columns]
    body = orjson.dumps({"id": "x"})
    values = "$1, 't1', 'a.b', '', 'succeeded', $2, 1, 0, false"
    await db.admin.execute(f"insert into command_outcome ({', '.join(columns)}) values ({values})", id, body)
    found = await db.reads.outcome("t1", id)
    assert found is not None
    assert (found.status, found.body) == ("succeeded", {"id": "x"})
    assert await db.reads.outcome("t2", id) is None
    assert await db.reads.tenant_of("command_outcome", id) == "t1"


async def test_pages_follow_each_other_also_within_one_instant(db: Database) -> None:
    stored = [
        blank(Definition, id=fresh(), tenant_id="t1", kind="app", code=str(i), created_at=float(i // 3 + 1))
        for i in range(10)
    ]
    await db.put(DEFINITIONS, *stored, replace(stored[0], id=fresh(), tenant_id="t2"))
    found: list[Definition] = []
    after: tuple[Any, ...] | None = None
    while True:
        page = Page(DEFINITIONS, ("created_at", "id"), 4, equal={"kind": "app"}, after=after)
        rows = (await db.reads.page("t1", page)).rows
        if not rows:
            break
        found.extend(rows)
        after = (rows[-1].created_at, rows[-1].id)
    assert found == sorted(stored, key=lambda row: (row.created_at, row.id), reverse=True)


async def test_a_held_node_run_is_found_as_running_in_sql_as_in_python(db: Database) -> None:
    of = run()
    nodes = [
        node(of, status="queued"),
        node(of, status="queued", ready=True, leased_by="w"),
        node(of, status="running"),
        node(of, status="completed"),
    ]
    await db.put(RUNS, of)
    await db.put(NODE_RUNS, *nodes)
    for status, condition in NODE_RUN_LIST.special["status"].items():
        page = Page(NODE_RUNS, NODE_RUN_LIST.order, 10, descending=False, where=(condition,))
        found = {row.id for row in (await db.reads.page("t1", page)).rows}
        assert found == {each.id for each in nodes if condition.holds(each)}, status


async def test_every_list_is_a_query_that_postgres_takes(db: Database) -> None:
    listings = [route for route in ROUTES if isinstance(route, Listing)]
    assert len(listings) >= 6
    for route in listings:
        rows = route.rows
        values = {"uuid": fresh(), "int2": 1, "int4": 1}
        equal = {column.name: values.get(column.pg_type, "x") for column in map(rows.column, rows.all_filters)}
        by_type = {"float8": 1.0, "uuid": fresh(), "int4": 1}
        types = {column.name: column.pg_type for column in rows.spec.columns}
        after = tuple(by_type[types[name]] for name in rows.order)
        where = (*rows.where, *(each for special in rows.special.values() for each in special.values()))
        for indexed, matching in (({**rows.equal, **equal}, {}), (rows.equal, equal)):
            page = Page(rows.spec, rows.order, 5, rows.descending, indexed, matching, where, after)
            assert await db.reads.page("t1", page) == Found([])


async def test_waiting_node_runs_of_manual_runs_are_candidates_oldest_first(db: Database) -> None:
    mine, other, auto, ended = run("t1"), run("t2"), run(mode="auto"), run(status="completed")
    second, first = node(mine, created_at=3.0, listed=BY_HAND), node(mine, created_at=2.0, listed=BY_HAND)
    foreign = node(other, created_at=1.0, listed=BY_HAND)
    await db.put(RUNS, mine, other, auto, ended)
    await db.put(
        NODE_RUNS,
        second,
        first,
        foreign,
        node(auto),
        node(ended, listed=BY_HAND),
        node(mine, ready=True, listed=READY),
        node(mine, status="pending"),
        node(mine, status="running", listed=LEASED),
    )
    assert [each.node_run_id for each in await db.reads.candidates("t1", 10)] == [first.id, second.id]
    assert [each.node_run_id for each in await db.reads.candidates(None, 2)] == [foreign.id, first.id]
    assert (await db.reads.candidates(None, 1))[0].tenant_id == "t2"
    assert await db.reads.step_in_flight("t1", mine.id)
    assert not await db.reads.step_in_flight("t2", mine.id)
    assert not await db.reads.step_in_flight("t2", other.id)


def audit(tenant_id: str, number: int, **given: Any) -> AuditRecord:
    return AuditRecord(
        id=fresh(),
        tenant_id=tenant_id,
        api_key_id=None,
        user_id=given.get("user_id"),
        method="GET",
        path=f"/gateway/{number}",
        route="/gateway/{n}",
        status_code=given.get("status_code", 200),
        duration_ms=float(number),
        request_id=str(number),
        created_at=float(number),
    )


async def test_every_audit_record_of_a_batch_is_stored_under_its_tenant(db: Database) -> None:
    records = [audit(f"t{number % 3}", number) for number in range(1, 31)]
    await db.reads.write_audit([*records, audit("-", 99)])
    await db.reads.write_audit(records[:5])  # A batch that was in doubt comes again.
    for tenant in ("t0", "t1", "t2"):
        page = Page(AUDITS, AUDIT_LIST.order, 100)
        expected = [record for record in reversed(records) if record.tenant_id == tenant]
        assert (await db.reads.page(tenant, page)).rows == expected
    assert await db.admin.fetchval("select count(*) from gateway_request_audit") == 31


async def test_stats_are_of_one_tenant_and_time(db: Database) -> None:
    await db.reads.write_audit([audit("t1", 1), audit("t1", 10), audit("t1", 30, status_code=503), audit("t2", 20)])
    stats = await db.reads.audit_stats("t1", since=5.0)
    assert (stats["requests"], stats["by_status"], stats["mean_duration_ms"]) == (2, {"200": 1, "503": 1}, 20.0)
    assert [(each["route"], each["requests"], each["failed"]) for each in stats["routes"]] == [("/gateway/{n}", 2, 1)]
    assert (await db.reads.audit_stats("t9", since=0.0))["requests"] == 0


async def test_a_server_that_is_not_there_is_said_so(services: EmbeddedStack) -> None:
    nowhere = await Postgres.connect("postgresql://x:x@127.0.0.1:1/x", connections_max=1, seconds_max=1.0)
    with pytest.raises(DatabaseUnavailable):
        await nowhere.ping()
    with pytest.raises(DatabaseUnavailable):
        await nowhere.one("t1", RUNS, fresh())
    await nowhere.close()


async def test_a_connection_that_was_cut_is_replaced(db: Database) -> None:
    stored = run()
    await db.put(RUNS, stored)
    assert await db.reads.one("t1", RUNS, stored.id) == stored
    await db.admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    found = None
    for _ in range(5):
        try:
            found = await db.reads.one("t1", RUNS, stored.id)
        except DatabaseUnavailable:
            continue
    assert found == stored


async def indexes(db: Database, table: str) -> list[tuple[str, ...]]:
    """The columns of each index of a table; one with a condition counts if giving its column a value implies that."""
    records = await db.admin.fetch(
        """select pg_get_expr(i.indpred, i.indrelid) as condition,
             array(select a.attname::text from unnest(i.indkey) with ordinality k(number, place)
               join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number order by k.place) as columns
           from pg_index i where i.indrelid = $1::text::regclass""",
        table,
    )
    return [
        tuple(record["columns"])
        for record in records
        if record["condition"] in (None, *(f"({column} IS NOT NULL)" for column in record["columns"]))
    ]


FEW = {"node_run.run_id", "definition_version.definition_id", "gateway_request_audit.request_id"}
"""What so few rows have in common that they may be sorted."""


def leads(columns: tuple[str, ...], given: set[str], column: str, order: tuple[str, ...]) -> bool:
    """Whether an index holds the rows of a list that have a value in `column`, in the list's order."""
    leading = tuple(takewhile(lambda each: each in given, columns))
    return column in leading and columns == (*leading, *order)


async def test_every_list_and_each_of_its_filters_has_an_index(db: Database) -> None:
    for rows in (route.rows for route in ROUTES if isinstance(route, Listing)):
        known = await indexes(db, rows.spec.name)
        fixed = {"tenant_id", *rows.equal}
        if rows.needs is None:
            assert any(leads(columns, fixed, "tenant_id", rows.order) for columns in known), rows.spec.name
        for name in rows.filters:
            column = rows.column(name).name
            place = f"{rows.spec.name}.{column}"
            in_order = any(leads(columns, {*fixed, column}, column, rows.order) for columns in known)
            first = {next((each for each in columns if each not in fixed), "") for columns in known}
            assert in_order or (place in FEW and column in first), f"{place} has no index"
        assert rows.needs in (None, *rows.filters)


async def test_what_no_index_finds_is_looked_for_in_parts_that_neither_repeat_nor_skip(db: Database) -> None:
    """In Postgres as in memory, whatever the parts' size and wherever the rows looked for stand."""
    runs = [run(mode="manual" if i in (3, 4, 11) else "auto", created_at=float(i // 2 + 1)) for i in range(12)]
    await db.put(RUNS, *runs, run("t2"))
    wanted = [each.id for each in sorted(runs, key=lambda r: (r.created_at, r.id), reverse=True) if each.mode != "auto"]
    conditions: tuple[tuple[dict[str, Any], tuple[Condition, ...]], ...]
    conditions = ({"mode": "manual"}, ()), ({}, (Condition("mode = 'manual'", lambda row: row.mode == "manual"),))
    for scan, (matching, where) in product((1, 2, 3, 5, 11, 12, 13), conditions):
        found: list[str] = []
        page = Page(RUNS, ("created_at", "id"), 2, matching=matching, where=where, scan=scan)
        for _ in range(2 * len(runs)):
            part = await db.reads.page("t1", page)
            assert part == of_page(runs, page)
            found.extend(row.id for row in part.rows)
            after = page.place(part.rows[-1]) if len(part.rows) == page.limit else part.scanned_to
            if after is None:
                break
            page = replace(page, after=after)
        assert found == wanted, scan


async def test_lists_of_runs_use_their_index(db: Database) -> None:
    """The plan, not the time: newest rows of one tenant without a sort, whatever else the table holds."""
    await db.admin.execute(
        """insert into run (id, tenant_id, seq, kind, status, mode, workflow_id, workflow_version_id, inputs, state,
             allowance, active, pending, compensation_failed, compensates, compensations, correlation_id, traceparent,
             actor, created_at, children, paused, parent_paused)
           select gen_random_uuid(), 't' || i % 50, 1, 'graph', 'completed', 'auto', gen_random_uuid(),
             gen_random_uuid(), '{}', '{}', 0, 0, 0, false, false, 0, '', '', '', i, 0, false, false
           from generate_series(1, 20000) i"""
    )
    await db.admin.execute("analyze run")
    newest = Page(RUNS, ("created_at", "id"), 51)
    for page, index in (
        (newest, "run_newest"),
        (replace(newest, matching={"status": "failed"}), "run_newest"),
        (replace(newest, equal={"workflow_id": fresh()}), "run_of_workflow"),
    ):
        sql, values = page_sql("t1", page)
        async with db.admin.transaction():
            await db.admin.execute(f"set local role {role_of('gateway', database_of(db.url))}")
            await db.admin.execute("select set_config('app.tenant_id', 't1', true)")
            plan = "\n".join(record[0] for record in await db.admin.fetch("explain " + sql, *values))
        assert f"Index Scan Backward using {index}" in plan
        assert "Sort" not in plan


async def test_the_oldest_step_by_hand_is_found_by_an_index(db: Database) -> None:
    """However many steps of other runs, and of other tenants by hand, are there."""
    mine, other = run("t10"), run("t0")
    await db.put(RUNS, mine, other)
    await db.put(NODE_RUNS, node(mine))
    await db.admin.execute(
        f"""insert into node_run select r.*
           from (select n from node_run n limit 1) as s, generate_series(1, 60000) as i,
             jsonb_populate_record(s.n, jsonb_build_object('id', gen_random_uuid(), 'tenant_id', 't' || i % 20,
               'created_at', i, 'listed', case when i % 10 = 0 then 3 else 0 end,
               'run_id', case when i % 20 = 10 then '{mine.id}' else '{other.id}' end)) as r"""
    )
    await db.admin.execute("analyze node_run")
    await db.admin.execute("analyze run")
    for tenant_id, index in (("t10", "node_run_by_hand_of"), (None, "node_run_by_hand")):
        sql, values = candidates_sql(tenant_id, 20)
        part: Part = "gateway" if tenant_id else "lookup"
        async with db.admin.transaction():
            await db.admin.execute(f"set local role {role_of(part, database_of(db.url))}")
            await db.admin.execute("select set_config('app.tenant_id', $1, true)", tenant_id or "")
            explained = orjson.loads(await db.admin.fetchval(f"explain (analyze, format json) {sql}", *values))
        (scan,) = [each for each in _nodes(explained[0]["Plan"]) if each.get("Relation Name") == "node_run"]
        assert scan["Index Name"] == index
        assert scan["Actual Rows"] * scan["Actual Loops"] <= 30, explained


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


async def test_a_step_that_is_executed_at_once_changes_no_index(db: Database) -> None:
    """Postgres writes a row beside itself, and no index, as long as no column that any index names has changed."""
    names = await db.admin.fetchval(
        """select array_agg(distinct a.attname::text) from pg_index i join pg_attribute a on a.attrelid = i.indrelid
           where i.indrelid = 'node_run'::regclass and (a.attnum = any(i.indkey)
             or pg_get_expr(i.indpred, i.indrelid) ~ ('\\m' || a.attname || '\\M'))"""
    )
    mutable = {column.name for column in NODE_RUNS.mutable}
    assert set(names) & mutable == {"kind", "listed"}
