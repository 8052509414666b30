"""Ended runs are removed whole, beside work that goes on; what comes too late for them meets a tombstone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from bus.limits import Defences
from bus.postgres import connect
from infra.domains import PROJECTIONS
from infra.history.rebuild import rebuild
from infra.history.rebuild.comparison import Comparer
from infra.history.rebuild.folding import Folder
from infra.history.rebuild.log import END, LogReader
from infra.history.replay import ExportRange, Selection, export, removed
from infra.local.embedded import EmbeddedStack
from infra.roles.extras import Extras
from infra.roles.retention import ended
from infra.settings import Settings
from outbox import ended as removal
from outbox.ended import AGGREGATES_MAX, EVENTS_MAX, TAKE_LOCK, Ended, Removed, remove_some
from outbox.retention import Retention
from schemas.envelope import Envelope
from schemas.human import CancelTask, CompleteTask, CreateTask
from schemas.messages import derive
from schemas.runtime import CancelRun, CompleteNode, CreateRun, SetRunStatus, node_run_id
from schemas.topics import COMMANDS, partition_of
from tests.copies import database_copy
from tests.live import TENANT, Live, lasting, prepared, running, until
from tests.schemas.workflows import node
from tests.test_verify import Worked, chain, examine, work

ENDED = 1_000
RULE: Ended = replace(ended(Settings())[0], kept_seconds=0.0)
"""Whatever has ended."""


@contextlib.asynccontextmanager
async def as_worker(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    """Sessions as the workers have them."""
    pool = await connect(settings, size=3)
    try:
        yield pool
    finally:
        await pool.close()


async def remove_all(pool: asyncpg.Pool, **options: bool) -> int:
    count = 0
    while True:
        async with pool.acquire() as connection:
            done = await remove_some(connection, RULE, **options)
        count += done.aggregates
        if not done.more:
            return count


async def sent(live: Live) -> None:
    """Wait until every lane has noted that Kafka has all it made: before that nothing of it is removed."""
    query = "SELECT count(*) = 0 FROM lane WHERE sent < position"
    await until(lambda: live.database.fetchval(query))


async def pure_workflow(live: Live) -> str:
    return await live.publish_workflow(
        "pure", chain(node("start", "start"), node("t", "template-transform", template="x"))
    )


async def waiting_workflow(live: Live) -> str:
    later = node("later", "template-transform", template="x", delay_seconds=3_600)
    return await live.publish_workflow("waits", chain(node("start", "start"), later))


async def counts(connection: Any, ids: list[str]) -> dict[str, int]:
    """How many rows there are of these runs."""
    tables = {"run": "id", "node_run": "run_id", "run_mark": "run_id", "event": "aggregate_id", "tombstone": "id"}
    return {
        table: await connection.fetchval(f"SELECT count(*) FROM {table} WHERE {column} = ANY($1::uuid[])", ids)
        for table, column in tables.items()
    }


# --- beside work ---------------------------------------------------------------------------------------------


async def test_a_thousand_ended_runs_go_and_those_that_run_stay(services: EmbeddedStack) -> None:
    async with prepared(services, f"ended_{os.getpid()}") as settings, running(settings) as live:
        pure, waits = await pure_workflow(live), await waiting_workflow(live)
        open_runs = [await live.send(CreateRun(workflow_id=waits)) for _ in range(20)]
        old = [await live.send(CreateRun(workflow_id=pure)) for _ in range(ENDED)]
        for id in (*open_runs, *old):
            assert (await live.outcome(id))[0] == "succeeded"
        await sent(live)
        before = await counts(live.database, old)
        assert before["run"] == ENDED
        new: list[str] = []

        async def load() -> None:
            while True:
                new.extend([await live.send(CreateRun(workflow_id=pure)) for _ in range(10)])

        loading = asyncio.create_task(load())
        rule = replace(RULE, kept_seconds=1e-6)
        try:
            async with as_worker(settings) as pool:
                await until(lambda: asyncio.sleep(0, len(new) > 50))
                done = await Retention(pool, [], [rule]).round()
                report = await examine(settings, patience_seconds=10.0)
                assert report.clean, report.document()
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        assert done.aggregates["run"] >= ENDED
        assert done.rows["run"] >= sum(before.values())
        assert await counts(live.database, old) == dict.fromkeys(before, 0) | {"tombstone": ENDED}
        assert (await counts(live.database, open_runs))["run"] == len(open_runs)
        assert {(await live.outcome(id))[0] for id in new} == {"succeeded"}
        for id in open_runs:
            assert (await live.do(CancelRun(run_id=id)))["status"] == "cancelled"
        await live.rest()
        await sent(live)
        report = await examine(settings, patience_seconds=10.0)
        assert report.clean, report.document()
        assert (await rebuild(settings.required_database_url, check=True)).equal


async def test_commands_that_come_too_late_meet_the_tombstone(services: EmbeddedStack) -> None:
    async with prepared(services, f"late_{os.getpid()}") as settings, running(settings) as live:
        pure, waits = await pure_workflow(live), await waiting_workflow(live)
        run, chosen = await live.send(CreateRun(workflow_id=waits)), str(uuid.uuid4())
        assert (await live.do(CancelRun(run_id=run)))["status"] == "cancelled"
        await live.do(CreateRun(workflow_id=pure, run_id=chosen))
        # Loads what has ended into the memory of its lane again.
        assert (await live.do(SetRunStatus(run_id=run, status="cancelled")))["status"] == "cancelled"
        status, problem = await live.outcome(await live.send(CancelRun(run_id=chosen)))
        assert (status, problem["code"]) == ("rejected", "run_ended")
        await sent(live)
        async with as_worker(settings) as pool:
            assert await remove_all(pool) == 2
        for command, tenant, expected in (
            (CancelRun(run_id=run), TENANT, (410, "run_expired")),
            (SetRunStatus(run_id=run, status="cancelled"), TENANT, (410, "run_expired")),
            (CancelRun(run_id=chosen), TENANT, (410, "run_expired")),
            (CancelRun(run_id=chosen), "t9", (404, "run_not_found")),
            (CreateRun(workflow_id=pure, run_id=chosen), TENANT, (409, "id_taken")),
            (CreateRun(workflow_id=pure, run_id=chosen), "t9", (409, "id_taken")),
        ):
            status, problem = await live.outcome(await live.send(command, tenant=tenant))
            assert (status, problem["status"], problem["code"]) == ("rejected", *expected), (command, problem)
        assert problem.keys() == {"status", "code", "detail"}
        # The command that made it, again: its outcome is told; and once that is forgotten too, the id stays taken.
        assert (await live.outcome(await live.send(CreateRun(workflow_id=waits), run)))[0] == "succeeded"
        await live.database.execute("DELETE FROM command_outcome WHERE command_id = $1", run)
        await live.send(CreateRun(workflow_id=waits), run)
        assert (await live.outcome(run))[1]["code"] == "id_taken"
        assert (await counts(live.database, [run, chosen])) == {
            "run": 0, "node_run": 0, "run_mark": 0, "event": 0, "tombstone": 2,
        }  # fmt: skip
        await answered_late(live, run)


async def answered_late(live: Live, run: str) -> None:
    """An executor's answer to a step of a removed run is taken, and does nothing."""
    step = node_run_id(run, "later", "1")
    answer = CompleteNode(run_id=run, node_run_id=step, lease_token=1, output={})
    envelope = Envelope(derive(step, "result:1"), answer.type, TENANT, subject=run, causation_id=step)
    place = partition_of(run, live.settings.commands_partitions)
    await live.producer.send(COMMANDS, place, run, envelope.headers(), answer.encode())
    await live.rest()
    assert (await counts(live.database, [run]))["event"] == 0
    report = await examine(live.settings, patience_seconds=10.0)
    # Its outcome was deleted above, and what it is refused for now is no violation.
    assert report.clean, report.document()


