"""Every invariant that `ap verify` checks is reported when it is broken on purpose, and none on a sound system."""

from __future__ import annotations

import asyncio
import itertools
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace

import asyncpg
import pytest

from infra.domains import EVOLVE
from infra.history.verify import INVARIANTS, Report, verify
from infra.history.verify.history import lease_tokens, repeated_messages, sequence, terminal_transitions
from infra.local.embedded import EmbeddedStack
from infra.settings import Settings
from schemas import registry
from schemas import runtime as wire
from schemas.decider import Recorded
from schemas.envelope import Envelope
from schemas.human import CompleteTask, CreateTask
from schemas.messages import Event, derive
from schemas.runtime import CreateRun, node_run_id
from schemas.topics import COMMANDS, DEAD_LETTERS, EVENTS, INGRESS
from tests.copies import Record, database_copy, topics_copy
from tests.live import Live, lasting, prepared, running, until
from tests.patience import patient
from tests.schemas.workflows import edge, graph, node

PURE = 260
"""Nodes in the long chain: more than one message's share, so that it goes on by commands of its own."""


@dataclass(frozen=True, slots=True)
class Worked:
    """A platform that has worked and rests, its worker gone."""

    settings: Settings
    done: str
    long: str
    waiting: str
    manual: str
    refused: str
    step: str
    asked: str
    answered: str


NAMES = ("done", "long", "waiting", "manual", "refused", "step", "asked", "answered")


def chain(*nodes: dict[str, object]) -> dict[str, object]:
    edges = [edge(str(a["id"]), str(b["id"])) for a, b in itertools.pairwise(nodes)]
    return graph(*nodes, *edges)


async def work(live: Live) -> dict[str, str]:
    """Runs that end, fail, wait for a timer and wait for a person; refusals; dead letters on both topics."""
    code = node("code", "code", code="result = 1")
    failing = node("bad", "code", code="result = 1 / 0", retry_policy={"max_attempts": 2})
    later = node("later", "template-transform", template="x", delay_seconds=3_600)
    steps = await live.publish_workflow("steps", chain(node("start", "start"), code, node("end", "answer", text="a")))
    fails = await live.publish_workflow("fails", chain(node("start", "start"), failing))
    waits = await live.publish_workflow("waits", chain(node("start", "start"), later))
    names = [node(f"n{number}", "template-transform", template="x") for number in range(PURE)]
    long = await live.publish_workflow("long", chain(node("start", "start"), *names))
    done = [await live.send(CreateRun(workflow_id=steps)) for _ in range(5)]
    failed = await live.send(CreateRun(workflow_id=fails))
    walked = await live.send(CreateRun(workflow_id=long))
    waiting = await live.send(CreateRun(workflow_id=waits))
    manual = await live.send(CreateRun(workflow_id=steps, mode="manual"))
    refused = await live.send(CreateRun(workflow_id=str(uuid.uuid4())))
    asked = await live.send(CreateTask(task_type="input", title="姓名", timeout_seconds=3_600))
    answered = await live.send(CreateTask(task_type="input", title="t", timeout_seconds=3_600))
    await live.do(CompleteTask(task_id=answered, status="completed"))
    assert (await live.outcome(refused))[0] == "rejected"
    assert {await live.run_ended(id) for id in [*done, walked]} == {"completed"}
    assert await live.run_ended(failed) == "failed"
    for id in (waiting, manual):
        assert (await live.outcome(id))[0] == "succeeded"
    await live.producer.send(INGRESS, 0, None, [("ce_id", b"x"), ("ce_type", b"no.such")], b"{}")
    await live.producer.send(INGRESS, 0, None, [("ce_type", b"no.such")], b"{}")
    envelope = Envelope(str(uuid.uuid4()), "runtime.continue_run", "t1")
    await live.producer.send(COMMANDS, 1, "wrong", envelope.headers(), b'{"run_id":"%b"}' % done[0].encode())
    moved = [("ce_id", b"app-1"), ("ce_type", b"catalog.create_definition"), ("ce_tenantid", b"t2")]
    await live.producer.send(INGRESS, 1, None, moved, b'{"kind":"app","code":"a","name":"A"}')

    async def rests() -> bool:
        letters = await live.database.fetchval("SELECT count(*) FROM dead_letter")
        apps = await live.database.fetchval("SELECT count(*) FROM definition WHERE tenant_id = 't2'")
        return bool(letters == 3 and apps == 1)

    await until(rests)
    step = node_run_id(done[0], "code", "1")
    return {
        "done": done[0], "long": walked, "waiting": waiting, "manual": manual, "refused": refused, "step": step,
        "asked": asked, "answered": answered,
    }  # fmt: skip


