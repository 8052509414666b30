"""Whatever is sent to the consumed topics, the lanes go on: bad records are dead letters with their reason."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence

import asyncpg
import orjson
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bus.replay import TopicReader
from infra.history.verify import verify
from infra.local.embedded import EmbeddedStack
from infra.operate import lanes as lane_operations
from schemas.catalog import CreateDefinition, definition_id
from schemas.envelope import Envelope
from schemas.messages import derive, natural_id
from schemas.topics import COMMANDS, INGRESS, partition_of
from tests.live import Live, prepared, running, until
from tests.poison.corpus import BODY, COMMANDS_PARTITIONS, TENANT, TYPE, Case, for_commands, for_ingress, good_headers
from tests.poison.raw import SNAPPY, RawHeader, RawProducer, RawRecord, batch

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
GOOD_EVERY = 5
REPLY_TO = "poison-replies"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(services: EmbeddedStack) -> AsyncIterator[Live]:
    async with (
        prepared(services, f"poison_{os.getpid()}") as settings,
        running(settings) as live,
    ):
        assert settings.commands_partitions == COMMANDS_PARTITIONS
        yield live
        await resting(live)
        for task in live.tasks:
            assert not task.done(), "a part of the worker has ended"
        report = await verify(settings.required_database_url, settings.required_kafka_bootstrap, settings.topic_prefix)
        assert report.clean, report.document()


async def resting(live: Live) -> None:
    """Wait until every lane has come to its topic's end."""

    async def look() -> bool:
        lanes = await lane_operations.standings(live.settings)
        assert not [lane.stopped for lane in lanes if lane.stopped]
        return all(lane.next_offset == lane.end for lane in lanes)

    await until(look)


async def epochs(live: Live) -> dict[int, int]:
    return {row["id"]: row["epoch"] for row in await live.database.fetch("SELECT id, epoch FROM lane")}


async def send(live: Live, topic: str, cases: Sequence[Case]) -> dict[tuple[int, int], Case]:
    """Send the cases in order; where each of them went."""
    places = {}
    async with RawProducer(live.settings.required_kafka_bootstrap) as producer:
        for case in cases:
            record = RawRecord(case.body, [(name.encode(), value) for name, value in case.headers], case.key)
            data = batch([record], timestamp=case.timestamp)
            offset = await producer.send(live.settings.topic_prefix + topic, case.partition, data)
            places[case.partition, offset] = case
    return places


async def letters(live: Live, topic: str) -> dict[tuple[int, int], asyncpg.Record]:
    rows = await live.database.fetch("SELECT * FROM dead_letter WHERE topic = $1", topic)
    return {(row["partition"], row["offset"]): row for row in rows}


def good_for_ingress(number: int) -> Case:
    body = orjson.dumps({"kind": "app", "code": f"good-{number}", "name": "good"})
    return Case(f"good-{number}", "", body, good_headers(f"good-{number}"))


async def test_every_bad_record_on_ingress_is_a_dead_letter_and_the_good_ones_go_on(live: Live) -> None:
    before = await epochs(live)
    bad = list(for_ingress())
    assert len(bad) >= 60
    mixed: list[Case] = []
    good = 0
    for number, case in enumerate(bad):
        if number % GOOD_EVERY == 0:
            mixed += [good_for_ingress(good), good_for_ingress(good + 1)]
            good += 2
        mixed.append(case)
    mixed += [good_for_ingress(good), good_for_ingress(good + 1)]
    ends = [Case(case.name, case.code, case.body, case.headers, case.key, n % 2) for n, case in enumerate(mixed)]
    places = await send(live, INGRESS, ends)
    await resting(live)

    found = await letters(live, INGRESS)
    for place, case in places.items():
        got = found[place]["code"] if place in found else "no dead letter"
        assert got == (case.code or "no dead letter"), case.name
        if case.code:
            assert found[place]["message_id"] == case.message_id[:128].replace("\x00", "\ufffd"), case.name
            assert len(found[place]["body"]) <= 65_536
            assert found[place]["body_bytes"] == len(case.body or b"")
    for number in range(good + 2):
        id = derive(natural_id(TENANT, "command"), f"good-{number}")
        assert (await live.outcome(id))[0] == "succeeded"
    assert await epochs(live) == before, "no lane was claimed again"


async def test_every_bad_record_on_commands_is_a_dead_letter_and_the_good_ones_go_on(live: Live) -> None:
    before = await epochs(live)
    bad = list(for_commands())
    good = [
        await live.send(CreateDefinition(kind="app", code=f"first-{number}", name="x"), tenant="t3")
        for number in range(8)
    ]
    places = await send(live, COMMANDS, bad)
    good += [
        await live.send(CreateDefinition(kind="app", code=f"last-{number}", name="x"), tenant="t3")
        for number in range(8)
    ]
    for id in good:
        assert (await live.outcome(id))[0] == "succeeded"
    await resting(live)
    found = await letters(live, COMMANDS)
    assert {place: row["code"] for place, row in found.items()} == {
        place: case.code for place, case in places.items()
    }, {case.name: found[place]["code"] for place, case in places.items() if place in found}
    assert await epochs(live) == before, "no lane was claimed again"


