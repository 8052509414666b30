"""Rounds of sending: what goes together, in which order, and when."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bus.producer import Encoded, Producer
from bus.store import Out, SendFailed
from infra.local.embedded import EmbeddedStack
from tests.patience import patient

pytestmark = [pytest.mark.asyncio(loop_scope="module")]
TOPIC = "things"
LONG = 3_600.0
"""Longer than any test may take: who waited for it would not be done in time."""


def things(first: int, count: int, partition: int = 0) -> list[Out]:
    return [
        Out(-1, 0, TOPIC, partition, "key", [("ce_id", b"%d" % number)], b"%d" % number, "t1")
        for number in range(first, first + count)
    ]


class Rounds:
    """A producer on a topic of its own, and what has arrived there."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self._bootstrap = bootstrap
        self._prefix = prefix
        self.producer = Producer(bootstrap, prefix=prefix)

    async def arrived(self, partition: int = 0) -> list[int]:
        place = TopicPartition(self._prefix + TOPIC, partition)
        consumer = AIOKafkaConsumer(bootstrap_servers=self._bootstrap, auto_offset_reset="earliest")
        await consumer.start()
        try:
            consumer.assign([place])
            end = (await consumer.end_offsets([place]))[place]
            found: list[int] = []
            while len(found) < end:
                for records in (await consumer.getmany(timeout_ms=1_000)).values():
                    found += [int(record.value) for record in records]
            return found
        finally:
            await consumer.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def rounds(services: EmbeddedStack) -> AsyncIterator[Rounds]:
    prefix = f"rounds_{os.getpid()}_{uuid.uuid4().hex[:8]}."
    admin = AIOKafkaAdminClient(bootstrap_servers=services.kafka_bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(prefix + TOPIC, 2, 1)])
    finally:
        await admin.close()
    made = Rounds(services.kafka_bootstrap, prefix)
    await made.producer.start()
    try:
        yield made
    finally:
        await made.producer.stop()


async def test_what_waits_goes_with_what_is_sent_at_once_and_before_it(rounds: Rounds) -> None:
    waiting = rounds.producer.enqueue(things(0, 3), patience=LONG)
    async with asyncio.timeout(patient(30)):
        await rounds.producer.publish(things(3, 2))
        await waiting
    assert await rounds.arrived() == [0, 1, 2, 3, 4]


async def test_patience_ends(rounds: Rounds) -> None:
    waiting = rounds.producer.enqueue(things(0, 1), patience=LONG)
    sooner = rounds.producer.enqueue(things(1, 1), patience=0.05)
    assert not waiting.done()
    await sooner
    await waiting
    assert await rounds.arrived() == [0, 1]


async def test_encoded_records_keep_their_place_among_others_of_their_partition(rounds: Rounds) -> None:
    producer = rounds.producer
    first = producer.enqueue((out for out in things(0, 2)), patience=LONG)
    encoded = producer.encoded([*things(2, 2), *things(100, 2, partition=1)])
    assert isinstance(encoded, Encoded)
    second = producer.enqueue(things(4, 2), patience=LONG)
    third = producer.enqueue(encoded, patience=LONG)
    await producer.publish(things(6, 1))
    for each in (first, second, third):
        await each
    assert await rounds.arrived() == [0, 1, 4, 5, 2, 3, 6]
    assert await rounds.arrived(partition=1) == [100, 101]


async def test_what_is_encoded_and_never_sent_leaves_nothing(rounds: Rounds) -> None:
    rounds.producer.encoded(things(0, 3))
    await rounds.producer.publish(things(3, 1))
    assert await rounds.arrived() == [3]


async def test_records_that_cannot_be_made_fail_alone_also_while_they_wait(rounds: Rounds) -> None:
    def broken() -> list[Out]:
        raise ValueError("no record")

    producer = rounds.producer
    failing = producer.enqueue((out for _ in range(1) for out in broken()), patience=LONG)
    encoded = producer.encoded(things(0, 2))
    await producer.publish(encoded)
    with pytest.raises(SendFailed, match="no record"):
        await failing
    assert await rounds.arrived() == [0, 1]
