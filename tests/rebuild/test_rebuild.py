"""A rebuild says what differs from the log and mends it, at rest and under load, and causes nothing else."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from bus.replay import TopicReader
from handlers.steps.port import StepCall, StepResult
from infra.domains import PROJECTIONS
from infra.history.rebuild import RebuildReport, TargetRefused, rebuild
from infra.history.rebuild.comparison import Comparer
from infra.history.rebuild.log import END, LogReader
from infra.local.embedded import EmbeddedStack
from infra.roles.extras import Extras
from infra.settings import Settings
from projections.runtime import RUNS
from schemas.runtime import CreateRun, ExecuteRun, node_run_id
from schemas.topics import COMMANDS, DEAD_LETTERS, EVENTS
from tests.command_line import ap
from tests.copies import database_copy
from tests.live import Live, lasting, prepared, running, until
from tests.patience import patient
from tests.schemas.workflows import node
from tests.test_verify import Worked, chain, examine, work

NOBODY = "00000000-0000-4000-8000-00000000000a"
DAMAGES = {
    "a changed column": ("UPDATE run SET output_text = 'x' WHERE id = '{done}'", "run {done}: differs in output_text"),
    "changed JSON": (
        "UPDATE node_run SET output = '{{\"result_json\":2}}' WHERE run_id = '{done}' AND node_id = 'code'",
        "node_run {step}: differs in output",
    ),
    "JSON that is none": ("UPDATE run SET state = '{{' WHERE id = '{done}'", "run {done}: differs in state"),
    "a value where there is none": (
        "UPDATE run SET error = '{{}}' WHERE id = '{done}'", "run {done}: differs in error"
    ),
    "a deleted row": ("DELETE FROM node_run WHERE id = '{step}'", "node_run {step}: the events give it"),
    "a whole run deleted": (
        "WITH a AS (DELETE FROM run WHERE id = '{done}') DELETE FROM node_run WHERE run_id = '{done}'",
        "run {done}: the events give it",
    ),
    "an extra row of a run": (
        "INSERT INTO run_mark VALUES ('{nobody}', '{done}', 't1', 1, 1, '')", "run_mark {nobody}: in the table"
    ),
    "an extra row of nobody": (
        "INSERT INTO run_mark VALUES ('{nobody}', '{nobody}', 't1', 1, 1, '')", "run_mark {nobody}: in the table"
    ),
    "a row moved to another run": (
        "UPDATE node_run SET run_id = '{long}' WHERE id = '{step}'", "node_run {step}: in the table"
    ),
    "a row under another id": (
        "UPDATE node_run SET id = '{nobody}' WHERE id = '{step}'", "node_run {nobody}: in the table"
    ),
    "a row of another tenant": (
        "UPDATE run SET tenant_id = 't9' WHERE id = '{done}'", "run {done}: differs in tenant_id"
    ),
    "a definition's name": (
        "UPDATE definition SET name = 'x', updated_at = 1 WHERE tenant_id = 't2'", "differs in name, updated_at"
    ),
    "a version that is gone": ("DELETE FROM definition_version", "definition_version"),
    "everything gone": ("TRUNCATE run, node_run, run_mark, definition, definition_version", "run {done}: the events"),
}  # fmt: skip


@pytest.fixture(scope="module")
def worked(services: EmbeddedStack) -> Iterator[Worked]:
    """A platform that has worked and rests: runs that ended, failed, wait; definitions of two tenants."""

    async def start(settings: Settings) -> Worked:
        async with running(settings) as live:
            ids = await work(live)
            await live.rest()
            return Worked(settings, **ids)

    yield from lasting(services, f"rebuild_{os.getpid()}", start)


@pytest.fixture
async def copy(services: EmbeddedStack, worked: Worked) -> AsyncIterator[tuple[Settings, asyncpg.Connection]]:
    """A copy of its database to damage, and a connection to do it."""
    async with database_copy(services, worked.settings, f"damaged_{uuid.uuid4().hex[:12]}") as settings:
        connection = await asyncpg.connect(settings.required_database_url)
        try:
            yield settings, connection
        finally:
            await connection.close()


async def rebuilt(settings: Settings, **options: Any) -> RebuildReport:
    return await rebuild(settings.required_database_url, **options)


def found(report: RebuildReport) -> list[str]:
    return [str(difference) for difference in report.differences]


async def contents(connection: asyncpg.Connection) -> dict[str, list[Any]]:
    """Every row of every projection table with every column."""
    return {spec.name: await connection.fetch(f"SELECT * FROM {spec.name} ORDER BY id") for spec in PROJECTIONS}


async def test_tables_at_rest_are_equal(worked: Worked) -> None:
    report = await rebuilt(worked.settings)
    assert report.equal, found(report)
    assert report.events > 300
    assert report.aggregates >= 12
    assert {"run", "node_run", "definition", "definition_version"} <= {t for t, n in report.rows.items() if n}
    assert report.held_seconds == []


@pytest.mark.parametrize("events_per_chunk", [1, 2, 3, 50])
async def test_the_size_of_a_chunk_changes_nothing(worked: Worked, events_per_chunk: int) -> None:
    whole = await rebuilt(worked.settings, check=True)
    report = await rebuilt(worked.settings, check=True, events_per_chunk=events_per_chunk)
    assert report.equal, found(report)
    assert (report.events, report.aggregates, report.rows) == (whole.events, whole.aggregates, whole.rows)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damage_is_named_then_mended(
    worked: Worked, copy: tuple[Settings, asyncpg.Connection], damage: str
) -> None:
    settings, connection = copy
    sound = await contents(connection)
    statement, expected = (
        text.format(done=worked.done, step=worked.step, long=worked.long, nobody=NOBODY) for text in DAMAGES[damage]
    )
    await connection.execute(statement)
    damaged = await contents(connection)

    for events_per_chunk in (2, 4_000):
        report = await rebuilt(settings, check=True, events_per_chunk=events_per_chunk)
        assert not report.equal
        assert any(expected in each for each in found(report)), found(report)
        assert report.held_seconds == []
    assert await contents(connection) == damaged

    report = await rebuilt(settings)
    assert sum(report.repaired.values()) >= 1
    assert (await rebuilt(settings, check=True)).equal
    assert await contents(connection) == sound
    verdict = await examine(settings)
    assert verdict.clean, verdict.document()


async def test_only_the_tables_asked_for_are_touched(copy: tuple[Settings, asyncpg.Connection]) -> None:
    settings, connection = copy
    await connection.execute("UPDATE definition SET name = 'x'")
    await connection.execute("UPDATE run SET status = 'failed'")
    report = await rebuilt(settings, only="catalog")
    assert set(report.rows) == set(report.different) | {"definition_version"} == {"definition", "definition_version"}
    report = await rebuilt(settings, check=True)
    assert set(report.different) == {"run"}


async def test_a_history_that_cannot_be_folded_is_reported_and_left_alone(
    worked: Worked, copy: tuple[Settings, asyncpg.Connection]
) -> None:
    settings, connection = copy
    await connection.execute("DELETE FROM event WHERE aggregate_id = $1 AND seq = 3", worked.done)
    await connection.execute("UPDATE run SET status = 'failed' WHERE id = $1", worked.done)
    await connection.execute("UPDATE event SET type = 'runtime.unheard_of' WHERE aggregate_id = $1", worked.manual)
    before = await contents(connection)
    report = await rebuilt(settings)
    assert set(report.unfoldable) == {worked.done, worked.manual}
    assert "seq 4 stands where 3 was due" in report.unfoldable[worked.done]
    assert not report.equal
    assert await contents(connection) == before


async def test_the_log_fills_the_tables_of_another_schema(copy: tuple[Settings, asyncpg.Connection]) -> None:
    settings, connection = copy
    report = await rebuilt(settings, target="anew", events_per_chunk=40)
    assert report.events > 300
    for spec in PROJECTIONS:
        compared = ", ".join(f'"{c.name}"' for c in spec.columns if c.name not in spec.operational)
        for one, other in (("public", "anew"), ("anew", "public")):
            difference = f"SELECT {compared} FROM {one}.{spec.name} EXCEPT SELECT {compared} FROM {other}.{spec.name}"
            assert await connection.fetch(difference) == []
        constraints = "SELECT count(*) FROM pg_indexes WHERE tablename = $1 GROUP BY schemaname"
        assert len({row[0] for row in await connection.fetch(constraints, spec.name)}) == 1
    for taken in ("anew", "public", "pg_x"):
        with pytest.raises(TargetRefused):
            await rebuilt(settings, target=taken)


async def test_a_failed_fill_leaves_no_schema(copy: tuple[Settings, asyncpg.Connection]) -> None:
    settings, connection = copy
    await connection.execute("UPDATE event SET data = 'x' WHERE type = 'catalog.definition_created'")

    def fail(progress: Any) -> None:
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        await rebuilt(settings, target="anew", on_progress=fail)
    assert await connection.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname = 'anew'") == 0


@pytest.mark.parametrize("events_of_the_next", [0, 1])
async def test_what_is_made_between_two_chunks_is_no_difference(
    copy: tuple[Settings, asyncpg.Connection], events_of_the_next: int
) -> None:
    """Its id may lie where one chunk has read and the next one has not: rows and events are of one snapshot.

    The first chunk ends with an aggregate or within the next one: rows of its last aggregate come with the second.
    """
    settings, connection = copy
    async with asyncpg.create_pool(settings.required_database_url, min_size=1, max_size=2) as pool:
        sizes = await pool.fetch("SELECT count(*) FROM event GROUP BY aggregate_id ORDER BY aggregate_id LIMIT 3")
        reader = LogReader(pool, [Comparer(RUNS)], "%", sum(size[0] for size in sizes) + events_of_the_next)
        chunk = await reader.load()
        seen = {event[0] for event in chunk.events}
        late = chunk.until[:-12] + "000000000000"
        before = f"{int(late[:8], 16) - 1:08x}{late[8:]}"
        for id in (late, before):
            await connection.execute(
                "INSERT INTO event SELECT $1, seq, lane, position, type, tenant_id, at, actor, correlation_id,"
                " causation_id, traceparent, data FROM event WHERE type = 'runtime.run_created' LIMIT 1", id,
            )  # fmt: skip
            await connection.execute(
                "CREATE TEMP TABLE IF NOT EXISTS one AS SELECT * FROM run LIMIT 1",
            )  # fmt: skip
            await connection.execute("UPDATE one SET id = $1", id)
            await connection.execute("INSERT INTO run SELECT * FROM one")
        rows: set[str] = set()
        while not chunk.last:
            chunk = await reader.load()
            seen |= {event[0] for event in chunk.events}
            rows |= {row[1] for _, stored in chunk.stored for row in stored}
        assert chunk.until == END
        assert rows <= seen


async def test_rows_are_those_of_the_moment_their_events_were_read(
    worked: Worked, copy: tuple[Settings, asyncpg.Connection]
) -> None:
    """A run goes on between the two reads of a chunk: held up by a lock on its table, they still see one moment."""
    settings, connection = copy
    watching = await asyncpg.connect(settings.required_database_url)

    async def held_up() -> bool:
        return bool(await watching.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    async with connection.transaction():
        await connection.execute("LOCK TABLE run")
        checking = asyncio.create_task(rebuilt(settings, check=True))
        await until(held_up)
        await connection.execute(
            "INSERT INTO event SELECT aggregate_id, seq + 1, lane, position, 'runtime.steps_allowed', tenant_id, at,"
            " actor, correlation_id, causation_id, traceparent, '{\"allowance\":5}' FROM event"
            " WHERE aggregate_id = $1 ORDER BY seq DESC LIMIT 1", worked.manual,
        )  # fmt: skip
        await connection.execute("UPDATE run SET seq = seq + 1, allowance = 5 WHERE id = $1", worked.manual)
    report = await checking
    await watching.close()
    assert report.equal, found(report)
    assert (await rebuilt(settings, check=True)).events == report.events + 1


async def test_a_rebuild_publishes_nothing(worked: Worked, copy: tuple[Settings, asyncpg.Connection]) -> None:
    settings, connection = copy
    await connection.execute("TRUNCATE run, node_run, run_mark")

    async def ends() -> Any:
        async with TopicReader(settings.required_kafka_bootstrap, settings.topic_prefix) as reader:
            return [await reader.extents(topic) for topic in (COMMANDS, EVENTS, DEAD_LETTERS)]

    async def queued() -> Any:
        return await connection.fetch("SELECT 'o', count(*) FROM outbox UNION SELECT 't', count(*) FROM timer")

    before = await ends(), await queued(), await connection.fetchval("SELECT count(*) FROM event")
    report = await rebuilt(settings)
    assert report.repaired["run"] > 5
    assert (await ends(), await queued(), await connection.fetchval("SELECT count(*) FROM event")) == before


class Blocked:
    """Steps that wait until they are let go; which lease of which step was executed."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int]] = []
        self.go = asyncio.Event()

    async def __call__(self, call: StepCall) -> StepResult:
        self.begun.append((call.node_run_id, call.lease_token))
        await self.go.wait()
        return StepResult({"token": call.lease_token})


