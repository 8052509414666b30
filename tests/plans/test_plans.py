"""The hot statements read by index, and plan the same on an empty database and on a filled one."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import orjson
import pytest

from bus import postgres
from bus.postgres import SESSION
from bus.statements import Statements
from bus.store import Advance, Logged, Writes
from handlers.steps import leases
from infra.db import changed, role_of, session
from infra.domains import PROJECTIONS
from infra.local.embedded import EmbeddedStack
from infra.roles import retention
from infra.roles.prepare import migrate
from infra.settings import load_settings
from outbox.ended import _bury
from outbox.tombstones import TOMBSTONES
from projections.fold import FoldRows
from projections.runtime import NODE_RUNS, RUNS, Run
from projections.runtime_fold import _BLANK, evolve
from schemas.decider import Recorded
from schemas.runtime import RunCreated
from tests.live import settings_for
from tests.patience import patient

pytestmark = pytest.mark.services

FILL = """
INSERT INTO run SELECT r.* FROM (SELECT t FROM run t LIMIT 1) AS s, generate_series(1, {runs}) AS n,
  jsonb_populate_record(s.t, jsonb_build_object('id', gen_random_uuid(), 'tenant_id', 't' || n % 50,
    'ended_at', CASE WHEN n % 10 > 0 THEN n END)) AS r;
INSERT INTO node_run SELECT r.* FROM (SELECT t FROM node_run t LIMIT 1) AS s, generate_series(1, {nodes}) AS n,
  jsonb_populate_record(s.t, jsonb_build_object('id', gen_random_uuid(), 'run_id', gen_random_uuid(),
    'status', 'completed', 'ready', false, 'attempt', n % 3)) AS r;
INSERT INTO event SELECT r.* FROM (SELECT t FROM event t LIMIT 1) AS s, generate_series(1, {nodes}) AS n,
  jsonb_populate_record(s.t, jsonb_build_object('aggregate_id', gen_random_uuid(), 'position', 1000 + n)) AS r;
ANALYZE
"""


def one_run() -> tuple[Run, Any, Logged]:
    run_id = str(uuid.uuid4())
    event = RunCreated(workflow_id=run_id, workflow_version_id=run_id)
    recorded = Recorded(event, run_id, 1, 1_000.0, "t1", 0)
    (run,) = evolve(FoldRows(), recorded)
    assert isinstance(run, Run)
    names = {"id": str(uuid.uuid4()), "run_id": run_id, "tenant_id": "t1", "node_id": "a", "path": "a"}
    node = changed(_BLANK, **names, iteration="1", node_type="code", kind="code")
    return run, node, Logged(1, recorded, event.encode())


@pytest.fixture
async def worker_session(services: EmbeddedStack) -> AsyncIterator[asyncpg.Connection]:
    name = f"plans_{uuid.uuid4().hex[:8]}"
    url = await services.new_database(name)
    await migrate(settings_for(services, name))
    run, node, logged = one_run()
    statements = Statements({spec.name: spec for spec in PROJECTIONS})
    connection = await asyncpg.connect(url, server_settings=session(url, settings=SESSION))
    first = Writes(advances=[Advance(0, 0, 0, 0, 1, 0, 0)], inserts={"run": [run], "node_run": [node]}, events=[logged])
    sql, arguments = statements.of(first)
    await connection.execute(sql, *arguments)
    yield connection
    await connection.close()


async def plan_of(connection: asyncpg.Connection, sql: str) -> str:
    """The plan's shape: node types with the relation and index they use, in order."""
    name = f"p{uuid.uuid4().hex[:8]}"
    await connection.execute(f"PREPARE {name} AS {sql}")
    count = await connection.fetchval(
        "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = $1", name
    )
    values = f"({', '.join(['NULL'] * count)})" if count else ""
    explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE {name} {values}")
    await connection.execute(f"DEALLOCATE {name}")
    return "\n".join(shape(orjson.loads(explained)[0]["Plan"]))


def shape(plan: dict[str, Any], depth: int = 0) -> list[str]:
    words = [plan["Node Type"], plan.get("Relation Name", ""), plan.get("Index Name", "")]
    if "Index Name" in plan and "Index Cond" not in plan:
        words.append("WHOLE INDEX")
    lines = ["  " * depth + " ".join(word for word in words if word)]
    for child in plan.get("Plans", ()):
        lines += shape(child, depth + 1)
    return lines


