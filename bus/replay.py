"""Reading topics whole, without a group: every record of a partition from one offset to another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from bus.consumer import Consumer
from schemas.topics import BROKER_MESSAGE_BYTES_MAX

RECORDS_MAX = 1_000
IDLE_MILLISECONDS = 1_000
IDLE_POLLS_MAX = 30


class TopicMissing(Exception):
    """The broker has no such topic."""


class ReadStalled(Exception):
    """Kafka gave no record for so long although the topic goes on."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Which offsets a partition holds: from `begin` up to, not including, `end`."""

    begin: int
    end: int


class TopicReader:
    """Reads partitions one after the other; one read at a time. Commits nothing and joins no group."""

    def __init__(self, bootstrap: str, prefix: str = "") -> None:
        self._prefix = prefix
        self._admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        self._consumer = Consumer(
            bootstrap_servers=bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=BROKER_MESSAGE_BYTES_MAX,
            fetch_max_wait_ms=5,
        )

    async def __aenter__(self) -> Self:
        await self._admin.start()
        await self._consumer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()
        await self._admin.close()

    async def extents(self, topic: str) -> dict[int, Extent]:
        """Where each partition of a topic begins and ends now. Raises TopicMissing."""
        name = self._prefix + topic
        if name not in await self._admin.list_topics():
            raise TopicMissing(f"there is no topic {name}")
        (described,) = await self._admin.describe_topics([name])
        places = [TopicPartition(name, each["partition"]) for each in described["partitions"]]
        begins = await self._consumer.beginning_offsets(places)
        ends = await self._consumer.end_offsets(places)
        return {place.partition: Extent(begins[place], ends[place]) for place in sorted(places)}

    async def read(self, topic: str, partition: int, extent: Extent) -> AsyncIterator[list[Any]]:
        """The partition's records in order, some hundred at a time. Raises ReadStalled."""
        if extent.begin >= extent.end:
            return
        place = TopicPartition(self._prefix + topic, partition)
        self._consumer.assign([place])
        self._consumer.seek(place, extent.begin)
        idle = 0
        while await self._consumer.position(place) < extent.end:
            found = await self._consumer.getmany(timeout_ms=IDLE_MILLISECONDS, max_records=RECORDS_MAX)
            records = [record for record in found.get(place, ()) if record.offset < extent.end]
            idle = 0 if found else idle + 1
            if idle > IDLE_POLLS_MAX:
                raise ReadStalled(f"{place.topic}/{partition} does not reach offset {extent.end}")
            if records:
                yield records