async def test_an_ended_task_goes_and_what_comes_too_late_for_it_meets_the_tombstone(services: EmbeddedStack) -> None:
    async with prepared(services, f"tasks_{os.getpid()}") as settings, running(settings) as live:
        task, waiting = str(uuid.uuid4()), str(uuid.uuid4())
        create = CreateTask(task_id=task, task_type="input", title="姓名")
        await live.do(create)
        await live.do(CreateTask(task_id=waiting, task_type="input", title="t"))
        await live.do(CompleteTask(task_id=task, status="completed"))
        await sent(live)
        (rule,) = [replace(rule, kept_seconds=1e-6) for rule in ended(Settings()) if rule.kind == "human_task"]
        async with as_worker(settings) as pool:
            assert (await Retention(pool, [], [rule]).round()).aggregates == {"human_task": 1}
        assert (await counts(live.database, [task])) == {
            "run": 0, "node_run": 0, "run_mark": 0, "event": 0, "tombstone": 1,
        }  # fmt: skip
        for command, tenant, expected in (
            (CancelTask(task_id=task), TENANT, (410, "human_task_expired")),
            (CancelTask(task_id=task), "t9", (404, "human_task_not_found")),
            (create, TENANT, (409, "id_taken")),
        ):
            status, problem = await live.outcome(await live.send(command, tenant=tenant))
            assert (status, problem["status"], problem["code"]) == ("rejected", *expected), (command, problem)
        random = await live.outcome(await live.send(CancelTask(task_id=str(uuid.uuid4()))))
        foreign = await live.outcome(await live.send(CancelTask(task_id=task), tenant="t9"))
        assert random == foreign
        # Whoever does not look first is refused by the table.
        row = await live.database.fetchval("SELECT to_jsonb(t) FROM human_task t WHERE id = $1", waiting)
        again = """INSERT INTO human_task SELECT r.* FROM
          jsonb_populate_record(null::human_task, $1::jsonb || jsonb_build_object('id', $2::text)) AS r"""
        with pytest.raises(asyncpg.UniqueViolationError, match="not used again"):
            await live.database.execute(again, row, task)
        await live.rest()
        report = await examine(settings, patience_seconds=10.0)
        assert report.clean, report.document()
        assert (await rebuild(settings.required_database_url, check=True)).equal


