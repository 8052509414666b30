"""Kafka's record batches, decoded leniently: what the client library cannot decode is decoded here.

Format: Kafka protocol guide, "Record Batch" (magic 2); which transactions were aborted: "Fetch API" and KIP-98.
"""

from __future__ import annotations

import gzip
import logging
import operator
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition, codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.structs import ConsumerRecord

log = logging.getLogger("agent_platform.consumer")

_HEADER = struct.Struct(">qiibIhiqqqhii")
_CODEC, _APPEND_TIME, _TRANSACTIONAL, _CONTROL = 0x07, 0x08, 0x10, 0x20
_DECODERS = {
    1: (lambda: True, gzip.decompress),
    2: (codec.has_snappy, codec.snappy_decode),
    3: (codec.has_lz4, codec.lz4_decode),
    4: (codec.has_zstd, codec.zstd_decode),
}
Aborted = Sequence[tuple[int, int]]
"""Transactions that were aborted: the producer's id, and the offset of its first record."""


def decoded(place: TopicPartition, data: bytes, offset: int, aborted: Aborted = ()) -> tuple[list[Any], int]:
    """The records of whole batches from `offset` on that were not aborted, and the offset behind them.

    `aborted`: transactions with records in `data` that came to nothing, as the broker names them. A batch that
    cannot be read gives records without headers and value: whoever gets them refuses them.
    """
    records: list[Any] = []
    after = offset
    begun = deque(sorted(aborted, key=operator.itemgetter(1)))
    aborting: set[int] = set()
    for batch in batches(data):
        after = max(after, batch.next_offset)
        while begun and begun[0][1] <= batch.base:
            aborting.add(begun.popleft()[0])
        if batch.control:
            aborting.discard(batch.producer_id)  # Its transaction ends here; a later one is named by itself.
            continue
        if batch.transactional and batch.producer_id in aborting:
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
    producer_id: int
    count: int
    body: bytes

    @property
    def transactional(self) -> bool:
        return bool(self.attributes & _TRANSACTIONAL)

    @property
    def append_time(self) -> bool:
        return bool(self.attributes & _APPEND_TIME)

    @property
    def control(self) -> bool:
        return bool(self.attributes & _CONTROL)


def batches(data: bytes) -> Iterator[Batch]:
    """The whole batches; a fetch may end within one."""
    at = 0
    while at + _HEADER.size <= len(data):
        fields = _HEADER.unpack_from(data, at)
        base, length, _, magic, _, attributes, last, first_at, max_at, producer_id, _, _, count = fields
        end = at + 12 + length
        if end > len(data):
            return
        if magic != 2:
            raise CorruptRecordException(f"record batches of magic {magic} are not known")
        body = data[at + _HEADER.size : end]
        yield Batch(base, base + last + 1, attributes, first_at, max_at, producer_id, count, body)
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
    append_time = batch.append_time
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