def hot_statements() -> dict[str, str]:
    run, node, logged = one_run()
    statements = Statements({spec.name: spec for spec in PROJECTIONS})
    advance = Advance(0, 0, 0, 0, 1, 0, 0)
    step = Writes(advances=[advance], inserts={"node_run": [node]}, updates={"run": [run], "node_run": [node]})
    step.events.append(logged)
    step.trim = True
    names, tombstone = (", ".join(f'"{column.name}"' for column in spec.columns) for spec in (NODE_RUNS, TOMBSTONES))
    return {
        "save a step": statements.of(step)[0],
        "lock": postgres._LOCK,
        "load node runs": f"SELECT {names} FROM node_run WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE",
        "load live": f"SELECT {names} FROM node_run WHERE run_id = ANY($1::uuid[]) AND ({NODE_RUNS.live_sql})",
        "load runs": f"SELECT id FROM {RUNS.name} WHERE id = ANY($1::uuid[])",
        "admit inbox": postgres._ADMIT_INBOX,
        "admit outcomes": postgres._ADMIT_OUTCOMES,
        "unsent events": postgres._UNSENT_EVENTS,
        "unsent outbox": postgres._UNSENT_OUTBOX,
        "due lanes": postgres._DUE_LANES,
        "due timers": postgres._DUE_TIMERS,
        "claim steps": leases._CLAIM,
        "give steps back": leases._GIVE_BACK,
        "abandon steps": leases._ABANDON,
        "offer steps again": leases._OFFER_AGAIN,
        "renew leases": leases._RENEW,
        "expired leases": leases._EXPIRED,
        "steps made since": leases._MADE_SINCE,
        "unacknowledged results": leases._UNACKNOWLEDGED,
        "load tombstones": f"SELECT {tombstone} FROM tombstone WHERE id = ANY($1::uuid[])",
    }


def retention_statements() -> dict[str, str]:
    settings = load_settings()
    found = {f"forget {rule.what}": rule.delete for rule in retention.aged(settings)}
    for rule in retention.ended(settings):
        found |= {f"find ended {rule.kind}": rule.find, f"oldest ended {rule.kind}": rule.oldest}
        for part in rule.parts:
            found[f"remove {part.name}"] = f"DELETE FROM {part.name} WHERE {part.parent} = ANY($1::uuid[])"
        found[f"remove {rule.kind}"] = _bury(rule.kind)
    return found


async def test_hot_statements_never_scan_a_table(worker_session: asyncpg.Connection) -> None:
    for name, sql in hot_statements().items():
        plan = await plan_of(worker_session, sql)
        assert "Seq Scan" not in plan, f"{name}:\n{plan}"
        assert "WHOLE INDEX" not in plan, f"{name}:\n{plan}"


async def test_retention_finds_what_is_old_by_its_age(worker_session: asyncpg.Connection) -> None:
    for name, sql in retention_statements().items():
        plan = await plan_of(worker_session, sql)
        assert "Seq Scan" not in plan, f"{name}:\n{plan}"
        if name.startswith("oldest"):
            assert f"{name.split()[-1]}_ended" in plan, plan
        else:
            assert "WHOLE INDEX" not in plan, f"{name}:\n{plan}"
            assert "Sort" not in plan, f"{name}:\n{plan}"


@pytest.mark.slow
async def test_plans_do_not_change_as_tables_grow(worker_session: asyncpg.Connection) -> None:
    statements = hot_statements() | retention_statements()
    before = {name: await plan_of(worker_session, sql) for name, sql in statements.items()}
    await worker_session.execute("SET transaction_timeout = 0")
    await worker_session.execute("SET enable_seqscan = on")
    await worker_session.execute("RESET role")
    for statement in FILL.format(runs=20_000, nodes=60_000).split(";"):
        await worker_session.execute(statement, timeout=patient(150))
    database = await worker_session.fetchval("SELECT current_database()")
    await worker_session.execute(f"SET role {role_of('worker', database)}")
    await worker_session.execute("SET enable_seqscan = off")
    after = {name: await plan_of(worker_session, sql) for name, sql in statements.items()}
    for name, plan in before.items():
        assert after[name] == plan, name