@pytest.fixture(scope="module")
def worked(services: EmbeddedStack) -> Iterator[Worked]:
    async def start(settings: Settings) -> Worked:
        async with running(settings) as live:
            ids = await work(live)
            await live.rest()
            report = await examine(settings, patience_seconds=patient(10))
            assert report.clean, report.document()
        return Worked(settings, **ids)

    yield from lasting(services, f"verify_{os.getpid()}", start)


async def examine(settings: Settings, **options: float) -> Report:
    options = {"patience_seconds": 0.3} | options
    return await verify(
        settings.required_database_url, settings.required_kafka_bootstrap, settings.topic_prefix, **options
    )


@pytest.fixture
async def broken(services: EmbeddedStack, worked: Worked) -> AsyncIterator[tuple[Settings, asyncpg.Connection]]:
    """A copy of the database to break, and a connection to do it."""
    async with database_copy(services, worked.settings, f"broken_{uuid.uuid4().hex[:12]}") as settings:
        connection = await asyncpg.connect(settings.required_database_url)
        try:
            yield settings, connection
        finally:
            await connection.close()


def named(report: Report, invariant: str, *parts: str) -> bool:
    """Whether a violation of the invariant names all of these."""
    return any(all(part in problem for part in parts) for problem in report.violations[invariant])


async def test_a_sound_system_at_rest_is_clean(worked: Worked) -> None:
    report = await examine(worked.settings)
    assert report.clean, report.document()
    assert not report.notes
    for looked_at in ("aggregates", "events", "run rows", "commands records", "events records", "dead letters"):
        assert report.checked[looked_at] > 0, looked_at


async def test_a_system_under_load_is_clean(services: EmbeddedStack) -> None:
    """What is on its way between Postgres and Kafka while it is looked at is no violation."""
    step = node("step", "code", code="result = 1")
    async with prepared(services, f"loaded_{os.getpid()}") as settings, running(settings) as live:
        id = await live.publish_workflow("w", chain(node("start", "start"), step, node("end", "answer", text="a")))
        sent: list[str] = []

        async def load() -> None:
            while True:
                sent.extend([await live.send(CreateRun(workflow_id=id)) for _ in range(10)])

        loading = asyncio.create_task(load())
        try:
            reports = [await examine(settings, patience_seconds=patient(10)) for _ in range(3)]
        finally:
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        assert all(report.clean for report in reports), [report.document() for report in reports]
        assert reports[-1].checked["events"] > reports[0].checked["events"]
        assert {await live.run_ended(run) for run in sent} == {"completed"}