async def test_mending_the_row_of_a_step_in_flight_leaves_its_lease_alone(services: EmbeddedStack) -> None:
    blocked = Blocked()
    async with (
        prepared(services, f"leased_{os.getpid()}", lease_seconds=4.0, lease_renew_seconds=0.5) as settings,
        running(settings, Extras(performers={"code": blocked})) as live,
    ):
        id = await live.publish_workflow("w", chain(node("start", "start"), node("code", "code", code="result = 1")))
        run = await live.send(CreateRun(workflow_id=id))
        step = node_run_id(run, "code", "1")

        async def begun() -> bool:
            return bool(blocked.begun)

        async def leased_by() -> Any:
            return await live.database.fetchval("SELECT leased_by FROM node_run WHERE id = $1", step)

        await until(begun)
        holder = await leased_by()
        await live.database.execute("UPDATE node_run SET worker = 'x', created_at = 1 WHERE id = $1", step)
        report = await rebuilt(settings, lease_seconds=settings.lease_seconds)
        assert found(report) == [f"node_run {step}: differs in worker, created_at"]
        assert await leased_by() == holder
        blocked.go.set()
        assert await live.run_ended(run) == "completed"
        assert blocked.begun == [(step, 1)]
        assert (await rebuilt(settings, check=True)).equal


