"""One replay: read a topic from one place to another, hand on what is selected, remember how far it came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition

from bus.consumer import Consumer
from bus.replay import IDLE_POLLS_MAX, Extent, ReadStalled, TopicReader
from bus.worker import GROUP
from infra.history.replay.destinations import Destination
from infra.history.replay.places import From, ReplayRefused, Until, extents
from infra.history.replay.selection import Selection, types_of
from schemas.topics import BROKER_MESSAGE_BYTES_MAX, COMMANDS, EVENTS

RECORDS_MAX = 500
POLL_MILLISECONDS = 1_000


@dataclass(slots=True)
class ReplayReport:
    """`resumed`: the group had been there before, so reading went on from its offsets."""

    read: int = 0
    taken: int = 0
    resumed: bool = False
    offsets: dict[int, int] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        offsets = {str(partition): offset for partition, offset in sorted(self.offsets.items())}
        return {"read": self.read, "taken": self.taken, "resumed": self.resumed, "offsets": offsets}


async def replay(
    bootstrap: str,
    prefix: str,
    topic: str,
    destination: Destination,
    *,
    since: From | None = None,
    until: Until | None = None,
    selection: Selection | None = None,
    group: str = "",
    rate: float = 0.0,
    follow: bool = False,
    on_batch: Callable[[ReplayReport], None] = lambda report: None,
) -> ReplayReport:
    """Read `topic` (without its prefix) and hand it on, each partition in order, at least once.

    `group`: offsets are committed under this name after each batch, and a later replay under it goes on there,
    whatever `since` says; without it nothing is remembered. `rate`: records handed on a second, 0 for no limit.
    `follow`: go on with new records until cancelled. Raises ReplayRefused, TopicMissing, ReadStalled, KafkaError,
    and HandlerFailed after committing what came before.
    """
    if group == prefix + GROUP:
        raise ReplayRefused(f"{group} is the group of the workers; choose another name")
    if selection is not None and selection.types and topic in (EVENTS, COMMANDS):
        types_of(topic, selection.types)
    async with TopicReader(bootstrap, prefix) as reader:
        there = await reader.extents(topic)
    consumer = Consumer(
        bootstrap_servers=bootstrap,
        group_id=group or None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=BROKER_MESSAGE_BYTES_MAX,
    )
    await consumer.start()
    await asyncio.sleep(0)  # The client cannot be stopped before a task of its own has begun.
    try:
        wanted = await extents(consumer, prefix + topic, there, since or From(), until or Until())
        report = ReplayReport()
        if group:
            wanted = await resumed(consumer, there, wanted, report)
        await destination.start(resumed=report.resumed)
        try:
            reading = _Reading(consumer, destination, selection or Selection(), group, Pace(rate), report, on_batch)
            await reading.run(wanted, follow)
        finally:
            await destination.stop()
        return report
    finally:
        await consumer.stop()


async def resumed(
    consumer: Consumer, there: Mapping[int, Extent], wanted: Mapping[TopicPartition, Extent], report: ReplayReport
) -> dict[TopicPartition, Extent]:
    """Begin where the group stands, if it has been there and the topic still holds that.

    Nothing may be assigned before: the consumer would look for a place to read from by itself, and find none.
    """
    found = {}
    for place, extent in wanted.items():
        offset = await consumer.committed(place)
        if offset is None:
            found[place] = extent
            continue
        if not there[place.partition].holds(offset):
            held = (
                f"{place.topic}/{place.partition} holds {there[place.partition].begin} to {there[place.partition].end}"
            )
            raise ReplayRefused(f"the group stands at offset {offset}, and {held}: use another group")
        report.resumed = True
        found[place] = Extent(offset, max(offset, extent.end))
    return found


class Pace:
    """At most so many records a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._due = time.monotonic()

    @property
    def records_max(self) -> int:
        return RECORDS_MAX if not self._rate else max(1, min(RECORDS_MAX, int(self._rate / 4)))

    async def spend(self, records: int) -> None:
        if self._rate and records:
            now = time.monotonic()
            self._due = max(self._due, now) + records / self._rate
            await asyncio.sleep(self._due - now)


class _Reading:
    def __init__(
        self,
        consumer: Consumer,
        destination: Destination,
        selection: Selection,
        group: str,
        pace: Pace,
        report: ReplayReport,
        on_batch: Callable[[ReplayReport], None],
    ) -> None:
        self._consumer = consumer
        self._destination = destination
        self._selection = selection
        self._group = group
        self._pace = pace
        self._report = report
        self._on_batch = on_batch

    async def run(self, wanted: Mapping[TopicPartition, Extent], follow: bool) -> None:
        ends = {} if follow else {place: extent.end for place, extent in wanted.items()}
        going = [place for place, extent in wanted.items() if follow or extent.begin < extent.end]
        if not going:
            return
        self._consumer.assign(going)
        for place in going:
            self._consumer.seek(place, wanted[place].begin)
        idle = 0
        reading, stand = list(going), list[int]()
        while going:
            found = await self._consumer.getmany(timeout_ms=POLL_MILLISECONDS, max_records=self._pace.records_max)
            for place, records in found.items():
                await self._take(place, [each for each in records if follow or each.offset < ends[place]])
            if found:
                self._on_batch(self._report)
            if follow:
                continue
            before, stand = stand, [await self._consumer.position(place) for place in reading]
            idle = 0 if stand != before else idle + 1  # They move without records over what was aborted.
            if idle > IDLE_POLLS_MAX:
                raise ReadStalled(f"{going[0].topic} does not reach its end")
            for place in [each for each in going if await self._consumer.position(each) >= ends[each]]:
                going.remove(place)
                self._consumer.pause(place)

    async def _take(self, place: TopicPartition, records: list[Any]) -> None:
        """Hand on what is selected and commit; a record that fails is where the group will go on."""
        if not records:
            return
        selected = [record for record in records if self._selection.takes(record)]
        taken = await self._destination.take(selected) if selected else 0
        after = records[-1].offset + 1 if taken == len(selected) else selected[taken].offset
        self._report.read += sum(record.offset < after for record in records)
        self._report.taken += taken
        self._report.offsets[place.partition] = after
        if self._group:
            await self._consumer.commit({place: after})
        if taken < len(selected):
            assert self._destination.failed is not None, "fewer were taken"
            raise self._destination.failed
        await self._pace.spend(taken)