BREAKS = {
    "a command without outcome": (
        "I1", "DELETE FROM command_outcome WHERE command_id = '{refused}'", "{refused}"
    ),
    "an outcome without its run": (
        "I1", "DELETE FROM event WHERE aggregate_id = '{done}'", "{done} has no events"
    ),
    "an outcome for a run that another command made": (
        "I1", "UPDATE event SET causation_id = '{refused}' WHERE aggregate_id = '{done}' AND seq = 1", "{done}"
    ),
    "a run that ends twice": (
        "I2", "INSERT INTO event SELECT aggregate_id, seq + 1, lane, position, type, tenant_id, at, actor,"
        " correlation_id, causation_id, traceparent, data FROM event WHERE aggregate_id = '{done}'"
        " AND type = 'runtime.run_completed'", "run {done} ended 2 times"
    ),
    "a node run that ends twice": (
        "I2", "UPDATE event e SET data = f.data FROM event f WHERE f.aggregate_id = e.aggregate_id"
        " AND e.aggregate_id = '{long}' AND e.type = 'runtime.node_completed' AND f.seq = 5 AND e.seq = 6",
        "ended again at seq 6 of run {long}"
    ),
    "a message that acts again": (
        "I3", "UPDATE event SET causation_id = (SELECT causation_id FROM event WHERE aggregate_id = '{done}'"
        " AND seq = 1) WHERE aggregate_id = '{done}' AND seq = (SELECT max(seq) FROM event"
        " WHERE aggregate_id = '{done}')", "{done}"
    ),
    "a message that acts on two aggregates": (
        "I3", "UPDATE event SET causation_id = '{done}' WHERE aggregate_id = '{manual}'", "{done} acted on"
    ),
    "a gap in the log": ("I4", "DELETE FROM event WHERE aggregate_id = '{done}' AND seq = 3", "{done} has seq 4"),
    "a handled command without inbox row": (
        "I5", "DELETE FROM inbox WHERE message_id IN (SELECT causation_id::uuid FROM event"
        " WHERE aggregate_id = '{long}')", "(runtime.continue_run)"
    ),
    "events of a command that was rejected": (
        "I5", "UPDATE command_outcome SET status = 'rejected' WHERE command_id = '{done}'", "{done} was rejected"
    ),
    "an outcome that stays pending": (
        "I5", "UPDATE command_outcome SET status = 'pending' WHERE command_id = '{done}'", "{done}"
    ),
    "events whose cause is nowhere": (
        "I5", "UPDATE event SET causation_id = '00000000-0000-4000-8000-000000000001'"
        " WHERE aggregate_id = '{waiting}'", "00000000-0000-4000-8000-000000000001"
    ),
    "events beyond what their lane has made": ("I5", "UPDATE lane SET position = 0", "{done}/1 stands beyond"),
    "a run that was removed and has events": (
        "I5", "INSERT INTO tombstone VALUES ('{done}', 't1', 'run', 'completed', 3, 1, 1)", "{done} was removed"
    ),
    "an event behind the last one of a removed run": (
        "I6", "WITH e AS (DELETE FROM event WHERE aggregate_id = '{done}') INSERT INTO tombstone"
        " VALUES ('{done}', 't1', 'run', 'completed', 2, 1, 1)", "{done}/3 is on the topic"
    ),
    "a row that a removed run left": (
        "I9", "WITH e AS (DELETE FROM event WHERE aggregate_id = '{done}') INSERT INTO tombstone"
        " VALUES ('{done}', 't1', 'run', 'completed', 99, 1, 1)", "run {done}: in the table"
    ),
    "an outbox row at an event's place": (
        "I5", "INSERT INTO outbox SELECT lane, position, 'commands', 0, '', '[]', '', 't1' FROM event"
        " WHERE aggregate_id = '{done}' AND seq = 1", "{done}/1 and an outbox row"
    ),
    "an outbox row that nobody sends": (
        "I6", "INSERT INTO outbox SELECT 0, position, 'commands', 0, 'k',"
        " convert_to('[[\"ce_id\",\"never-sent\"]]', 'UTF8'), '', 't1' FROM lane WHERE id = 0", "never-sent"
    ),
    "events that their lane says it has sent": (
        "I6", "WITH l AS (UPDATE lane SET position = position + 1, sent = position + 1 RETURNING id, position)"
        " INSERT INTO event SELECT aggregate_id, seq + 1, lane, l.position, 'runtime.steps_allowed', tenant_id, at,"
        " actor, correlation_id, causation_id, traceparent, '{{\"allowance\":1}}' FROM event JOIN l ON l.id = lane"
        " WHERE aggregate_id = '{manual}' ORDER BY seq DESC LIMIT 1", "{manual}"
    ),
    "events on the topic that the log lacks": (
        "I6", "DELETE FROM event WHERE aggregate_id = '{waiting}'", "{waiting}/1 is on the topic"
    ),
    "a dead letter on the topic that the table lacks": (
        "I6", "DELETE FROM dead_letter WHERE code = 'misrouted'", "not in the table"
    ),
    "a result under another token": (
        "I7", "UPDATE event SET data = convert_to(replace(convert_from(data, 'UTF8'), '\"lease_token\":1',"
        " '\"lease_token\":2'), 'UTF8') WHERE aggregate_id = '{done}' AND type = 'runtime.node_completed'", "{done}"
    ),
    "a run whose row differs": ("I9", "UPDATE run SET status = 'failed' WHERE id = '{done}'", "differs in status"),
    "a node run whose output differs": (
        "I9", "UPDATE node_run SET output = '{{\"result_json\":2}}' WHERE run_id = '{done}' AND node_id = 'code'",
        "differs in output"
    ),
    "a row that is gone": ("I9", "DELETE FROM run WHERE id = '{done}'", "run {done}: the events give it"),
    "a row that no event gives": (
        "I9", "UPDATE definition SET id = '00000000-0000-4000-8000-000000000002' WHERE tenant_id = 't2'",
        "definition 00000000-0000-4000-8000-000000000002", "no event gives it"
    ),
    "an event of a type that nobody knows": (
        "I9", "UPDATE event SET type = 'runtime.unheard_of' WHERE aggregate_id = '{done}' AND seq = 2",
        "{done}/2 cannot be read"
    ),
    "an event on the topic that is not the log's": (
        "I9", "UPDATE event SET tenant_id = 't9' WHERE aggregate_id = '{waiting}' AND seq = 1",
        "{waiting}/1 is not on the topic as it is in the log"
    ),
    "an event of another tenant within an aggregate": (
        "I10", "UPDATE event SET tenant_id = 't9' WHERE aggregate_id = '{done}' AND seq = 2", "{done}", "'t9'"
    ),
    "a node run of another tenant than its run's": (
        "I10", "UPDATE node_run SET tenant_id = 't9' WHERE run_id = '{done}' AND node_id = 'code'", "node run", "'t9'"
    ),
    "a run of another tenant's workflow": (
        "I10", "UPDATE definition_version SET tenant_id = 't9'", "run and workflow version", "{done}"
    ),
    "an outcome told to another tenant": (
        "I10", "UPDATE command_outcome SET tenant_id = 't9' WHERE status = 'succeeded'", "outcome and its events"
    ),
    "a timer of another tenant": ("I10", "UPDATE timer SET tenant_id = 't9'", "timer and its run", "{waiting}"),
    "a lane that stands still": ("I11", "UPDATE lane SET stopped = 'for a test' WHERE id = 2", "lane 2 is stopped"),
    "a timer that is gone": ("I11", "DELETE FROM timer", "{waiting}", "timer that is gone"),
    "a task whose timer is gone": ("I11", "DELETE FROM timer", "human_task {asked}", "timer that is gone"),
    "a task whose timer went without ending it": (
        "I11", "WITH t AS (DELETE FROM timer) UPDATE human_task SET due_at = due_at - 7200",
        "human_task {asked}", "is due and has no timer"
    ),
    "a task that goes on after its end": (
        "I2", "UPDATE event SET type = 'human.task_completed', data = '{{\"status\":\"completed\"}}'"
        " WHERE aggregate_id = '{answered}' AND seq = 1", "human_task {answered} ended 2 times"
    ),
    "a timer that does not fire": (
        "I11", "UPDATE timer SET due_at = now() - interval '1 hour'", "timer", "is overdue"
    ),
    "a node run whose timer went without waking it": (
        "I11", "WITH t AS (DELETE FROM timer) UPDATE node_run SET due_at = due_at - 7200 WHERE status = 'pending'",
        "{waiting}", "is due and has no timer"
    ),
    "a ready step that nobody takes": (
        "I11", "WITH e AS (UPDATE event SET at = at - 100 WHERE aggregate_id = '{done}')"
        " UPDATE node_run SET ready = true, status = 'queued' WHERE run_id = '{done}' AND node_id = 'code'",
        "{done}", "nobody takes it"
    ),
    "a lease that ran out and nobody notices": (
        "I11", "UPDATE node_run SET ready = true, status = 'queued', leased_by = 'w', lease_until = 1"
        " WHERE run_id = '{done}' AND node_id = 'code'", "{done}", "leased by w"
    ),
    "a claim by hand that nobody's clock watches": (
        "I11", "UPDATE node_run SET status = 'running', worker = 'w1' WHERE run_id = '{done}' AND node_id = 'code'",
        "{done}: claimed by w1, and no sweep finds when that ends"
    ),
    "a claim by hand that ran out and nobody notices": (
        "I11", "UPDATE node_run SET status = 'running', leased_by = 'w1', lease_until = 1, listed = 2"
        " WHERE run_id = '{done}' AND node_id = 'code'", "{done}: leased by w1, run out"
    ),
    "a ready step that no executor finds": (
        "I11", "UPDATE node_run SET ready = true, status = 'queued' WHERE run_id = '{done}' AND node_id = 'code'",
        "{done} is not listed for executors"
    ),
    "a ready step that no sweeper offers again": (
        "I11", "WITH e AS (UPDATE event SET at = at - 100 WHERE aggregate_id = '{done}')"
        " UPDATE node_run SET ready = true, status = 'queued', listed = 2, lease_until = 1"
        " WHERE run_id = '{done}' AND node_id = 'code'", "{done}: ready, nobody takes it"
    ),
    "a step that executors find although it has ended": (
        "I11", "UPDATE node_run SET listed = 1 WHERE run_id = '{done}' AND node_id = 'code'",
        "{done} is listed, and nobody is to execute it"
    ),
    "a step that callers find although it has ended": (
        "I11", "UPDATE node_run SET listed = 3 WHERE run_id = '{done}' AND node_id = 'code'",
        "{done} is listed for callers, but none may take it"
    ),
    "a step by hand that no caller finds": (
        "I11", "WITH r AS (UPDATE run SET mode = 'manual' WHERE id = '{done}')"
        " UPDATE node_run SET status = 'queued' WHERE run_id = '{done}' AND node_id = 'code'",
        "{done} is not listed for callers"
    ),
    "a lease that no sweeper finds": (
        "I11", "UPDATE node_run SET ready = true, status = 'queued', leased_by = 'w', lease_until = 1e10"
        " WHERE run_id = '{done}' AND node_id = 'code'", "{done} is not listed for the sweepers"
    ),
    "a node run left behind by its run": (
        "I11", "UPDATE node_run SET status = 'queued' WHERE run_id = '{done}' AND node_id = 'code'",
        "its run {done} is completed"
    ),
    "a run that waits for nothing": (
        "I11", "WITH e AS (UPDATE event SET at = at - 100 WHERE aggregate_id = '{done}')"
        " UPDATE run SET status = 'running' WHERE id = '{done}'", "run {done} is running with nothing in flight"
    ),
    "a queued node of an automatic run": (
        "I11", "WITH e AS (UPDATE event SET at = at - 100 WHERE aggregate_id = '{manual}')"
        " UPDATE run SET mode = 'auto' WHERE id = '{manual}'", "run {manual}", "wait for nothing"
    ),
    "a dead letter without reason": ("I12", "UPDATE dead_letter SET code = '' WHERE code = 'misrouted'", "no reason"),
    "a dead letter that is not on the topic": (
        "I12", "UPDATE dead_letter SET id = '00000000-0000-4000-8000-000000000003' WHERE code = 'misrouted'",
        "00000000-0000-4000-8000-000000000003", "not on the topic"
    ),
    "a record taken from ingress and moved nowhere": (
        "I1", "DELETE FROM dead_letter WHERE code = 'unknown_type'", "ingress/0@0 was taken"
    ),
    "a malformed record that was taken and is no dead letter": (
        "I12", "DELETE FROM dead_letter WHERE code = 'missing_header'", "ingress/0@1 is malformed"
    ),
    "a lane that stands where its topic does not reach": (
        "I11", "UPDATE lane SET next_offset = next_offset + 1000 WHERE id = 0", "lane 0 stands at"
    ),
}  # fmt: skip
"""What is broken: the invariant, the SQL that breaks it, and what the report must name."""