async def test_a_step_in_flight_whose_row_was_lost_is_taken_again_after_its_lease(services: EmbeddedStack) -> None:
    """Nobody may execute it before: its holder may be at it still. What that one answers does not count any more."""
    blocked = Blocked()
    extras = Extras(performers={"code": blocked})
    async with (
        prepared(services, f"in_flight_{os.getpid()}", lease_seconds=4.0, lease_renew_seconds=0.5) as settings,
        running(settings, extras) as live,
    ):
        id = await live.publish_workflow("w", chain(node("start", "start"), node("code", "code", code="result = 1")))
        run = await live.send(CreateRun(workflow_id=id))
        step = node_run_id(run, "code", "1")

        async def begun() -> bool:
            return bool(blocked.begun)

        await until(begun)
        await live.database.execute("DELETE FROM node_run WHERE id = $1", step)
        report = await rebuilt(settings, lease_seconds=settings.lease_seconds)
        assert found(report) == [f"node_run {step}: the events give it, the table lacks it"]
        rows = await live.database.fetch("SELECT leased_by, lease_token, ready FROM node_run WHERE id = $1", step)
        assert [tuple(row) for row in rows] == [("rebuild", 1, True)]

        async def taken_again() -> bool:
            return len(blocked.begun) == 2

        await until(taken_again)
        assert blocked.begun == [(step, 1), (step, 2)]
        blocked.go.set()
        assert await live.run_ended(run) == "completed"
        output = await live.database.fetchval("SELECT output FROM node_run WHERE id = $1", step)
        assert orjson.loads(output) == {"token": 2}
        verdict = await examine(settings, patience_seconds=patient(10))
        assert verdict.clean, verdict.document()


