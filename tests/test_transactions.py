"""Only what publishers commit is read: aborted records never happened, open ones hold their partition and are named."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import asyncpg
import orjson
import pytest
import pytest_asyncio
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from bus.lanes import INGRESS_BASE
from bus.replay import Extent, TopicReader
from gateway.http.in_flight import InFlight
from gateway.http.replies import Replies
from infra import topics
from infra.history.verify import Report, verify
from infra.local.embedded import EmbeddedStack
from infra.operate import lanes as lane_operations
from infra.operate import status
from infra.operate.topic_growth import GrowthRefused, grow
from infra.settings import Settings
from schemas.catalog import CreateDefinition, definition_id
from schemas.envelope import Envelope
from schemas.topics import COMMANDS, EVENTS, INGRESS, REPLIES, partition_of
from tests.live import Live, prepared, running, until
from tests.poison.corpus import TENANT, TYPE, good_headers
from tests.poison.raw import RawHeader, RawProducer, RawRecord, batch
from tests.schemas.workflows import node
from tests.test_verify import chain
from tests.transactions import Publisher, app_body, command_of, publisher

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
FLOW = chain(node("start", "start"), node("end", "answer", text="a"))
ODD: RawHeader = (b"\xff\xfe", b"x")
"""A header that the client library cannot decode, nor any poll with it."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(services: EmbeddedStack) -> AsyncIterator[Live]:
    async with prepared(services, f"transactions_{os.getpid()}") as settings, running(settings) as live:
        yield live
        await live.rest()
        report = await examined(settings)
        assert report.clean, report.document()


async def examined(settings: Settings, patience_seconds: float = 5.0) -> Report:
    return await verify(
        settings.required_database_url,
        settings.required_kafka_bootstrap,
        settings.topic_prefix,
        patience_seconds=patience_seconds,
    )


def topic(live: Live, name: str = INGRESS) -> str:
    return live.settings.topic_prefix + name


def publishing(live: Live, **options: int) -> AbstractAsyncContextManager[Publisher]:
    return publisher(live.settings.required_kafka_bootstrap, **options)


def fresh(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:8]}"


def raw(id: str, *more: RawHeader) -> RawRecord:
    headers = [(name.encode(), value) for name, value in good_headers(id)]
    return RawRecord(app_body(id), [*headers, *more])


async def put(live: Live, *records: RawRecord, partition: int = 0, name: str = INGRESS) -> int:
    """Send one batch outside any transaction; its first offset."""
    async with RawProducer(live.settings.required_kafka_bootstrap) as producer:
        return await producer.send(topic(live, name), partition, batch(records))


async def taken(live: Live, id: str) -> str:
    return (await live.outcome(command_of(id)))[0]


async def never(live: Live, *ids: str, partition: int = 0) -> None:
    """Nothing came of these, although what was sent behind them has been taken."""
    behind = fresh("behind")
    await put(live, raw(behind), partition=partition)
    assert await taken(live, behind) == "succeeded"
    await nothing_of(live, *ids)


async def nothing_of(live: Live, *ids: str) -> None:
    query = "SELECT command_id FROM command_outcome WHERE command_id = ANY($1::uuid[])"
    assert await live.database.fetch(query, [command_of(id) for id in ids]) == []
    query = "SELECT message_id FROM dead_letter WHERE message_id = ANY($1::text[])"
    assert await live.database.fetch(query, [*ids, *(command_of(id) for id in ids)]) == []


# --- what lanes take -----------------------------------------------------------------------------------------


async def test_a_run_that_its_publisher_aborts_is_never_made(live: Live) -> None:
    workflow = await live.publish_workflow(fresh("flow"), FLOW)
    body = orjson.dumps({"workflow_id": workflow})
    aborted, committed = fresh("aborted"), fresh("committed")
    async with publishing(live) as sender:
        await sender.begin()
        await sender.send(topic(live), "runtime.create_run", aborted, body)
        await never(live, partition=1)
        await sender.abort()
        await sender.begin()
        await sender.send(topic(live), "runtime.create_run", committed, body)
        await sender.commit()
    assert await live.run_ended(command_of(committed)) == "completed"
    await never(live, aborted)
    assert await live.database.fetchval("SELECT count(*) FROM run WHERE id = $1", command_of(aborted)) == 0