@pytest.mark.parametrize("what", BREAKS)
async def test_what_is_broken_in_the_database_is_reported(
    what: str, broken: tuple[Settings, asyncpg.Connection], worked: Worked
) -> None:
    settings, database = broken
    invariant, sql, *parts = BREAKS[what]
    ids = {name: getattr(worked, name) for name in NAMES}
    touched = await database.execute(sql.format(**ids))
    assert not touched.endswith(" 0"), "nothing was broken"
    report = await examine(settings)
    assert named(report, invariant, *(part.format(**ids) for part in parts)), report.document()


def events_of(records: list[Record], aggregate_id: str) -> list[int]:
    """Where an aggregate's events stand among all records, in order."""
    return [
        index
        for index, record in enumerate(records)
        if record.topic == EVENTS and record.header("ce_subject") == aggregate_id
    ]


def without_the_third_event(records: list[Record], worked: Worked) -> list[Record]:
    gone = events_of(records, worked.done)[2]
    return [record for index, record in enumerate(records) if index != gone]


def with_two_events_swapped(records: list[Record], worked: Worked) -> list[Record]:
    _, second, third, *_ = events_of(records, worked.done)
    records[second], records[third] = records[third], records[second]
    return records


def with_an_event_of_another_body(records: list[Record], worked: Worked) -> list[Record]:
    first = events_of(records, worked.done)[0]
    records[first] = replace(records[first], value=b"{}")
    return records


