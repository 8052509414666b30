"""Where the time of a load goes: the workers' stacks sampled by py-spy, and what Postgres spent on each statement."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from asyncio.subprocess import DEVNULL, Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from infra.bench.peers import find_program
from infra.local.embedded import EmbeddedStack

SAMPLES_PER_SECOND = 250
FUNCTIONS_SHOWN = 30
LINES_SHOWN = 15
STATEMENTS_KEPT = 100
STATEMENTS_SHOWN = 10
STATEMENT_CHARS_SHOWN = 70
WRITTEN = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM) \"?([a-z]\w+)")
STOP_SECONDS_MAX = 20.0
IDLE = "_worker (concurrent/futures/thread.py"
"""Where a thread of a pool waits for work: py-spy takes it for busy."""

_STATEMENTS = """SELECT query, calls, total_exec_time + total_plan_time AS ms, rows,
  shared_blks_hit + shared_blks_read AS blocks, wal_bytes::float8 AS wal_bytes
FROM pg_stat_statements JOIN pg_database d ON d.oid = dbid
WHERE d.datname = current_database() AND calls > 0 ORDER BY 3 DESC LIMIT $1"""


@dataclass(frozen=True, slots=True)
class Statement:
    """What one statement cost while a load lasted. `ms`: planned and executed, all calls together."""

    query: str
    calls: int
    ms: float
    rows: int
    blocks: int
    wal_bytes: float


class Statements:
    """The statistics of Postgres about its statements. `switch_on` first: it needs a restart of the server."""

    def __init__(self, stack: EmbeddedStack) -> None:
        self._stack = stack

    async def switch_on(self) -> None:
        connection = await asyncpg.connect(self._stack.database_url)
        try:
            await connection.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
            await connection.execute("ALTER SYSTEM SET track_io_timing = on")
        finally:
            await connection.close()
        await self._stack.postgres.stop()
        await self._stack.postgres.start()
        connection = await asyncpg.connect(self._stack.database_url)
        try:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            await connection.execute("ALTER SYSTEM SET pg_stat_statements.track_planning = on")
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def during(self, database_url: str) -> AsyncIterator[list[Statement]]:
        """What the statements of this database cost while the block lasts; filled at its end, dearest first."""
        found: list[Statement] = []
        connection = await asyncpg.connect(database_url)
        try:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            await connection.execute("SELECT pg_stat_statements_reset()")
            yield found
            rows = await connection.fetch(_STATEMENTS, STATEMENTS_KEPT)
            found += [Statement(*row) for row in rows]
        finally:
            await connection.close()


@dataclass(slots=True)
class Profiler:
    """Profiles loads one after the other. `folder`: takes the stacks, as flamegraph tools read them."""

    statements: Statements
    folder: Path
    seen: dict[str, list[Sequence[Statement]]] = field(default_factory=dict)
    """Of each load by its title, repeat by repeat."""

    @contextlib.asynccontextmanager
    async def during(self, title: str, pids: Sequence[int], database_url: str) -> AsyncIterator[list[str]]:
        """Profile these processes and this database while the block lasts; what to show is there at its end."""
        self.folder.mkdir(exist_ok=True)
        shown: list[str] = []
        names = [f"{re.sub(r'[^a-z0-9]+', '-', title.lower())}-{pid}.folded" for pid in pids]
        files = [self.folder / name for name in names]
        async with self.statements.during(database_url) as statements:
            program = find_program("py-spy")
            spies = [await _spy(program, pid, file) for pid, file in zip(pids, files, strict=True) if program]
            try:
                yield shown
            finally:
                await asyncio.gather(*(_end(spy) for spy in spies))
        for file in files:
            if file.exists():
                shown.append(f"{title}: where the worker was ({file})")
                shown += hot_functions(file.read_text(encoding="utf-8"))
            else:
                why = "py-spy is not installed" if program is None else "py-spy may not look into processes here"
                shown.append(f"{title}: where the worker was is not known: {why}")
        shown.append(f"{title}: dearest statements")
        shown += dearest(statements[:STATEMENTS_SHOWN])
        self.seen.setdefault(title, []).append(statements)

    def growth(self, small: str, large: str) -> Iterator[str]:
        """Which statements cost more a call under the load `large` than under `small`, the greatest change first."""
        before, after = _a_call(self.seen[small]), _a_call(self.seen[large])
        both = sorted(before.keys() & after.keys(), key=lambda query: before[query][1] - after[query][1])
        yield f"{large} against {small}, a call:"
        yield f"  {'ms':>17} {'blocks':>19} {'wal kB':>15} {'calls':>6}  statement"
        for query in both[:STATEMENTS_SHOWN]:
            old, new = before[query], after[query]
            pairs = [
                f"{was:.{digits}f} -> {now:.{digits}f}" for was, now, digits in zip(old, new, (0, 3, 0, 1), strict=True)
            ]
            yield f"  {pairs[1]:>17} {pairs[2]:>19} {pairs[3]:>15} {new[0]:6.0f}  {_shown(query)}"


def _a_call(repeats: Sequence[Sequence[Statement]]) -> dict[str, tuple[float, float, float, float]]:
    """Of each statement: calls of all repeats together; milliseconds, blocks and kilobytes of log a call."""
    sums: dict[str, list[float]] = {}
    for one in (statement for repeat in repeats for statement in repeat):
        total = sums.setdefault(one.query, [0.0, 0.0, 0.0, 0.0])
        for index, value in enumerate((one.calls, one.ms, one.blocks, one.wal_bytes / 1_024)):
            total[index] += value
    return {query: (calls, ms / calls, blocks / calls, wal / calls) for query, (calls, ms, blocks, wal) in sums.items()}


async def _spy(program: str, pid: int, file: Path) -> Process:
    return await asyncio.create_subprocess_exec(
        program, "record", "--pid", str(pid), "--rate", str(SAMPLES_PER_SECOND), "--format", "raw",
        "--duration", "unlimited", "--output", str(file), stdout=DEVNULL, stderr=DEVNULL,
    )  # fmt: skip


async def _end(spy: Process) -> None:
    """py-spy writes what it saw when it is interrupted."""
    if spy.returncode is None:
        spy.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await spy.wait()
    except TimeoutError:
        spy.kill()
        await spy.wait()


def hot_functions(folded: str) -> Iterator[str]:
    """What to show of samples: the functions by their own code and with what they called, and the lines."""
    own: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        if IDLE in stack.rpartition(";")[2]:
            continue
        lines[stack.rpartition(";")[2]] += int(count)
        frames = [_function(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(count)
        for frame in dict.fromkeys(frames):
            within[frame] += int(count)
    total = sum(own.values())
    if not total:
        yield "  no samples"
        return
    for heading, counted, shown in (
        (f"{total} samples; own code", own, FUNCTIONS_SHOWN),
        ("own code, by line", lines, LINES_SHOWN),
        ("with what it called", within, FUNCTIONS_SHOWN),
    ):
        yield f"  {heading}:"
        yield from (f"  {count / total:6.1%}  {name}" for name, count in counted.most_common(shown))


def _function(frame: str) -> str:
    """`name (path/file.py:12)` without its line, so that the lines of a function count together."""
    name, _, place = frame.partition(" (")
    return f"{name} ({place.rpartition(':')[0]})" if ":" in place else frame


def dearest(statements: Sequence[Statement]) -> Iterator[str]:
    """A line for each statement, under a heading."""
    yield f"  {'ms':>9} {'calls':>8} {'mean ms':>8} {'rows/call':>9} {'blocks/call':>11} {'wal B/call':>10}  statement"
    for one in statements:
        yield (
            f"  {one.ms:9.1f} {one.calls:8} {one.ms / one.calls:8.3f} {one.rows / one.calls:9.1f}"
            f" {one.blocks / one.calls:11.1f} {one.wal_bytes / one.calls:10.0f}  {_shown(one.query)}"
        )


def _shown(query: str) -> str:
    """The start of a statement, and which tables it writes: the long ones all start alike."""
    query = " ".join(query.split())
    written = ", ".join(dict.fromkeys(WRITTEN.findall(query)))
    return query[:STATEMENT_CHARS_SHOWN] + (f" ... writes {written}" if written else "")
