"""A topic read from its end on, for some keys, on the real thing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError

from bus.producer import Producer
from bus.record_batches import Keyed
from bus.tail import TopicTail
from infra.local.embedded import EmbeddedStack
from infra.settings import Settings
from schemas.topics import EVENTS
from tests.live import prepared, recreate
from tests.patience import patient

pytestmark = pytest.mark.services


@pytest.fixture
async def settings(services: EmbeddedStack) -> AsyncIterator[Settings]:
    async with prepared(services, f"topic_tail_{uuid.uuid4().hex[:8]}") as settings:
        yield settings


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[Producer]:
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix)
    yield producer
    await producer.stop()


@pytest.fixture
async def tail(settings: Settings) -> AsyncIterator[TopicTail]:
    tail = TopicTail(settings.required_kafka_bootstrap, settings.topic_prefix + EVENTS)
    yield tail
    await tail.close()


async def at_end(tail: TopicTail) -> None:
    """Stands at the end. A topic that has just been made may have no leaders yet: whoever reads begins again."""
    async with asyncio.timeout(patient(30)):
        while True:
            try:
                await tail.to_end()
                return
            except (KafkaError, OSError, TimeoutError):
                await tail.close()
                await asyncio.sleep(0.1)


async def read(tail: TopicTail, keys: set[bytes], count: int) -> list[Keyed]:
    found: list[Keyed] = []
    async with asyncio.timeout(patient(30)):
        while len(found) < count:
            found += await tail.read(keys)
    return found


async def test_what_is_written_after_it_stands_at_the_end_is_read_from_every_partition(
    tail: TopicTail, producer: Producer
) -> None:
    await producer.send(EVENTS, 0, "a", [("n", b"before")], b"{}")
    for turn in (b"1", b"2"):  # The second one goes on behind what nobody has read.
        await at_end(tail)
        for partition in range(3):
            for key in ("a", "b"):
                await producer.send(EVENTS, partition, key, [("n", turn)], b"{}")
        assert await read(tail, {b"a"}, 3) == [Keyed(b"a", [("n", turn)])] * 3
        await producer.send(EVENTS, 1, "a", [("n", b"between")], b"{}")


async def test_it_goes_on_after_it_was_closed(tail: TopicTail, producer: Producer) -> None:
    await at_end(tail)
    reading = asyncio.ensure_future(tail.read(set()))
    await asyncio.sleep(0)
    await tail.close()
    await asyncio.wait({reading})
    with pytest.raises(UnknownTopicOrPartitionError):
        await tail.read(set())
    await at_end(tail)
    await producer.send(EVENTS, 2, "a", [], b"{}")
    assert await read(tail, {b"a"}, 1) == [Keyed(b"a", [])]


async def test_a_topic_made_anew_is_an_error_and_then_read_again(
    tail: TopicTail, producer: Producer, settings: Settings
) -> None:
    for _ in range(3):
        await producer.send(EVENTS, 0, "a", [], b"{}")
    await at_end(tail)
    await recreate(settings, EVENTS)
    with pytest.raises((KafkaError, OSError, TimeoutError)):
        await read(tail, {b"a"}, 1)
    await tail.close()
    await at_end(tail)
    await producer.send(EVENTS, 0, "a", [], b"{}")
    assert await read(tail, {b"a"}, 1) == [Keyed(b"a", [])]


async def test_a_server_that_is_not_there_is_said_so() -> None:
    tail = TopicTail("127.0.0.1:1", EVENTS)
    with pytest.raises((KafkaError, OSError, TimeoutError)):
        await at_end(tail)
    await tail.close()