async def test_without_tombstones_a_removed_run_comes_back(services: EmbeddedStack) -> None:
    """The control: what the tombstone is for does not hold without it."""
    extras = Extras(defences=Defences(tombstones=False))
    async with prepared(services, f"control_{os.getpid()}") as settings, running(settings, extras) as live:
        pure, chosen = await pure_workflow(live), str(uuid.uuid4())
        await live.do(CreateRun(workflow_id=pure, run_id=chosen))
        await sent(live)
        async with as_worker(settings) as pool:
            assert await remove_all(pool, tombstones=extras.defences.tombstones) == 1
        report = await examine(settings)
        assert {"I1", "I6"} <= {name for name, found in report.violations.items() if found}, report.document()
        _, problem = await live.outcome(await live.send(CancelRun(run_id=chosen)))
        assert problem["code"] == "run_not_found"
        await live.do(CreateRun(workflow_id=pure, run_id=chosen))


# --- one transaction -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worked(services: EmbeddedStack) -> Iterator[Worked]:
    async def start(settings: Settings) -> Worked:
        async with running(settings) as live:
            ids = await work(live)
            await live.rest()
            await sent(live)
            return Worked(settings, **ids)

    yield from lasting(services, f"removed_{os.getpid()}", start)


@pytest.fixture
async def copy(services: EmbeddedStack, worked: Worked) -> AsyncIterator[tuple[Settings, asyncpg.Pool]]:
    name = f"removing_{uuid.uuid4().hex[:12]}"
    async with database_copy(services, worked.settings, name) as settings, as_worker(settings) as pool:
        yield settings, pool


async def test_a_system_without_its_ended_runs_is_sound(copy: tuple[Settings, asyncpg.Pool], worked: Worked) -> None:
    settings, pool = copy
    assert await remove_all(pool) == 7
    report = await examine(settings)
    assert report.clean, report.document()
    assert not report.notes
    found = await rebuild(settings.required_database_url)
    assert found.equal
    assert found.repaired == {}
    assert (await counts(pool, [worked.waiting, worked.manual]))["run"] == 2
    (stone,) = await pool.fetch("SELECT * FROM tombstone WHERE id = $1", worked.long)
    assert (stone["tenant_id"], stone["kind"], stone["status"]) == (TENANT, "run", "completed")
    assert stone["last_seq"] > 260
    assert stone["removed_at"] > stone["ended_at"] > 0


