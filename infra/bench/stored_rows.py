"""Filling a database with finished runs: copies of real ones, older than these and under ids of their own."""

from __future__ import annotations

import asyncpg

from infra.bench.platform import BenchFailed, Platform
from infra.bench.workloads import NODES
from infra.database.tables import metadata
from infra.db import Instant
from projections.runtime import TABLES

COPIED_RUNS_MAX = 500
AGE_SECONDS_MAX = 86_400
OF_RUN = {
    **{spec.name: spec.parent for spec in TABLES},
    "event": "aggregate_id",
    "command_outcome": "command_id",
    "inbox": "message_id",
}
"""The tables that finished runs leave rows in, and the column that names the run. A run's id is its command's."""
DRAWN = {spec.name: ("id",) for spec in TABLES if spec.parent != "id"}
ROWS_ANALYSED_MIN = 0.9


async def store(platform: Platform, node_runs: int) -> None:
    """Multiply what real runs left behind until so many more node runs are stored. No worker runs meanwhile.

    The copies are spread over a day before the originals, in time and in their lanes' positions, so that indexes
    have the size and the order that real rows would give them. Raises BenchFailed if a table did not grow alike.
    """
    connection = await asyncpg.connect(platform.settings.required_database_url, command_timeout=3_600)
    try:
        await connection.execute("SET synchronous_commit = off")
        runs = min(
            COPIED_RUNS_MAX,
            await connection.fetchval("SELECT count(*) FROM run WHERE status = 'completed' AND kind = 'graph'"),
        )
        copies = -(-node_runs // (runs * NODES))
        await connection.execute(
            "CREATE TEMP TABLE copy AS SELECT old.id AS old, gen_random_uuid() AS new, number,"
            f" (number * {AGE_SECONDS_MAX / copies})::float8 AS age"
            f" FROM (SELECT id FROM run WHERE status = 'completed' AND kind = 'graph' ORDER BY id LIMIT {runs}) AS old,"
            f" generate_series(1, {copies}) AS number ORDER BY number DESC"
        )
        await connection.execute("CREATE INDEX ON copy (old); ANALYZE copy")
        span = 1 + await connection.fetchval("SELECT coalesce(max(position), 0) FROM event")
        for table in OF_RUN:
            await connection.execute(_copying(table, span))
        await connection.execute("VACUUM (ANALYZE)")
        await _check(connection, copies)
    finally:
        await connection.close()


def _copying(table: str, span: int) -> str:
    """Copy the rows of the copied runs, oldest first as they would have come."""
    of_run, drawn = OF_RUN[table], DRAWN.get(table, ())
    known = metadata.tables[table].columns
    names = [column.name for column in known]
    values = {
        each.name: f't."{each.name}" - copy.age' if isinstance(each.type, Instant) else f't."{each.name}"'
        for each in known
    }
    values |= {of_run: "copy.new"} | dict.fromkeys(drawn, "gen_random_uuid()")
    if table == "event":
        values["position"] = f"t.position - copy.number * {span}"
    columns = ", ".join(f'"{name}"' for name in names)
    return (
        f'INSERT INTO "{table}" ({columns}) SELECT {", ".join(values[name] for name in names)}'
        f' FROM copy JOIN "{table}" AS t ON copy.old = t."{of_run}" ORDER BY copy.number DESC, copy.new'
    )


async def _check(connection: asyncpg.Connection, copies: int) -> None:
    """Every table has its share of the copies, all of them finished, and the planner knows."""
    for table, of_run in OF_RUN.items():
        count = f'SELECT count(*) FROM "{table}" WHERE "{of_run}" IN (SELECT {{}} FROM copy)'
        real, copied = [await connection.fetchval(count.format(which)) for which in ("old", "new")]
        known = await connection.fetchval("SELECT reltuples FROM pg_class WHERE oid = $1::regclass", table)
        if copied != real * copies or known < copied * ROWS_ANALYSED_MIN:
            raise BenchFailed(f"{table}: {copied} copies of {real} rows, {copies} of each; the planner knows {known:g}")
    left = await connection.fetchval("SELECT count(*) FROM node_run WHERE ready OR status <> 'completed'")
    if left:
        raise BenchFailed(f"{left} of the node runs stored are not finished")
