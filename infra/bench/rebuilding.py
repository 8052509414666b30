"""Rebuilding: how fast one process folds the event log anew, comparing the tables with it or filling others."""

from __future__ import annotations

import os

import asyncpg

from infra.bench.bench import Bench
from infra.bench.load import Load, Measured
from infra.bench.measure import accounted, cpu
from infra.bench.platform import BenchFailed, Chain, Platform
from infra.bench.role import NOOP
from infra.bench.workloads import NODES
from infra.history.rebuild import RebuildReport
from infra.history.rebuild import rebuild as rebuilt

EVENTS_A_RUN_MIN = 12
LOADS = (("compared with the tables", ""), ("into other tables", "bench_rebuilt"))


async def rebuild(bench: Bench) -> None:
    """The log of real runs. What is found different fails the measurement.

    Of runs only: the version that they run was not made by a command, see `create_workflow`.
    """
    async with bench.fresh("rebuild") as platform:
        await _recorded(bench, platform)
        await bench.quiesce()
        for _ in bench.repeats():
            for name, target in LOADS:
                await _forgotten(platform, target)
                kinds = {"rebuild": [os.getpid()], "postgres": platform.kinds()["postgres"]}
                reports: list[RebuildReport] = []
                _, spent = await accounted(kinds, _once(platform, target, reports))
                report = reports[0]
                values = {"events/s": report.events_per_second, **cpu(spent, report.events, "event")}
                bench.note("rebuild", name, {**values, "events": report.events})


async def _once(platform: Platform, target: str, reports: list[RebuildReport]) -> Measured:
    report = await rebuilt(platform.settings.required_database_url, only="runtime", check=not target, target=target)
    if not report.equal:
        raise BenchFailed(f"the log and the tables differ: {[str(each) for each in report.differences[:3]]}")
    reports.append(report)
    return Measured(report.seconds, [report.seconds])


async def _recorded(bench: Bench, platform: Platform) -> None:
    """Runs until there are as many events as are wanted."""
    wanted = bench.options.rebuild_events
    connection = await asyncpg.connect(platform.settings.required_database_url)
    try:
        async with platform.running():
            system = Chain(platform, await platform.create_workflow(NODES, NOOP), NODES)
            while (there := await connection.fetchval("SELECT count(*) FROM event")) < wanted:
                runs = -(-(wanted - there) // EVENTS_A_RUN_MIN)
                await system.load(Load(max(bench.options.in_flight), runs, bench.options.seconds))
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()


async def _forgotten(platform: Platform, schema: str) -> None:
    """Remove what an earlier repeat has filled."""
    if schema:
        connection = await asyncpg.connect(platform.settings.required_database_url)
        try:
            await connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        finally:
            await connection.close()