def with_an_event_nobody_made(records: list[Record], worked: Worked) -> list[Record]:
    forged = records[events_of(records, worked.done)[-1]]
    return [*records, forged.with_header("ce_sequence", "99")]


def with_an_event_on_another_partition(records: list[Record], worked: Worked) -> list[Record]:
    last = events_of(records, worked.done)[-1]
    records[last] = replace(records[last], partition=(records[last].partition + 1) % 3)
    return records


def with_something_that_is_no_event(records: list[Record], worked: Worked) -> list[Record]:
    return [*records, Record(EVENTS, 0, b"x", [("ce_id", b"x"), ("ce_type", b"x")], b"{}", records[0].timestamp)]


def with_a_command_nobody_caused(records: list[Record], worked: Worked) -> list[Record]:
    for index, record in enumerate(records):
        if record.topic == COMMANDS and record.header("ce_type") == "runtime.continue_run":
            records[index] = record.with_header("ce_causationid", "00000000-0000-4000-8000-00000000000c")
    return records


def with_a_command_of_another_tenant(records: list[Record], worked: Worked) -> list[Record]:
    for index, record in enumerate(records):
        if record.topic == COMMANDS and record.header("ce_type") == "runtime.continue_run":
            records[index] = record.with_header("ce_tenantid", "t9")
    return records


