"""Reading topics whole, without a group: every record of a partition from one offset to another."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from bus.consumer import Consumer, Held
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
    """Which offsets of a partition can be read: from `begin` up to, not including, `end`.

    `hidden`: how many offsets from `end` on are held back by an open transaction.
    """

    begin: int
    end: int
    hidden: int = 0

    def holds(self, offset: int) -> bool:
        """Whether somebody who reads the partition may stand there."""
        return self.begin <= offset <= self.end + self.hidden


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
        """Where each partition of a topic begins and where reading it ends now. Raises TopicMissing."""
        name = self._prefix + topic
        if name not in await self._admin.list_topics():
            raise TopicMissing(f"there is no topic {name}")
        (described,) = await self._admin.describe_topics([name])
        places = [TopicPartition(name, each["partition"]) for each in described["partitions"]]
        found = await self._consumer.bounds(sorted(places))
        return {place.partition: Extent(each.begin, each.end, each.high - each.end) for place, each in found.items()}

    async def held(self, topic: str, partition: int, extent: Extent) -> Held | None:
        """The open transaction that hides what is behind the extent, if it is still open."""
        if not extent.hidden:
            return None
        return await self._consumer.held(TopicPartition(self._prefix + topic, partition), extent.end)

    async def read(self, topic: str, partition: int, extent: Extent) -> AsyncIterator[list[Any]]:
        """The partition's records in order, some hundred at a time. Raises ReadStalled."""
        if extent.begin >= extent.end:
            return
        place = TopicPartition(self._prefix + topic, partition)
        self._consumer.assign([place])
        self._consumer.seek(place, extent.begin)
        idle, at = 0, extent.begin
        while at < extent.end:
            found = await self._consumer.getmany(timeout_ms=IDLE_MILLISECONDS, max_records=RECORDS_MAX)
            records = [record for record in found.get(place, ()) if record.offset < extent.end]
            before, at = at, await self._consumer.position(place)
            idle = 0 if at > before else idle + 1  # It moves without records over what was aborted.
            if idle > IDLE_POLLS_MAX:
                raise ReadStalled(f"{place.topic}/{partition} does not reach offset {extent.end}")
            if records:
                yield records
