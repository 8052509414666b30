"""Workloads that ask what grows: cost of a step with a run's length and with what is stored, memory, workers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import asyncpg
import psutil

from infra.bench.bench import Bench
from infra.bench.load import Load
from infra.bench.measure import throughput
from infra.bench.platform import Chain, Platform
from infra.bench.role import NOOP
from infra.bench.workloads import NODES
from infra.schema import metadata

SAMPLE_SECONDS = 0.05
COPIED_RUNS_MAX = 500


async def length(bench: Bench) -> None:
    """The same number of steps in flight, in runs of 10 nodes and in runs of very many."""
    options = bench.options
    in_flight = options.long_in_flight
    for _ in range(options.repeats):
        await bench.settle()
        async with bench.platform.running():
            for nodes in (NODES, options.long_nodes):
                version = await bench.platform.create_workflow(nodes, NOOP)
                system = Chain(bench.platform, version, nodes)
                runs = in_flight if nodes > NODES else options.runs
                if nodes == NODES:
                    await system.load(Load(in_flight, runs, bench.warm_up_seconds()))
                name = f"{nodes} nodes a run"
                measured, spent = await bench.measure(f"length, {name}", system, Load(in_flight, runs, options.seconds))
                bench.note("length", name, throughput(measured, spent, nodes))


async def stored(bench: Bench) -> None:
    """chain-10 on an empty database, and with very many finished runs in it.

    No checkpoint right before a measurement: each page that is then touched for the first time goes to the log
    whole, which would charge the first seconds after a checkpoint to every step.
    """
    options = bench.options
    in_flight = max(options.in_flight)
    async with bench.fresh("stored") as platform:
        for rows in (0, options.stored_node_runs):
            name = f"{rows:,} node runs stored".replace(",", " ")
            if rows:
                await _store(platform, rows)
            await bench.settle()
            for _ in range(options.repeats):
                async with platform.running():
                    version = await platform.create_workflow(NODES, NOOP)
                    system = Chain(platform, version, NODES)
                    await system.load(Load(in_flight, options.runs, max(options.seconds, bench.warm_up_seconds())))
                    load = Load(in_flight, options.runs, options.seconds)
                    measured, spent = await bench.measure(f"stored, {name}", system, load, platform)
                bench.note("stored", name, throughput(measured, spent, NODES))


async def memory(bench: Bench) -> None:
    """A worker's resident memory: idle, and the most it had with very many runs in flight."""
    options = bench.options
    for _ in range(options.repeats):
        async with bench.platform.running():
            version = await bench.platform.create_workflow(NODES, NOOP)
            worker = bench.platform.workers[0].pid
            system = Chain(bench.platform, version, NODES)
            await system.load(Load(1, 1, options.seconds))
            idle = _resident_mebibytes(worker)
            async with _peak(worker) as peak:
                measured = await system.load(Load(options.memory_runs, 2 * options.memory_runs, options.seconds))
            values = {
                "idle MiB": idle[0],
                "most MiB": max(own for own, _ in peak),
                "most with children MiB": max(own + children for own, children in peak),
                "runs": measured.runs,
            }
            bench.note("memory", f"{options.memory_runs} in flight", values)


async def workers(bench: Bench) -> None:
    """The same load on one worker process and on two."""
    options = bench.options
    in_flight = 2 * max(options.in_flight)
    for _ in range(options.repeats):
        for count in (1, 2):
            await bench.settle()
            async with bench.platform.running(count):
                version = await bench.platform.create_workflow(NODES, NOOP)
                await bench.platform.until_shared()
                system = Chain(bench.platform, version, NODES)
                await system.load(Load(in_flight, options.runs, bench.warm_up_seconds()))
                name = f"{'1 worker' if count == 1 else f'{count} workers'}, {in_flight} in flight"
                load = Load(in_flight, options.runs, options.seconds)
                measured, spent = await bench.measure(f"workers, {name}", system, load)
            bench.note("workers", name, throughput(measured, spent, NODES))


def _resident_mebibytes(pid: int) -> tuple[float, float]:
    """Of the process, and of all its descendants together."""
    process = psutil.Process(pid)
    children = 0
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            children += child.memory_info().rss
    return process.memory_info().rss / 2**20, children / 2**20


@contextlib.asynccontextmanager
async def _peak(pid: int) -> AsyncIterator[list[tuple[float, float]]]:
    """Samples of a process's memory, taken for as long as the block lasts."""
    samples = [_resident_mebibytes(pid)]

    async def sample() -> None:
        while True:
            samples.append(_resident_mebibytes(pid))
            await asyncio.sleep(SAMPLE_SECONDS)

    sampling = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)


async def _store(platform: Platform, node_runs: int) -> None:
    """Multiply what real runs left behind until so many more node runs are stored, under ids of their own.

    No worker runs meanwhile. Event rows keep their lane and position, so all of them count as sent.
    """
    connection = await asyncpg.connect(platform.settings.required_database_url, command_timeout=3_600)
    try:
        await connection.execute("SET synchronous_commit = off")
        runs = min(COPIED_RUNS_MAX, await connection.fetchval("SELECT count(*) FROM run"))
        copies = -(-node_runs // (runs * NODES))
        await connection.execute(
            "CREATE TEMP TABLE copy AS SELECT old.id AS old, gen_random_uuid() AS new"
            f" FROM (SELECT id FROM run LIMIT {runs}) AS old, generate_series(1, {copies})"
        )
        await connection.execute("CREATE INDEX ON copy (old); ANALYZE copy")
        for table, column, fresh in (
            ("run", "id", ()),
            ("node_run", "run_id", ("id",)),
            ("run_mark", "run_id", ("id",)),
            ("event", "aggregate_id", ()),
            ("command_outcome", "command_id", ()),
        ):
            await connection.execute(_copying(table, column, fresh))
        await connection.execute("INSERT INTO inbox SELECT new, 0, extract(epoch FROM now()) FROM copy")
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()


def _copying(table: str, of_run: str, fresh: Sequence[str]) -> str:
    """Copy a table's rows of the copied runs; `of_run` names the run, `fresh` are ids drawn anew."""
    names = [column.name for column in metadata.tables[table].columns]
    values = {name: f't."{name}"' for name in names}
    values |= {of_run: "copy.new"} | dict.fromkeys(fresh, "gen_random_uuid()")
    columns = ", ".join(f'"{name}"' for name in names)
    return (
        f'INSERT INTO "{table}" ({columns}) SELECT {", ".join(values[name] for name in names)}'
        f' FROM "{table}" AS t JOIN copy ON copy.old = t."{of_run}"'
    )
