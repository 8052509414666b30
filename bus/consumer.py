"""A consumer that no record can stop, and that reads what publishers have committed.

Nothing of a transaction that was aborted is read, and nothing behind the first record of one that is open: order is by
offset. The client library gives up a whole poll when one record has a header name that is not UTF-8, or is compressed
in a way that it has no decoder for; the next poll fails likewise, for every partition. Then one fetch is read here,
leniently.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import LeaderNotAvailableError, UnsupportedCodecError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.offset import OffsetRequest

from bus.record_batches import Aborted, batches, decoded

log = logging.getLogger("agent_platform.consumer")

FETCH_BYTES_MAX = 1024 * 1024
HOLES_MAX = 10_000
"""Remembered at a time, over all partitions; one that is forgotten costs a few fetches."""

UNCOMMITTED, COMMITTED = 0, 1
"""How far a partition is read: to its end, or up to the first open transaction."""
_LATEST = -1
Polled = dict[TopicPartition, list[Any]]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a partition begins, where reading it ends for now, and where it ends itself.

    `end` lies before `high` while a transaction is open: at its first record.
    """

    begin: int
    end: int
    high: int


@dataclass(frozen=True, slots=True)
class Held:
    """An open transaction at the first offset that is not read because of it.

    `since`: when that record was written, in seconds since 1970, by the clock that the topic goes by.
    """

    offset: int
    producer_id: int
    since: float

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return f"an open transaction since {since} (producer {self.producer_id}, offset {self.offset})"


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """`getmany` that gives what is committed, goes on behind any record, and knows which offsets do not exist.

    Transactions of publishers leave such holes: their markers, and all of one that was aborted. Whoever uses it
    seeks each partition before its records count, and tells it by `forget` that a partition may have been read by
    others meanwhile.

    `poll_ms`: so long at least `getmany` waits for the first record, whatever its caller says.
    """

    def __init__(self, *topics: str, poll_ms: int = 0, **options: Any) -> None:
        super().__init__(*topics, **options | {"isolation_level": "read_committed"})
        self._poll_ms = poll_ms
        self._next: dict[TopicPartition, int] = {}
        self._since: dict[TopicPartition, int] = {}
        self._holes: dict[tuple[TopicPartition, int], int] = {}
        self._gone_back: dict[TopicPartition, int] = {}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        super().seek(partition, offset)
        self._next[partition] = self._since[partition] = offset

    def forget(self, places: Iterable[TopicPartition]) -> None:
        """Where these partitions are read on is not known any more."""
        for place in places:
            self._next.pop(place, None)
            self._since.pop(place, None)

    def follows(self, record: Any) -> int:
        """The lowest offset such that nothing exists from there up to this record; its own if that is not known."""
        offset: int = record.offset
        if not self._holes:
            return offset
        return self._holes.get((TopicPartition(record.topic, record.partition), offset), offset)

    def passed(self, place: TopicPartition) -> tuple[int, int]:
        """The offset behind the last record given of a partition, and up to where nothing exists from there on."""
        since = self._since.get(place, 0)
        assignment = self._subscription.subscription.assignment if place in self.assignment() else None
        state = assignment.state_value(place) if assignment is not None else None
        if state is None or place not in self._since or not state.has_valid_position:
            return since, since
        return since, max(since, state.position)

    async def bounds(self, places: Iterable[TopicPartition]) -> dict[TopicPartition, Bounds]:
        """Where these partitions begin and end. Raises KafkaError."""
        wanted = list(places)
        begins = await self.beginning_offsets(wanted)
        # Before the ends: what is appended between them is not held back.
        highs = await latest(self._client, wanted, UNCOMMITTED)
        ends = await self.end_offsets(wanted)
        return {place: Bounds(begins[place], ends[place], max(highs[place], ends[place])) for place in wanted}

    async def held(self, place: TopicPartition, offset: int) -> Held | None:
        """The open transaction whose first record is the first at or behind `offset`. Raises KafkaError.

        None if that record belongs to no transaction: the one that was open has ended.
        """
        data, _ = await self._fetch(place, offset, UNCOMMITTED)
        batch = next((each for each in batches(data) if each.next_offset > offset), None)
        if batch is None or not batch.transactional or batch.control:
            return None
        at = batch.max_timestamp if batch.append_time else batch.first_timestamp
        return Held(offset, batch.producer_id, at / 1_000)

    def gone_back(self) -> dict[TopicPartition, int]:
        """Partitions that since the last call were read from before where they stood, and from which offset.

        Nobody asked for that: the topic was made anew, or lost its records.
        """
        found, self._gone_back = self._gone_back, {}
        return found

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None) -> Polled:
        """As the library's, but one round may exceed `max_records` after a record that it could not decode."""
        wait_ms = max(timeout_ms, self._poll_ms)
        try:
            found: Polled = await super().getmany(*partitions, timeout_ms=wait_ms, max_records=max_records)
        except (UnicodeDecodeError, UnsupportedCodecError) as error:
            log.error("a record cannot be decoded, reading around it: %s", error)
            return await self._read_around()
        for place, records in found.items():
            self._give(place, records)
        return found

    def _give(self, place: TopicPartition, records: list[Any]) -> None:
        """Note where a partition is read on, and what there is not between its records."""
        due = self._since.get(place, records[0].offset)
        if records[0].offset < due:
            self._gone_back[place] = records[0].offset
        self._next[place] = self._since[place] = records[-1].offset + 1
        if records[-1].offset - due + 1 == len(records):
            return
        for record in records:
            if record.offset > due:
                self._holes[place, record.offset] = due
            due = record.offset + 1
        while len(self._holes) > HOLES_MAX:
            del self._holes[next(iter(self._holes))]

    async def _read_around(self) -> Polled:
        """One lenient fetch of each partition from where it stands. Raises KafkaError."""
        starts = {place: self._next[place] for place in self.assignment() - self.paused() if place in self._next}
        for place, start in starts.items():
            super().seek(place, start)  # The failed poll has lost what it had taken so far.
        fetched = await asyncio.gather(*(self._fetch(place, start) for place, start in starts.items()))
        found: Polled = {}
        for (place, start), (data, aborted) in zip(starts.items(), fetched, strict=True):
            if self._next.get(place) != start or place not in self.assignment():
                continue  # Somebody has moved it meanwhile.
            records, after = decoded(place, data, start, aborted)
            if records:
                found[place] = records
                self._give(place, records)
            super().seek(place, after)
            self._next[place] = after  # `_since` stays: what lies between does not exist.
        return found

    async def _fetch(self, place: TopicPartition, offset: int, isolation: int = COMMITTED) -> tuple[bytes, Aborted]:
        request = fetch_request({place: offset}, 0, isolation)
        ((_, data, aborted),) = fetched(await self._client.send(leader_of(self._client, place), request))
        return data, aborted


