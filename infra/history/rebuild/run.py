"""The whole of a rebuild: read and fold the log beside live work, compare, then repair what differs lane by lane."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import asyncpg

from infra.db import TableSpec, session
from infra.domains import DOMAINS
from infra.history.rebuild.comparison import Comparer, compare, missing
from infra.history.rebuild.folding import Folder
from infra.history.rebuild.log import EVENTS_PER_CHUNK, SESSION, Chunk, LogReader
from infra.history.rebuild.repair import repair
from infra.history.rebuild.report import Difference, Progress, RebuildReport
from infra.history.rebuild.target import Target

EVENTS_PER_TURN = 250
"""Folded without a break: then the reader gets its turn, so that Postgres works while we fold."""

OnProgress = Callable[[Progress], None]


async def rebuild(
    database_url: str,
    *,
    only: str | None = None,
    check: bool = False,
    target: str = "",
    lease_seconds: float = 8.0,
    events_per_chunk: int = EVENTS_PER_CHUNK,
    on_progress: OnProgress = lambda progress: None,
) -> RebuildReport:
    """Fold the event log and make the projection tables agree with it. `database_url`: postgresql://…

    Work may go on meanwhile. `only`: the name of a domain. `check`: change nothing. `target`: leave the tables alone
    and fill those of this new schema instead (raises TargetRefused). Needs one chunk of the log and the rows of the
    largest aggregate in memory, and about 200 bytes for each aggregate that differs. Executes and publishes nothing.
    """
    specs = [spec for domain in DOMAINS if only in (None, domain.name) for spec in domain.tables]
    types = "%" if only is None else f"{only}.%"
    report = RebuildReport()
    settings = session(database_url, settings=SESSION)
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=3, server_settings=settings)
    try:
        if target:
            async with Target(database_url, target, specs) as filled:
                await _fill(LogReader(pool, [], types, events_per_chunk), filled, report, on_progress)
            return report
        comparers = [Comparer(spec) for spec in specs]
        differing = await _compare(LogReader(pool, comparers, types, events_per_chunk), specs, report, on_progress)
        if differing and not check:
            await repair(pool, comparers, differing, report, lease_seconds)
        return report
    finally:
        await pool.close()


async def _compare(
    reader: LogReader, specs: Sequence[TableSpec], report: RebuildReport, on_progress: OnProgress
) -> set[str]:
    """Compare every row with the log. Returns the aggregates that differ."""
    tables = {spec.row: str(spec.name) for spec in specs}
    folder = Folder()
    differing: set[str] = set()
    started = time.perf_counter()

    def note(difference: Difference) -> None:
        report.add(difference)
        differing.add(difference.aggregate_id)

    async for chunk in reader.chunks():
        await _fold(folder, chunk)
        if chunk.until:
            folded = folder.take_whole(chunk.until)
            for comparer, stored in chunk.stored:
                report.rows[comparer.table] += len(stored)
                for difference in compare(comparer, stored, folded):
                    note(difference)
                await asyncio.sleep(0)
            for difference in missing(folded, tables):
                note(difference)
        _account(report, folder, chunk, started, on_progress)
    return differing


async def _fill(reader: LogReader, target: Target, report: RebuildReport, on_progress: OnProgress) -> None:
    folder = Folder()
    started = time.perf_counter()
    async for chunk in reader.chunks():
        await _fold(folder, chunk)
        if chunk.until:
            report.rows.update(await target.write(folder.take_whole(chunk.until)))
        _account(report, folder, chunk, started, on_progress)


async def _fold(folder: Folder, chunk: Chunk) -> None:
    if chunk.removed:
        folder.forget(chunk.removed)
    for start in range(0, len(chunk.events), EVENTS_PER_TURN):
        folder.take(chunk.events[start : start + EVENTS_PER_TURN])
        await asyncio.sleep(0)


def _account(report: RebuildReport, folder: Folder, chunk: Chunk, started: float, on_progress: OnProgress) -> None:
    report.events += len(chunk.events)
    report.aggregates = folder.aggregates
    report.unfoldable = {each.aggregate_id: each.reason for each in folder.unfoldable}
    report.seconds = time.perf_counter() - started
    at = int(chunk.events[-1][0][:8], 16) / 0x1_0000_0000 if chunk.events and not chunk.last else 1.0
    on_progress(Progress(report.events, at, report.seconds))