async def test_under_load_tables_are_equal_and_damage_is_mended_while_runs_go_on(services: EmbeddedStack) -> None:
    step = node("step", "code", code="result = 1")
    async with prepared(services, f"load_{os.getpid()}") as settings, running(settings) as live:
        id = await live.publish_workflow("w", chain(node("start", "start"), step, node("end", "answer", text="a")))
        sent: list[str] = []

        async def load() -> None:
            while True:
                sent.extend(await asyncio.gather(*(live.send(CreateRun(workflow_id=id)) for _ in range(5))))
                await asyncio.sleep(0.1)

        loading = asyncio.create_task(load())
        try:
            await _some_ended(live, 20)
            for events_per_chunk in (3, 60, 4_000):
                report = await rebuilt(settings, check=True, events_per_chunk=events_per_chunk)
                assert report.equal, found(report)
            for round in range(3):
                await live.database.execute(
                    "UPDATE run SET output_text = 'broken' WHERE id IN (SELECT id FROM run WHERE ended_at IS NOT NULL"
                    " AND output_text = 'a' LIMIT 5)"
                )
                await live.database.execute(
                    "DELETE FROM node_run WHERE id IN (SELECT n.id FROM node_run n JOIN run r ON r.id = n.run_id"
                    " WHERE r.ended_at IS NOT NULL LIMIT 5)"
                )
                before = len(sent)
                report = await rebuilt(settings)
                assert dict(report.repaired) == {"run": 5, "node_run": 5}, (round, found(report))
                await _some_ended(live, before)
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        assert {await live.run_ended(run) for run in sent} == {"completed"}
        assert await live.database.fetchval("SELECT count(*) FROM dead_letter") == 0
        assert (await rebuilt(settings, check=True)).equal
        verdict = await examine(settings, patience_seconds=patient(10))
        assert verdict.clean, verdict.document()