async def test_what_is_committed_is_taken_in_order(live: Live) -> None:
    ids = [fresh(f"committed-{number}") for number in range(5)]
    async with publishing(live) as sender:
        await sender.begin()
        for id in ids:
            await sender.app(topic(live), id)
        await sender.commit()
    for id in ids:
        assert await taken(live, id) == "succeeded"
    query = "SELECT command_id::text FROM command_outcome WHERE command_id = ANY($1::uuid[]) ORDER BY created_at"
    rows = await live.database.fetch(query, [command_of(id) for id in ids])
    assert len(rows) == len(ids)


async def test_of_two_transactions_that_interleave_the_committed_one_is_taken(live: Live) -> None:
    good = [fresh(f"kept-{number}") for number in range(6)]
    bad = [fresh(f"dropped-{number}") for number in range(6)]
    async with publishing(live) as keeps, publishing(live) as drops:
        for part, ends in ((slice(3), (keeps.commit, drops.abort)), (slice(3, 6), (drops.abort, keeps.commit))):
            await keeps.begin()
            await drops.begin()
            for kept, dropped in zip(good[part], bad[part], strict=True):
                await keeps.app(topic(live), kept)
                await drops.app(topic(live), dropped)
            for end in ends:
                await end()
    for id in good:
        assert await taken(live, id) == "succeeded"
    await never(live, *bad)


async def test_an_aborted_transaction_of_many_batches_is_passed_over_and_leaves_no_lag(live: Live) -> None:
    """Nothing comes behind it: the lane must come to its topic's end all the same."""
    bad = [fresh(f"many-{number}") for number in range(60)]
    epochs = await _epochs(live)
    async with publishing(live) as sender:
        await sender.begin()
        for id in bad:
            await sender.app(topic(live), id)
        await sender.abort()
    await live.rest()
    seen, problems = await status.look(live.settings)
    assert (seen.lag, problems) == (0, [])
    await never(live, *bad)
    assert await _epochs(live) == epochs, "no lane was claimed again"


async def test_poison_that_is_aborted_is_no_dead_letter(live: Live) -> None:
    bad = [fresh("odd"), fresh("bad")]
    async with publishing(live) as sender:
        await sender.begin()
        await sender.app(topic(live), bad[0])
        await sender.raw(topic(live), [raw(bad[1], ODD), RawRecord(b"\xff", [(b"ce_id", b"\xff"), ODD])])
        await sender.send(topic(live), "no.such_type", bad[1], b"{")
        before = await live.database.fetchval("SELECT count(*) FROM dead_letter")
        await sender.abort()
    await never(live, *bad)
    assert await live.database.fetchval("SELECT count(*) FROM dead_letter") == before


async def test_what_is_read_around_poison_is_committed_too(live: Live) -> None:
    """A record that the client library cannot decode lies within somebody's aborted transaction."""
    good, bad = [fresh(f"odd-{number}") for number in range(3)], [fresh(f"aborted-{number}") for number in range(4)]
    async with publishing(live) as drops, publishing(live) as keeps:
        await drops.begin()
        await keeps.begin()
        await drops.app(topic(live), bad[0])
        await keeps.app(topic(live), good[0])
        await put(live, raw(good[1], ODD))
        await drops.app(topic(live), bad[1])
        await drops.raw(topic(live), [raw(bad[2], ODD), raw(bad[3])])
        await keeps.raw(topic(live), [raw(good[2], ODD)])
        await drops.abort()
        await keeps.commit()
    for id in good:
        assert await taken(live, id) == "succeeded"
    await never(live, *bad)