async def test_nothing_is_sent_to_the_topic_that_a_record_names(live: Live) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=live.settings.kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(REPLY_TO, 1, 1)])
    finally:
        await admin.close()
    asks: list[tuple[str, bytes | None]] = [("reply_to", REPLY_TO.encode()), ("ce_replyto", REPLY_TO.encode())]
    body = orjson.dumps({"kind": "app", "code": "asks", "name": "x"})
    good = Case("asks", "", body, [*good_headers("asks"), *asks])
    bad = Case("bad", "", b"{", [*good_headers("asks-badly"), *asks])
    await send(live, INGRESS, [good, bad])
    assert (await live.outcome(derive(natural_id(TENANT, "command"), "asks")))[0] == "succeeded"
    await resting(live)
    async with TopicReader(live.settings.required_kafka_bootstrap) as reader:
        (extent,) = (await reader.extents(REPLY_TO)).values()
        assert extent.end == 0


async def test_a_reply_partition_that_is_not_there_holds_nobody_up(live: Live) -> None:
    ids = [
        await live.send(CreateDefinition(kind="app", code=f"far-{number}", name="x"), reply_partition=partition)
        for number, partition in enumerate((99, 1_000_000, 0))
    ]
    for id in ids:
        assert (await live.outcome(id))[0] == "succeeded"


# --- what no client library lets out -------------------------------------------------------------------------


def raw_headers(id: str) -> list[RawHeader]:
    return [(name.encode(), value) for name, value in good_headers(id)]


async def taken(live: Live, id: str) -> str:
    return (await live.outcome(derive(natural_id(TENANT, "command"), id)))[0]


def raw(id: str, *more: RawHeader) -> RawRecord:
    body = orjson.dumps({"kind": "app", "code": id, "name": "x"})
    return RawRecord(body, [*raw_headers(id), *more])


async def put(live: Live, topic: str, data: bytes, partition: int = 0) -> None:
    async with RawProducer(live.settings.required_kafka_bootstrap) as producer:
        await producer.send(live.settings.topic_prefix + topic, partition, data)


async def test_a_header_name_that_is_not_utf_8_stops_nobody(live: Live) -> None:
    """The client library cannot decode such a record, nor any poll that it is in."""
    records = [raw("before"), raw("odd", (b"\xff\xfe", b"x")), raw("behind")]
    await put(live, INGRESS, batch(records))
    await put(live, INGRESS, batch([raw("elsewhere")]), partition=1)
    for id in ("before", "odd", "behind", "elsewhere"):
        assert await taken(live, id) == "succeeded"


async def test_a_header_of_ours_whose_name_is_cut_within_a_letter_is_not_ours(live: Live) -> None:
    headers: list[RawHeader] = [(b"ce_i\xc3", b"x"), (b"ce_type", TYPE.encode())]
    await put(live, INGRESS, batch([RawRecord(BODY, headers), raw("next")]))
    assert await taken(live, "next") == "succeeded"
    codes = {row["code"] for row in (await letters(live, INGRESS)).values() if row["type"] == TYPE}
    assert "missing_header" in codes


async def test_records_compressed_in_any_way_are_taken(live: Live) -> None:
    """The broker undoes the compression of `ingress`: there are ways that this consumer has no decoder for."""
    await put(live, INGRESS, batch([raw("squeezed"), raw("squeezed too")], codec=SNAPPY))
    for id in ("squeezed", "next-to-it"):
        if id == "next-to-it":
            await put(live, INGRESS, batch([raw(id)]))
        assert await taken(live, id) == "succeeded"


async def test_what_cannot_be_decompressed_is_a_dead_letter_and_its_lane_goes_on(live: Live) -> None:
    """On `commands` only our own producers write, and they do not compress."""
    key = definition_id(TENANT, "app", "squeezed")
    lane = partition_of(key, COMMANDS_PARTITIONS)
    before = len(await letters(live, COMMANDS))
    await put(live, COMMANDS, batch([RawRecord(BODY, raw_headers("x")), RawRecord(BODY)], codec=SNAPPY), lane)
    headers = Envelope(derive(key, "after"), TYPE, TENANT, fingerprint="f").headers()
    body = orjson.dumps({"kind": "app", "code": "squeezed", "name": "x"})
    await live.producer.send(COMMANDS, lane, key, headers, body)
    await live.outcome(derive(key, "after"))
    assert len(await letters(live, COMMANDS)) == before + 2


async def test_transactions_of_a_publisher_leave_no_lane_waiting(live: Live) -> None:
    """Their markers take offsets that nobody ever sees."""
    before = await epochs(live)
    producer = AIOKafkaProducer(
        bootstrap_servers=live.settings.kafka_bootstrap, transactional_id=f"poison-{os.getpid()}"
    )
    await producer.start()
    try:
        for number in range(20):
            async with producer.transaction():
                await producer.send(
                    live.settings.topic_prefix + INGRESS,
                    orjson.dumps({"kind": "app", "code": f"transaction-{number}", "name": "x"}),
                    partition=0,
                    headers=[*Envelope(f"transaction-{number}", TYPE, TENANT).headers()],
                )
    finally:
        await producer.stop()
    await put(live, INGRESS, batch([raw("after-them")]))
    for id in (*(f"transaction-{number}" for number in range(20)), "after-them"):
        assert await taken(live, id) == "succeeded"
    assert await epochs(live) == before
