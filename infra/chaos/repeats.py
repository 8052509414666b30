"""Records sent once more as they were: some by chance, or a whole partition from its begin."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer

from bus.replay import Extent, TopicReader
from infra.settings import Settings
from schemas.topics import BROKER_MESSAGE_BYTES_MAX, COMMANDS, INGRESS

AT_ONCE = 50


async def some(settings: Settings, random: Random, records_max: int) -> int:
    """Up to so many records of random partitions, in their order; says how many."""
    again = 0
    async with _both(settings) as (reader, producer):
        for topic in (COMMANDS, INGRESS):
            extents = await reader.extents(topic)
            for partition in random.sample(sorted(extents), min(6, len(extents))):
                extent = extents[partition]
                begin = random.randint(extent.begin, max(extent.begin, extent.end - AT_ONCE))
                wanted = Extent(begin, min(extent.end, begin + AT_ONCE, begin + records_max - again))
                again += await _again(reader, producer, topic, partition, wanted)
    return again


async def whole_partition(settings: Settings, random: Random) -> int:
    """All records of one partition; says how many."""
    topic = random.choice((COMMANDS, COMMANDS, INGRESS))
    async with _both(settings) as (reader, producer):
        extents = await reader.extents(topic)
        partition = random.choice(sorted(extents))
        return await _again(reader, producer, topic, partition, extents[partition])


async def everything(settings: Settings) -> int:
    """All records of the consumed topics; says how many."""
    again = 0
    async with _both(settings) as (reader, producer):
        for topic in (COMMANDS, INGRESS):
            for partition, extent in (await reader.extents(topic)).items():
                again += await _again(reader, producer, topic, partition, extent)
    return again


async def _again(reader: TopicReader, producer: AIOKafkaProducer, topic: str, partition: int, extent: Extent) -> int:
    """Send these records again, but poison: each of those is one dead letter, by its offset."""
    sent = 0
    async for records in reader.read(topic, partition, extent):
        futures = []
        for record in records:
            if (record.key or b"").startswith(b"poison-"):
                continue
            futures.append(
                await producer.send(record.topic, record.value, key=record.key, partition=partition,
                                    headers=list(record.headers), timestamp_ms=record.timestamp)
            )  # fmt: skip
        for future in futures:
            await future
        sent += len(futures)
    return sent


@contextlib.asynccontextmanager
async def _both(settings: Settings) -> AsyncIterator[tuple[TopicReader, Any]]:
    bootstrap = settings.required_kafka_bootstrap
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        enable_idempotence=True,
        request_timeout_ms=5_000,
        max_request_size=BROKER_MESSAGE_BYTES_MAX,
    )
    async with TopicReader(bootstrap, settings.topic_prefix) as reader:
        await producer.start()
        try:
            yield reader, producer
        finally:
            await producer.stop()