def with_a_command_that_nobody_takes(records: list[Record], worked: Worked) -> list[Record]:
    first = next(record for record in records if record.topic == COMMANDS)
    return [*records, replace(first, timestamp=first.timestamp - 100_000)]


def with_a_dead_letter_without_reason(records: list[Record], worked: Worked) -> list[Record]:
    for index, record in enumerate(records):
        if record.topic == DEAD_LETTERS:
            records[index] = replace(record, headers=[pair for pair in record.headers if pair[0] != "x-code"])
    return records


def without_commands(records: list[Record]) -> list[Record]:
    return [record for record in records if record.topic != COMMANDS]


def with_everything_sent_again(records: list[Record], worked: Worked) -> list[Record]:
    return [*records, *(record for record in records if record.topic in (EVENTS, DEAD_LETTERS))]


TOPICS: dict[Callable[[list[Record], Worked], list[Record]], tuple[str, ...]] = {
    without_the_third_event: ("I4", "{done}/4 came", "where seq 3 was due"),
    with_two_events_swapped: ("I4", "{done}/3 came", "where seq 2 was due"),
    with_an_event_of_another_body: ("I9", "{done}/1 is not on the topic as it is in the log"),
    with_an_event_nobody_made: ("I6", "{done}/99 is on the topic and not in the log"),
    with_an_event_on_another_partition: ("I4", "{done}/", "wrong key or partition"),
    with_something_that_is_no_event: ("I6", "is no event"),
    with_a_command_nobody_caused: ("I6", "runtime.continue_run", "00000000-0000-4000-8000-00000000000c"),
    with_a_command_of_another_tenant: ("I10", "commands/", "'t9'"),
    with_a_command_that_nobody_takes: ("I11", "commands/", "waits since"),
    with_a_dead_letter_without_reason: ("I12", "dead-letters/", "no reason"),
}