async def latest(client: AIOKafkaClient, places: Iterable[TopicPartition], isolation: int) -> dict[TopicPartition, int]:
    """Where these partitions end: with COMMITTED before the first open transaction. Raises KafkaError."""
    wanted: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for place in places:
        wanted[leader_of(client, place)][place.topic].append((place.partition, _LATEST))
    found = {}
    for leader, asked in wanted.items():
        response = await client.send(leader, OffsetRequest(-1, isolation, list(asked.items())))
        for topic, parts in response.topics:
            for partition, error, _, offset, *_ in parts:
                if error:
                    raise for_code(error)(f"{topic}/{partition}")
                found[TopicPartition(topic, partition)] = int(offset)
    return found


def fetch_request(starts: Mapping[TopicPartition, int], wait_ms: int, isolation: int = COMMITTED) -> FetchRequest:
    """A fetch of partitions with one leader, each from its offset on, which waits so long for a first record."""
    wanted: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for place, offset in starts.items():
        wanted[place.topic].append((place.partition, offset, FETCH_BYTES_MAX))
    return FetchRequest(wait_ms, 1, FETCH_BYTES_MAX, isolation, list(wanted.items()))


def fetched(response: Any) -> Iterator[tuple[TopicPartition, bytes, Aborted]]:
    """The batches of each partition of an answer, with its transactions that were aborted. Raises KafkaError."""
    for topic, parts in response.topics:
        for part in parts:
            if part[1]:
                raise for_code(part[1])(f"{topic}/{part[0]}")
            aborted = part[-3 if response.API_VERSION >= 11 else -2] or ()
            yield TopicPartition(topic, part[0]), bytes(part[-1] or b""), aborted


def leader_of(client: AIOKafkaClient, place: TopicPartition) -> int:
    """Raises LeaderNotAvailableError."""
    leader = client.cluster.leader_for_partition(place)
    if leader is None or leader < 0:
        raise LeaderNotAvailableError(f"{place.topic}/{place.partition}")
    return int(leader)
