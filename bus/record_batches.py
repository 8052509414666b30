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
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

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
_UNREADABLE = (ValueError, EOFError, gzip.BadGzipFile, zlib.error, UnsupportedCodecError)
Aborted = Sequence[tuple[int, int]]
"""Transactions that were aborted: the producer's id, and the offset of its first record."""


def decoded(place: TopicPartition, data: bytes, offset: int, aborted: Aborted = ()) -> tuple[list[Any], int]:
    """The records of whole batches from `offset` on that were not aborted, and the offset behind them.

    `aborted`: transactions with records in `data` that came to nothing, as the broker names them. A batch that
    cannot be read gives records without headers and value: whoever gets them refuses them.
    """
    records: list[Any] = []
    after = offset
    for batch in _not_aborted(data, aborted):
        after = max(after, batch.next_offset)
        if batch.control:
            continue
        try:
            found = list(_records(place, batch))
        except _UNREADABLE as error:
            _log_unreadable(place, batch, error)
            found = [_record(place, batch, at, 0, None, None, []) for at in range(batch.next_offset - batch.base)]
        records += (record for record in found if record.offset >= offset)
    return records, after


class Keyed(NamedTuple):
    """Of a record its key and headers."""

    key: bytes
    headers: Sequence[tuple[str, bytes | None]]


def keyed(
    place: TopicPartition, data: bytes, offset: int, keys: Container[bytes], aborted: Aborted = ()
) -> tuple[list[Keyed], int]:
    """The records with one of these keys that were not aborted, and the offset behind the data that begins at `offset`.

    Of all others no more than the key is read, a fifth of the work. A batch that cannot be read gives none.
    """
    records: list[Keyed] = []
    after = offset
    for batch in _not_aborted(data, aborted):
        after = max(after, batch.next_offset)
        if batch.control:
            continue
        try:
            records += _of_keys(batch, keys)
        except (*_UNREADABLE, IndexError) as error:
            _log_unreadable(place, batch, error)
    return records, after


def _not_aborted(data: bytes, aborted: Aborted) -> Iterator[Batch]:
    """The whole batches but for the records of transactions that came to nothing; with each one's end."""
    begun = deque(sorted(aborted, key=operator.itemgetter(1)))
    aborting: set[int] = set()
    for batch in batches(data):
        while begun and begun[0][1] <= batch.base:
            aborting.add(begun.popleft()[0])
        if batch.control:
            aborting.discard(batch.producer_id)  # Its transaction ends here; a later one is named by itself.
        elif batch.transactional and batch.producer_id in aborting:
            batch = replace(batch, attributes=batch.attributes | _CONTROL)
        yield batch


def _log_unreadable(place: TopicPartition, batch: Batch, error: Exception) -> None:
    name = f"{place.topic}/{place.partition}"
    log.error("%s@%d to %d cannot be read: %s", name, batch.base, batch.next_offset - 1, error)


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


def _body(batch: Batch) -> bytes:
    """What is in a batch, unpacked. Raises whatever a decoder does."""
    kind = batch.attributes & _CODEC
    if not kind:
        return batch.body
    known, decode = _DECODERS.get(kind, (lambda: False, gzip.decompress))
    if not known():
        raise UnsupportedCodecError(f"no decoder for compression {kind}")
    return bytes(decode(batch.body))


def _records(place: TopicPartition, batch: Batch) -> Iterator[Any]:
    """Raises whatever a broken body makes the reader raise."""
    reader = _Reader(_body(batch))
    for _ in range(batch.count):
        reader.varint()
        reader.take(1)
        timestamp, offset = reader.varint(), reader.varint()
        key, value = reader.sized(), reader.sized()
        yield _record(place, batch, offset, timestamp, key, value, reader.headers())


def _of_keys(batch: Batch, keys: Container[bytes]) -> Iterator[Keyed]:
    """As `_records`, but only for these keys; written out, since it is done for every record of a topic.

    Raises IndexError as well.
    """
    body = _body(batch)
    at = 0
    for _ in range(batch.count):
        byte = body[at]
        size, shift = byte & 0x7F, 7
        while byte > 0x7F:
            at += 1
            byte = body[at]
            size |= (byte & 0x7F) << shift
            shift += 7
        at += 1
        end = at + (size >> 1)
        at += 1  # Attributes; then the two numbers of its time and offset.
        while body[at] > 0x7F:
            at += 1
        at += 1
        while body[at] > 0x7F:
            at += 1
        at += 1
        size = body[at]
        is_long = size > 0x7F or size & 1  # Or there is none.
        key = _Reader(body, at).sized() if is_long else body[at + 1 : at + 1 + (size >> 1)]
        if key is not None and key in keys:
            reader = _Reader(body, at)
            reader.sized()
            reader.sized()
            yield Keyed(key, reader.headers())
        if end <= at:
            raise ValueError("a record of the batch has no end")
        at = end


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
    """Reads a record batch's body from a place on. Raises ValueError at its end."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self._data = data
        self._at = at

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

    def headers(self) -> list[tuple[str, bytes | None]]:
        return [((self.sized() or b"").decode("utf-8", "replace"), self.sized()) for _ in range(self.varint())]