async def test_poison_behind_much_that_was_aborted_is_read_around(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """More than one fetch of aborted records, then poison: each fetch must go on behind the last."""
    good = [fresh("far-odd"), fresh("far-next")]
    big = b'{"kind":"app","code":"big","name":"' + b"x" * 700_000 + b'"}'
    async with publishing(live) as sender:
        await sender.begin()
        for _ in range(5):
            await sender.send(topic(live), TYPE, fresh("big"), big)
        await put(live, raw(good[0], ODD))
        await sender.abort()
    epochs = await _epochs(live)
    await put(live, raw(good[1]))
    for id in good:
        assert await taken(live, id) == "succeeded"
    assert await _epochs(live) == epochs
    assert "do not exist" not in caplog.text, "a lane waited for offsets that were known to be holes"


async def test_a_command_that_is_aborted_on_the_commands_topic_is_not_handled(live: Live) -> None:
    aborted, committed = str(uuid.uuid4()), str(uuid.uuid4())
    async with publishing(live) as sender:
        for id, end in ((aborted, sender.abort), (committed, sender.commit)):
            key = definition_id(TENANT, "app", "on-commands")
            partition = partition_of(key, live.settings.commands_partitions)
            headers = [*Envelope(id, TYPE, TENANT, fingerprint="f").headers()]
            await sender.begin()
            await sender.producer.send_and_wait(
                topic(live, COMMANDS), app_body("on-commands"), key=key.encode(), partition=partition, headers=headers
            )
            await end()
    assert (await live.outcome(committed))[0] == "succeeded"
    query = "SELECT count(*) FROM command_outcome WHERE command_id = $1"
    assert await live.database.fetchval(query, aborted) == 0


# --- a publisher that hangs ----------------------------------------------------------------------------------


async def test_a_hanging_transaction_holds_its_partition_until_its_time_out_and_status_says_so(live: Live) -> None:
    hanging, behind, elsewhere = fresh("hanging"), fresh("behind"), fresh("elsewhere")
    async with publishing(live, held_milliseconds=25_000) as sender:
        await sender.begin()
        begin = await sender.app(topic(live), hanging)
        await put(live, raw(behind))
        await put(live, raw(elsewhere), partition=1)
        assert await taken(live, elsewhere) == "succeeded", "other partitions go on"
        seen, problems = await status.look(live.settings)
        (lane,) = [lane for lane in seen.lanes if lane.id == INGRESS_BASE]
        assert lane.lag == 0
        (open,) = seen.open_transactions
        assert (open.held.offset, open.held.producer_id) == (begin, sender.producer_id)
        (problem,) = problems
        assert problem.startswith("partition ingress/0 waits for an open transaction since 20")
        shown = status.document(seen, problems)["open_transactions"]
        assert [(each["topic"], each["partition"], each["hidden"]) for each in shown] == [(INGRESS, 0, 2)]
        assert any(
            "ingress/0 waits for an open transaction" in line for line in status.lines(seen, [], every_lane=False)
        )
        assert (live.worker.end_offset(INGRESS_BASE), live.worker.held_back(INGRESS_BASE)) == (begin, 2)
        await nothing_of(live, hanging, behind)
        report = await examined(live.settings, patience_seconds=0.5)
        assert report.clean, report.document()
        assert any("ingress/0" in note and "open transaction" in note for note in report.notes)
        assert await taken(live, behind) == "succeeded", "the broker has ended it"
    await nothing_of(live, hanging)
    seen, problems = await status.look(live.settings)
    assert problems == []
    assert status.document(seen, problems)["open_transactions"] == []


async def test_the_embedded_broker_lets_no_transaction_be_open_for_long(services: EmbeddedStack) -> None:
    with pytest.raises(Exception, match=r"(?i)time.?out"):
        async with publisher(services.kafka_bootstrap, held_milliseconds=61_000):
            pass


# --- other readers -------------------------------------------------------------------------------------------


async def test_what_an_open_transaction_hides_is_not_reported_as_lost(services: EmbeddedStack) -> None:
    """Somebody else's transaction on `events`: what our workers send lies behind it until it ends."""
    async with prepared(services, f"hidden_{os.getpid()}") as settings, running(settings) as live:
        async with publishing(live) as sender:
            await sender.begin()
            for partition in range(settings.events_partitions):
                await sender.producer.send_and_wait(topic(live, EVENTS), b"{}", partition=partition)
            await live.do(CreateDefinition(kind="app", code="a", name="a"))
            await until(lambda: _all_sent(live))
            report = await examined(settings, patience_seconds=0.5)
            assert report.clean, report.document()
            assert any(note.startswith("not checked: events/0 from 0 on") for note in report.notes), report.notes
            await sender.abort()
        report = await examined(settings)
        assert report.clean, report.document()
        assert report.notes == []


async def stands(settings: Settings, offset: int) -> None:
    """Let the lane of `ingress/0` go on from there; no worker runs."""
    database = await asyncpg.connect(settings.required_database_url)
    try:
        await database.execute("UPDATE lane SET next_offset = $1 WHERE id = $2", offset, INGRESS_BASE)
    finally:
        await database.close()


async def test_a_worker_that_starts_within_an_aborted_transaction_goes_on_behind_it(services: EmbeddedStack) -> None:
    before, bad = fresh("before"), [fresh(f"bad-{n}") for n in range(6)]
    async with prepared(services, f"restarted_{os.getpid()}") as settings:
        name = settings.topic_prefix + INGRESS
        async with publisher(settings.required_kafka_bootstrap) as sender:
            async with running(settings) as live:
                await put(live, raw(before))
                assert await taken(live, before) == "succeeded"
                await sender.begin()
                for id in bad[:3]:
                    await sender.app(name, id)
            middle = await sender.app(name, bad[3])
            for id in bad[4:]:
                await sender.app(name, id)
            await sender.abort()
            await stands(settings, middle)
            async with running(settings) as live:
                await live.rest()
                await never(live, *bad)


async def test_a_lane_that_stands_within_an_open_transaction_waits_for_its_end(services: EmbeddedStack) -> None:
    """It may have been told to stand there; its topic reaches so far, though nobody can read it yet."""
    async with (
        prepared(services, f"within_{os.getpid()}") as settings,
        publisher(settings.required_kafka_bootstrap) as sender,
    ):
        await sender.begin()
        offset = [await sender.app(settings.topic_prefix + INGRESS, fresh("open")) for _ in range(3)][-1]
        await stands(settings, offset)
        async with running(settings) as live:
            await never(live, partition=1)  # So all lanes have looked where they stand.
            assert live.worker.lanes[INGRESS_BASE].stopped == ""
            await sender.abort()
            await never(live)


async def test_a_reader_of_topics_sees_what_was_committed_from_wherever_it_begins(live: Live) -> None:
    good, bad = [fresh(f"good-{n}") for n in range(3)], [fresh(f"bad-{n}") for n in range(4)]
    name = topic(live)
    async with publishing(live) as drops, publishing(live) as keeps:
        begin = await put(live, raw(good[0]), partition=1)
        await drops.begin()
        await keeps.begin()
        within = [await drops.app(name, id, partition=1) for id in bad]
        await keeps.app(name, good[1], partition=1)
        await put(live, raw(good[2]), partition=1)
        async with TopicReader(live.settings.required_kafka_bootstrap, live.settings.topic_prefix) as reader:
            extent = (await reader.extents(INGRESS))[1]
            assert (extent.end, extent.hidden) == (within[0], 6)
            assert await _ids(reader, begin) == good[:1]
        await drops.abort()
        await keeps.commit()
    async with TopicReader(live.settings.required_kafka_bootstrap, live.settings.topic_prefix) as reader:
        assert await _ids(reader, begin) == good
        for offset in within:
            assert await _ids(reader, offset) == good[1:]
        async with topics.administration(live.settings) as admin:
            await live.rest()
            await admin.delete_records({TopicPartition(name, 1): RecordsToDelete(before_offset=within[1])})
        assert (await reader.extents(INGRESS))[1].begin == within[1]
        assert await _ids(reader, within[1]) == good[1:]
    await never(live, *bad, partition=1)


async def _ids(reader: TopicReader, begin: int) -> list[str]:
    """The ids of the records of `ingress/1` from an offset on."""
    found = []
    extent = (await reader.extents(INGRESS))[1]
    async for records in reader.read(INGRESS, 1, Extent(begin, extent.end)):
        found += [dict(record.headers)["ce_id"].decode() for record in records]
    return found


async def test_a_stopped_lane_steps_over_its_record_behind_a_hole(services: EmbeddedStack) -> None:
    """What its lane stands at is the first offset that it has not passed; the record lies behind aborted ones."""
    key = definition_id(TENANT, "app", "a")
    async with prepared(services, f"skipped_{os.getpid()}") as settings, running(settings) as live:
        partition = partition_of(key, settings.commands_partitions)
        headers = [*Envelope(str(uuid.uuid4()), "catalog.reticulate", TENANT, fingerprint="f").headers()]
        async with publishing(live) as sender:
            for end in (sender.abort, sender.commit):
                await sender.begin()
                await sender.producer.send_and_wait(
                    topic(live, COMMANDS), b"{}", key=key.encode(), partition=partition, headers=headers
                )
                await end()
        await until(lambda: _stopped(settings))
        (standing,) = [each for each in await lane_operations.standings(settings) if each.id == partition]
        _, letter = await lane_operations.skip(settings, partition)
        assert (standing.next_offset, letter.offset) == (0, 2), "an aborted record, its marker, the record"
        await live.do(CreateDefinition(kind="app", code="a", name="a"))


async def _all_sent(live: Live) -> bool:
    """Whether the lanes know of all they made that it is on Kafka."""
    return await live.database.fetchval("SELECT bool_and(sent = position) AND sum(position) > 0 FROM lane")  # type: ignore[no-any-return]


async def _stopped(settings: Settings) -> bool:
    return any(lane.stopped for lane in await lane_operations.standings(settings))


async def test_commands_do_not_grow_under_an_open_transaction(services: EmbeddedStack) -> None:
    async with prepared(services, f"grown_{os.getpid()}") as settings:
        async with publisher(settings.required_kafka_bootstrap) as sender:
            await sender.begin()
            await sender.app(settings.topic_prefix + COMMANDS, "open", partition=1)
            with pytest.raises(GrowthRefused, match="commands/1 waits for an open transaction"):
                await grow(settings, COMMANDS, 6)
            await sender.abort()
        assert (await grow(settings, COMMANDS, 6)).moved == 0


async def test_a_gateway_believes_no_outcome_that_was_aborted(live: Live) -> None:
    in_flight = InFlight(10, lambda: 0.0)
    forged, true = str(uuid.uuid4()), str(uuid.uuid4())
    waiting = {id: in_flight.begin(TENANT, id, "f") for id in (forged, true)}
    replies = Replies(live.settings.required_kafka_bootstrap, live.settings.topic_prefix, 0, in_flight)
    await replies.start()
    try:
        async with publishing(live) as sender:
            for id, end in ((forged, sender.abort), (true, sender.commit)):
                await sender.begin()
                body = orjson.dumps({"command_id": id, "status": "succeeded", "body": {}})
                await sender.producer.send_and_wait(topic(live, REPLIES), body, partition=0)
                await end()
        assert (await waiting[true]).status == "succeeded"
        assert not waiting[forged].done()
    finally:
        await replies.stop()


async def _epochs(live: Live) -> dict[int, int]:
    return {row["id"]: row["epoch"] for row in await live.database.fetch("SELECT id, epoch FROM lane")}