async def test_killed_in_the_middle_it_leaves_everything(copy: tuple[Settings, asyncpg.Pool], worked: Worked) -> None:
    settings, pool = copy
    ids = [worked.done, worked.long]
    before = await counts(pool, ids)
    blocker = await asyncpg.connect(settings.required_database_url)
    try:
        holding = blocker.transaction()
        await holding.start()
        await blocker.execute("LOCK TABLE tombstone IN EXCLUSIVE MODE")  # Its last statement waits for this.
        removing = asyncio.create_task(remove_all(pool))
        query = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        await blocker.execute(f"SELECT pg_terminate_backend({await until(lambda: blocker.fetchval(query))})")
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            await removing
        await holding.rollback()
        assert await counts(blocker, ids) == before
    finally:
        await blocker.close()
    assert await remove_all(pool) == 7
    assert (await examine(settings)).clean


async def test_one_removes_at_a_time_and_none_while_a_rebuild_mends(copy: tuple[Settings, asyncpg.Pool]) -> None:
    _, pool = copy
    async with pool.acquire() as other, other.transaction():
        await other.execute(TAKE_LOCK)
        async with pool.acquire() as connection:
            assert await remove_some(connection, RULE) == Removed()
    assert await remove_all(pool) == 7


async def test_a_rebuild_that_mends_waits_for_a_removal(copy: tuple[Settings, asyncpg.Pool], worked: Worked) -> None:
    settings, pool = copy
    await pool.execute("UPDATE run SET output_text = 'x' WHERE id = $1", worked.done)
    async with pool.acquire() as connection:
        removing = connection.transaction()
        await removing.start()
        done = await remove_some(connection, RULE)
        assert done.aggregates
        mending = asyncio.create_task(rebuild(settings.required_database_url))
        query = "SELECT true FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        await until(lambda: pool.fetchval(query))
        await removing.commit()
        report = await mending
    assert report.repaired == {}
    assert (await counts(pool, [worked.done])) == {"run": 0, "node_run": 0, "run_mark": 0, "event": 0, "tombstone": 1}
    assert (await rebuild(settings.required_database_url, check=True)).equal


async def test_what_kafka_may_lack_is_not_removed(copy: tuple[Settings, asyncpg.Pool], worked: Worked) -> None:
    _, pool = copy
    await pool.execute(
        "UPDATE lane l SET sent = e.position - 1 FROM event e"
        " WHERE e.lane = l.id AND e.aggregate_id = $1 AND e.seq = (SELECT seq FROM run WHERE id = $1)",
        worked.done,
    )
    await remove_all(pool)
    assert (await counts(pool, [worked.done]))["run"] == 1
    await pool.execute("UPDATE lane SET sent = position")
    await remove_all(pool)
    assert (await counts(pool, [worked.done]))["run"] == 0


async def test_a_condition_chooses_which_runs_go(copy: tuple[Settings, asyncpg.Pool], worked: Worked) -> None:
    _, pool = copy
    rule = replace(RULE, condition=f"h.id = '{worked.long}'")
    async with pool.acquire() as connection:
        done = await remove_some(connection, rule)
    assert (done.aggregates, done.more) == (1, False)
    assert done.rows > 500
    assert (await counts(pool, [worked.long]))["tombstone"] == 1
    assert await pool.fetchval(rule.oldest) is None
    assert await pool.fetchval(RULE.oldest) == await pool.fetchval("SELECT min(ended_at) FROM run WHERE kind = 'graph'")


def test_a_transaction_takes_a_bounded_share() -> None:
    assert removal._share([("a", EVENTS_MAX + 1), ("b", 1)]) == ["a"]
    assert removal._share([("a", 1), ("b", EVENTS_MAX), ("c", 1)]) == ["a"]
    assert removal._share([(str(n), 10) for n in range(AGGREGATES_MAX)]) == [str(n) for n in range(AGGREGATES_MAX)]
    assert removal._share([]) == []