@pytest.mark.parametrize("change", TOPICS, ids=lambda change: change.__name__)
async def test_what_is_broken_on_a_topic_is_reported(
    change: Callable[[list[Record], Worked], list[Record]], worked: Worked
) -> None:
    invariant, *parts = TOPICS[change]
    prefix = f"t{uuid.uuid4().hex[:12]}."
    settings = await topics_copy(worked.settings, prefix, lambda records: change(records, worked))
    report = await examine(settings)
    assert named(report, invariant, *(part.format(done=worked.done) for part in parts)), report.document()


async def test_causes_from_before_the_topic_of_commands_begins_are_noted_not_reported(
    broken: tuple[Settings, asyncpg.Connection], worked: Worked
) -> None:
    settings, database = broken
    await database.execute("DELETE FROM inbox")
    assert (await examine(settings)).violations["I5"]
    prefix = f"t{uuid.uuid4().hex[:12]}."
    await topics_copy(worked.settings, prefix, without_commands)
    report = await examine(settings.model_copy(update={"topic_prefix": prefix}))
    assert not report.violations["I5"], report.document()
    assert "causes from before topic commands begins" in " ".join(report.notes)


async def test_late_duplicates_on_a_topic_are_no_violation(worked: Worked) -> None:
    prefix = f"t{uuid.uuid4().hex[:12]}."
    change = with_everything_sent_again
    settings = await topics_copy(worked.settings, prefix, lambda records: change(records, worked))
    report = await examine(settings)
    assert report.clean, report.document()


# --- one history ---------------------------------------------------------------------------------------------

RUN, NODE = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e", "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1f"
SCHEDULED = wire.NodeScheduled(node_run_id=NODE, node_id="n", path="n", node_type="code", kind="code", ready=True)
REQUEUED = wire.StepRequeued(node_run_id=NODE, lease_token=2, requeues=1)


def history(*events: Event, causes: tuple[str, ...] = ()) -> list[Recorded[Event]]:
    causes = causes or tuple(f"cause {number}" for number in range(len(events)))
    return [
        Recorded(event, RUN, seq, 1.0, "t1", 0, causation_id=cause)
        for seq, (event, cause) in enumerate(zip(events, causes, strict=True), 1)
    ]


def completed(token: int) -> wire.NodeCompleted:
    return wire.NodeCompleted(node_run_id=NODE, lease_token=token)


def test_the_answer_of_the_latest_lease_is_sound() -> None:
    answer = derive(NODE, "result:2")
    sound = history(SCHEDULED, REQUEUED, completed(2), causes=("a", "b", answer))
    assert not [*lease_tokens(sound), *repeated_messages(sound), *sequence(sound), *terminal_transitions(sound)]


def test_the_answer_of_a_lease_that_ran_out_is_reported_even_if_its_event_bears_the_latest_token() -> None:
    answer = derive(NODE, "result:1")
    (problem,) = lease_tokens(history(SCHEDULED, REQUEUED, completed(2), causes=("a", "b", answer)))
    assert NODE in problem
    assert "lease token 1 was taken" in problem


@pytest.mark.parametrize("token", [1, 3])
def test_an_end_under_another_token_is_reported(token: int) -> None:
    (problem,) = lease_tokens(history(SCHEDULED, REQUEUED, completed(token)))
    assert f"ended with lease token {token}, the latest was 2" in problem


def test_a_token_that_is_left_out_is_reported() -> None:
    skipped = wire.StepRequeued(node_run_id=NODE, lease_token=3, requeues=1)
    assert "lease token 3 where 2 was due" in next(lease_tokens(history(SCHEDULED, skipped)))


def test_an_attempt_that_ends_twice_is_reported() -> None:
    retry = wire.NodeRetryScheduled(node_run_id=NODE, attempt=1, error=wire.Failure(code="x"))
    assert "attempt 1 ended again" in next(terminal_transitions(history(SCHEDULED, retry, retry)))


def test_a_run_that_goes_on_after_its_end_is_reported() -> None:
    (problem,) = terminal_transitions(history(wire.RunCompleted(), SCHEDULED))
    assert "went on to seq 2 after its end at seq 1" in problem


def test_every_event_is_folded_by_some_domain() -> None:
    assert set(EVOLVE) == set(registry.EVENTS)


def test_every_invariant_is_broken_somewhere() -> None:
    assert {invariant for invariant, *_ in (*BREAKS.values(), *TOPICS.values())} == set(INVARIANTS)
