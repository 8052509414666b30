"""Record batches byte by byte, for what no client library lets out (Kafka protocol guide, "Record Batch")."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c

RawHeader = tuple[bytes, bytes | None]
SNAPPY = 2
TRANSACTIONAL = 0x10
_XERIAL = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record whose header names are bytes."""

    value: bytes | None
    headers: Sequence[RawHeader] = ()
    key: bytes | None = None


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes a batch of a transaction: its producer's id and epoch, and the number of the batch's first record."""

    producer_id: int
    epoch: int
    sequence: int


def batch(
    records: Sequence[RawRecord], *, codec: int = 0, timestamp: float | None = None, within: Writer | None = None
) -> bytes:
    """One record batch with these records. `codec`: 0 none, SNAPPY. `within`: it belongs to a transaction."""
    at = int((time.time() if timestamp is None else timestamp) * 1_000)
    body = b"".join(_record(number, record) for number, record in enumerate(records))
    if codec == SNAPPY:
        body = _snappy(body)
    last = len(records) - 1
    attributes = codec | (TRANSACTIONAL if within else 0)
    writer = (within.producer_id, within.epoch, within.sequence) if within else (-1, -1, -1)
    checked = struct.pack(">hiqqqhii", attributes, last, at, at, *writer, len(records)) + body
    return struct.pack(">qiibI", 0, 9 + len(checked), 0, 2, calc_crc32c(checked)) + checked


class RawProducer:
    """Sends batches as they are."""

    def __init__(self, bootstrap: str) -> None:
        self._client = AIOKafkaClient(bootstrap_servers=bootstrap)

    async def __aenter__(self) -> Self:
        await self._client.bootstrap()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def send(self, topic: str, partition: int, data: bytes, transactional_id: str | None = None) -> int:
        """The offset of the batch's first record, once the broker has it. AssertionError if the broker refuses it."""
        self._client.add_topic(topic)
        await self._client.force_metadata_update()
        leader = self._client.cluster.leader_for_partition(TopicPartition(topic, partition))
        request = ProduceRequest(transactional_id, -1, 10_000, [(topic, [(partition, data)])])
        response = await self._client.send(leader, request)
        ((_, ((_, error, offset, *_),)),) = response.topics
        assert error == 0, error
        return int(offset)


def _varint(value: int) -> bytes:
    """Zigzag, base 128, the low group first."""
    value = value << 1 ^ value >> 63
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _record(offset: int, record: RawRecord) -> bytes:
    headers = b"".join(_bytes(name) + _bytes(value) for name, value in record.headers)
    inner = b"\x00" + _varint(0) + _varint(offset) + _bytes(record.key) + _bytes(record.value)
    inner += _varint(len(record.headers)) + headers
    return _varint(len(inner)) + inner


def _snappy(data: bytes) -> bytes:
    """Framed as Kafka's clients frame it, in literals only: valid, if not small."""
    length, value = b"", len(data)
    while value > 0x7F:
        length += bytes([value & 0x7F | 0x80])
        value >>= 7
    length += bytes([value])
    literals = b"".join(
        b"\xf4" + struct.pack("<H", len(part) - 1) + part
        for part in (data[start : start + 65_536] for start in range(0, len(data), 65_536))
    )
    block = length + literals
    return _XERIAL + struct.pack(">i", len(block)) + block
