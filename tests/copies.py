"""Copies of a platform's database and topics, to be broken on purpose."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from aiokafka import AIOKafkaProducer

from bus.replay import TopicReader
from infra.local.embedded import EmbeddedStack
from infra.roles.prepare import create_topics, migrate
from infra.settings import Settings
from schemas.envelope import Headers
from schemas.topics import COMMANDS, DEAD_LETTERS, EVENTS, INGRESS
from tests.live import execute

CONSUMED_AND_KEPT = (COMMANDS, INGRESS, EVENTS, DEAD_LETTERS)


@dataclass(frozen=True, slots=True)
class Record:
    topic: str
    partition: int
    key: bytes | None
    headers: Headers
    value: bytes
    timestamp: int

    def header(self, name: str) -> str:
        return dict(self.headers)[name].decode()

    def with_header(self, name: str, value: str) -> Record:
        kept = [pair for pair in self.headers if pair[0] != name]
        return replace(self, headers=[*kept, (name, value.encode())])


Change = Callable[[list[Record]], Sequence[Record]]


@contextlib.asynccontextmanager
async def database_copy(services: EmbeddedStack, settings: Settings, name: str) -> AsyncIterator[Settings]:
    """A copy of a database that nobody is connected to, under `name`; dropped at the end."""
    base, _, source = settings.required_database_url.rpartition("/")
    await execute(services, f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
    try:
        copied = settings.model_copy(update={"database_url": f"{base}/{name}"})
        await migrate(copied)  # A database under another name has other roles.
        yield copied
    finally:
        await execute(services, f'DROP DATABASE "{name}" WITH (FORCE)')


async def topics_copy(settings: Settings, prefix: str, change: Change) -> Settings:
    """Topics of another prefix with what `change` makes of the records, in their order per partition."""
    copied = settings.model_copy(update={"topic_prefix": prefix})
    await create_topics(copied)
    records = change(await all_records(settings))
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap, linger_ms=5, acks="all")
    await producer.start()
    try:
        sent = [
            await producer.send(
                prefix + record.topic,
                partition=record.partition,
                key=record.key,
                value=record.value,
                headers=record.headers,
                timestamp_ms=record.timestamp,
            )
            for record in records
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return copied


async def all_records(settings: Settings) -> list[Record]:
    """Whatever is on the topics that are consumed or kept, in order per partition."""
    found = []
    async with TopicReader(settings.required_kafka_bootstrap, settings.topic_prefix) as reader:
        for topic in CONSUMED_AND_KEPT:
            for partition, extent in (await reader.extents(topic)).items():
                async for records in reader.read(topic, partition, extent):
                    found += [
                        Record(topic, partition, each.key, list(each.headers), each.value, each.timestamp)
                        for each in records
                    ]
    return found
