"""Reads all consumed partitions without a group, from wherever their lanes stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from aiokafka import TopicPartition

from bus.consumer import Consumer
from bus.lanes import INGRESS_BASE, Lane
from bus.store import Incoming
from infra.settings import Settings
from schemas.topics import COMMANDS, INGRESS

POLL_MILLISECONDS = 10
RECORDS_MAX = 40


class LaneReader:
    """`lanes`: the place of each lane, by its id."""

    def __init__(self, settings: Settings) -> None:
        prefix = settings.topic_prefix
        self.lanes = {id: TopicPartition(prefix + COMMANDS, id) for id in range(settings.commands_partitions)}
        self.lanes |= {
            INGRESS_BASE + id: TopicPartition(prefix + INGRESS, id) for id in range(settings.ingress_partitions)
        }
        self._ids = {place: id for id, place in self.lanes.items()}
        self._consumer = Consumer(
            bootstrap_servers=settings.required_kafka_bootstrap, group_id=None, enable_auto_commit=False
        )

    async def __aenter__(self) -> Self:
        await self._consumer.start()
        self._consumer.assign(list(self.lanes.values()))
        for place in self.lanes.values():
            self._consumer.seek(place, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    def seek(self, lanes: Sequence[Lane]) -> None:
        """Read on from where these lanes stand."""
        for lane in lanes:
            self._consumer.seek(self.lanes[lane.id], lane.next_offset)

    def seek_back(self, lanes: Iterable[Lane]) -> None:
        """Fetch again what lanes missed."""
        for lane in lanes:
            if lane.gap:
                lane.gap = False
                lane.gaps += 1
                self._consumer.seek(self.lanes[lane.id], lane.polled)

    async def poll(self) -> list[Incoming]:
        found = await self._consumer.getmany(timeout_ms=POLL_MILLISECONDS, max_records=RECORDS_MAX)
        return [
            Incoming(
                self._ids[place], record.offset, record.key, list(record.headers), record.value or b"",
                record.timestamp / 1_000, follows=self._consumer.follows(record),
            )
            for place, records in found.items() for record in records
        ]  # fmt: skip