async def test_a_run_made_under_an_id_that_is_being_removed_is_refused(
    copy: tuple[Settings, asyncpg.Pool], worked: Worked
) -> None:
    """The insert waits for the removal under way, and only then looks for tombstones."""
    _, pool = copy
    again = "INSERT INTO run SELECT r.* FROM jsonb_populate_record(null::run, $1::jsonb) AS r"
    row = await pool.fetchval("SELECT to_jsonb(r) FROM run r WHERE id = $1", worked.done)
    async with pool.acquire() as connection, pool.acquire() as other:
        removing = connection.transaction()
        await removing.start()
        await remove_some(connection, replace(RULE, condition=f"h.id = '{worked.done}'"))
        making = asyncio.create_task(other.execute(again, row))
        query = "SELECT true FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted"
        await until(lambda: pool.fetchval(query))
        await removing.commit()
        with pytest.raises(asyncpg.UniqueViolationError, match="not used again"):
            await making
    assert (await counts(pool, [worked.done]))["run"] == 0


# --- rebuild and export --------------------------------------------------------------------------------------


async def test_a_run_removed_while_a_rebuild_reads_it_is_no_difference(
    copy: tuple[Settings, asyncpg.Pool], worked: Worked
) -> None:
    _, pool = copy
    comparers = [Comparer(spec) for spec in PROJECTIONS]
    reader = LogReader(pool, comparers, "%", 50)
    folder = Folder()
    while True:
        chunk = await reader.load()
        folder.take(chunk.events)
        if chunk.events[-1][0] == worked.long:
            break
        folder.take_whole(chunk.until)
    folder.take_whole(chunk.until)
    assert await remove_all(pool) == 7
    following = await reader.load()
    assert following.removed == worked.long
    folder.forget(following.removed)
    folder.take(following.events)
    assert worked.long not in folder.take_whole(END)


async def test_a_rebuild_beside_retention_finds_nothing(copy: tuple[Settings, asyncpg.Pool]) -> None:
    settings, pool = copy
    removing = False

    def remove(progress: Any) -> None:
        nonlocal removing
        if not removing:
            removing = True
            tasks.append(asyncio.ensure_future(remove_all(pool)))

    tasks: list[asyncio.Future[int]] = []
    found = await rebuild(settings.required_database_url, events_per_chunk=7, on_progress=remove)
    assert found.equal, [str(each) for each in found.differences]
    assert await tasks[0] == 7
    assert (await rebuild(settings.required_database_url, check=True)).equal


async def test_an_export_says_what_is_gone(copy: tuple[Settings, asyncpg.Pool], worked: Worked) -> None:
    settings, pool = copy
    url = settings.required_database_url
    named = Selection(aggregates=(worked.done, worked.waiting))
    assert await removed(url, named) == await removed(url, Selection()) == []
    await remove_all(pool)
    (said,) = await removed(url, named)
    assert said.startswith(f"{worked.done}: its ")
    assert await removed(url, Selection(tenant="t9")) == []
    (said,) = await removed(url, Selection())
    assert "7 ended aggregates" in said
    subjects = {event["subject"] async for event in export(url, named, ExportRange())}
    assert subjects == {worked.waiting}


# --- cost ----------------------------------------------------------------------------------------------------


async def test_a_run_enters_the_index_of_ended_ones_once(copy: tuple[Settings, asyncpg.Pool], worked: Worked) -> None:
    """While it goes on its updates touch no index; its end does, once."""
    _, pool = copy
    query = """SELECT ARRAY[pg_stat_get_xact_tuples_updated('run'::regclass),
      pg_stat_get_xact_tuples_hot_updated('run'::regclass)]"""
    async with pool.acquire() as connection, connection.transaction():
        for seq in range(5):
            await connection.execute("UPDATE run SET seq = $2, active = 1 WHERE id = $1", worked.waiting, 100 + seq)
        assert await connection.fetchval(query) == [5, 5]
        await connection.execute("UPDATE run SET status = 'completed', ended_at = 1 WHERE id = $1", worked.waiting)
        assert await connection.fetchval(query) == [6, 5]
