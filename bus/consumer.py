"""A consumer that no record can stop: what the client library cannot decode is decoded here, leniently.

The library gives up a whole poll when one record has a header name that is not UTF-8, or is compressed in a way
that it has no decoder for; the next poll fails likewise, for every partition. Format: Kafka protocol guide,
"Record Batch" (magic 2).
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition, codec
from aiokafka.errors import CorruptRecordException, LeaderNotAvailableError, UnsupportedCodecError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import ConsumerRecord

log = logging.getLogger("agent_platform.consumer")

FETCH_BYTES_MAX = 1024 * 1024
HOLES_MAX = 10_000
"""Remembered at a time, over all partitions; one that is forgotten costs a few fetches."""

_HEADER = struct.Struct(">qiibIhiqqqhii")
_CODEC, _APPEND_TIME, _CONTROL = 0x07, 0x08, 0x20
_DECODERS = {
    1: (lambda: True, gzip.decompress),
    2: (codec.has_snappy, codec.snappy_decode),
    3: (codec.has_lz4, codec.lz4_decode),
    4: (codec.has_zstd, codec.zstd_decode),
}
Polled = dict[TopicPartition, list[Any]]


class Consumer(AIOKafkaConsumer):  # type: ignore[misc]
    """`getmany` that goes on behind any record, and knows which offsets do not exist.

    Transactions of publishers leave such holes. Whoever uses it seeks each partition before its records count,
    and tells it by `forget` that a partition may have been read by others meanwhile.

    `poll_ms`: so long at least `getmany` waits for the first record, whatever its caller says.
    """

    def __init__(self, *topics: str, poll_ms: int = 0, **options: Any) -> None:
        super().__init__(*topics, **options)
        self._poll_ms = poll_ms
        self._next: dict[TopicPartition, int] = {}
        self._holes: dict[tuple[TopicPartition, int], int] = {}
        self._gone_back: dict[TopicPartition, int] = {}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        super().seek(partition, offset)
        self._next[partition] = offset

    def forget(self, places: Iterable[TopicPartition]) -> None:
        """Where these partitions are read on is not known any more."""
        for place in places:
            self._next.pop(place, None)

    def follows(self, record: Any) -> int:
        """The lowest offset such that nothing exists from there up to this record; its own if that is not known."""
        offset: int = record.offset
        if not self._holes:
            return offset
        return self._holes.get((TopicPartition(record.topic, record.partition), offset), offset)

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
            self._passed(place, records)
        return found

    def _passed(self, place: TopicPartition, records: list[Any]) -> None:
        """Note where a partition is read on, and what there is not between its records."""
        due = self._next.get(place, records[0].offset)
        if records[0].offset < due:
            self._gone_back[place] = records[0].offset
        self._next[place] = records[-1].offset + 1
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
        for (place, start), data in zip(starts.items(), fetched, strict=True):
            if self._next.get(place) != start or place not in self.assignment():
                continue  # Somebody has moved it meanwhile.
            records, after = decoded(place, data, start)
            if records:
                found[place] = records
                self._passed(place, records)
            super().seek(place, after)
            self._next[place] = after
        return found

    async def _fetch(self, place: TopicPartition, offset: int) -> bytes:
        leader = self._client.cluster.leader_for_partition(place)
        if leader is None or leader < 0:
            raise LeaderNotAvailableError(f"{place.topic}/{place.partition}")
        wanted = [(place.topic, [(place.partition, offset, FETCH_BYTES_MAX)])]
        response = await self._client.send(leader, FetchRequest(0, 1, FETCH_BYTES_MAX, 0, wanted))
        ((_, (part,)),) = response.topics
        if part[1]:
            raise for_code(part[1])(f"{place.topic}/{place.partition}")
        return bytes(part[-1] or b"")


def decoded(place: TopicPartition, data: bytes, offset: int) -> tuple[list[Any], int]:
    """The records of whole batches from `offset` on, and the offset behind them.

    A batch that cannot be read gives records without headers and value: whoever gets them refuses them.
    """
    records: list[Any] = []
    after = offset
    for batch in batches(data):
        after = max(after, batch.next_offset)
        if batch.control:
            continue
        try:
            found = list(_records(place, batch))
        except (ValueError, EOFError, gzip.BadGzipFile, zlib.error, UnsupportedCodecError) as error:
            name = f"{place.topic}/{place.partition}"
            log.error("%s@%d to %d cannot be read: %s", name, batch.base, batch.next_offset - 1, error)
            found = [_record(place, batch, at, 0, None, None, []) for at in range(batch.next_offset - batch.base)]
        records += (record for record in found if record.offset >= offset)
    return records, after


@dataclass(frozen=True, slots=True)
class Batch:
    base: int
    next_offset: int
    attributes: int
    first_timestamp: int
    max_timestamp: int
    count: int
    body: bytes

    @property
    def control(self) -> bool:
        return bool(self.attributes & _CONTROL)


def batches(data: bytes) -> Iterator[Batch]:
    """The whole batches; a fetch may end within one."""
    at = 0
    while at + _HEADER.size <= len(data):
        base, length, _, magic, _, attributes, last, first_at, max_at, _, _, _, count = _HEADER.unpack_from(data, at)
        end = at + 12 + length
        if end > len(data):
            return
        if magic != 2:
            raise CorruptRecordException(f"record batches of magic {magic} are not known")
        body = data[at + _HEADER.size : end]
        yield Batch(base, base + last + 1, attributes, first_at, max_at, count, body)
        at = end


def _records(place: TopicPartition, batch: Batch) -> Iterator[Any]:
    """Raises whatever a broken body makes the reader raise."""
    body = batch.body
    kind = batch.attributes & _CODEC
    if kind:
        known, decode = _DECODERS.get(kind, (lambda: False, gzip.decompress))
        if not known():
            raise UnsupportedCodecError(f"no decoder for compression {kind}")
        body = bytes(decode(body))
    reader = _Reader(body)
    for _ in range(batch.count):
        reader.varint()
        reader.take(1)
        timestamp, offset = reader.varint(), reader.varint()
        key, value = reader.sized(), reader.sized()
        headers = [((reader.sized() or b"").decode("utf-8", "replace"), reader.sized()) for _ in range(reader.varint())]
        yield _record(place, batch, offset, timestamp, key, value, headers)


def _record(
    place: TopicPartition,
    batch: Batch,
    offset: int,
    timestamp: int,
    key: bytes | None,
    value: bytes | None,
    headers: list[tuple[str, bytes | None]],
) -> Any:
    append_time = bool(batch.attributes & _APPEND_TIME)
    return ConsumerRecord(
        topic=place.topic,
        partition=place.partition,
        offset=batch.base + offset,
        timestamp=batch.max_timestamp if append_time else batch.first_timestamp + timestamp,
        timestamp_type=int(append_time),
        key=key,
        value=value,
        checksum=None,
        serialized_key_size=len(key) if key is not None else -1,
        serialized_value_size=len(value) if value is not None else -1,
        headers=tuple(headers),
    )


class _Reader:
    """Reads a record batch's body from its begin. Raises ValueError at its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if count < 0 or len(part) < count:
            raise ValueError("the batch ends within a record")
        self._at += count
        return part

    def varint(self) -> int:
        """Zigzag, base 128, the low group first."""
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value >> 1 ^ -(value & 1)
            shift += 7
            if shift > 63:
                raise ValueError("a number of the batch has no end")

    def sized(self) -> bytes | None:
        size = self.varint()
        return None if size < 0 else self.take(size)