async def _some_ended(live: Live, count: int) -> None:
    async def look() -> bool:
        return bool(await live.database.fetchval("SELECT count(*) FROM run WHERE ended_at IS NOT NULL") > count)

    await until(look)


async def test_the_owner_of_a_repaired_lane_forgets_what_it_knew(services: EmbeddedStack) -> None:
    """A manual run in the worker's memory, its row damaged and mended: the next step is decided on the sound row."""
    async with prepared(services, f"forget_{os.getpid()}") as settings, running(settings) as live:
        nodes = [node(f"n{number}", "template-transform", template="x") for number in range(3)]
        id = await live.publish_workflow("w", chain(*nodes))
        run = str((await live.do(CreateRun(workflow_id=id, mode="manual")))["id"])
        epochs = {row[0]: row[1] for row in await live.database.fetch("SELECT id, epoch FROM lane")}
        await live.database.execute("UPDATE run SET allowance = 7 WHERE id = $1", run)
        report = await rebuilt(settings)
        assert dict(report.repaired) == {"run": 1}
        raised = {id for id, epoch in await live.database.fetch("SELECT id, epoch FROM lane") if epoch > epochs[id]}
        assert len(raised) == len(report.held_seconds) == 1

        for _ in nodes:
            await live.do(ExecuteRun(run_id=run))
        assert await live.run_ended(run) == "completed"
        assert (await rebuilt(settings, check=True)).equal


async def test_ap_rebuild_says_what_it_found(
    worked: Worked, copy: tuple[Settings, asyncpg.Connection], tmp_path: Path
) -> None:
    settings, connection = copy
    code, said = await ap(settings, "rebuild", "--check")
    assert (code, "0 rows differ" in said) == (0, True), said
    await connection.execute("DELETE FROM run WHERE id = $1", worked.done)
    code, said = await ap(settings, "rebuild", "--check")
    assert (code, f"run {worked.done}: the events give it, the table lacks it" in said) == (1, True), said
    code, said = await ap(settings, "rebuild", "--json")
    document = orjson.loads(said)
    assert (code, document["repaired"], document["lanes_held"]["times"]) == (0, {"run": 1}, 1)
    assert document["differences"][0]["id"] == worked.done
    code, said = await ap(settings, "rebuild", "--check", "--only", "runtime")
    assert (code, "definition" in said) == (0, False)
    code, said = await ap(settings, "rebuild", "--target", "fresh", "--json")
    assert (code, orjson.loads(said)["rows"]["run"] > 5) == (0, True), said
    code, said = await ap(settings, "rebuild", "--target", "public")
    assert (code, "name a schema of its own" in said) == (2, True), said
    code, said = await ap(settings, "rebuild", "--target", "anew", "--check")
    assert code == 2
    await connection.execute("DELETE FROM event WHERE aggregate_id = $1 AND seq = 2", worked.done)
    code, said = await ap(settings, "rebuild")
    assert (code, f"{worked.done} cannot be folded" in said) == (1, True), said
