"""A publisher of the world outside that writes to topics of ours within Kafka transactions."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence

import orjson
from aiokafka import AIOKafkaProducer, TopicPartition

from schemas.envelope import Envelope
from schemas.messages import derive, natural_id
from tests.poison.corpus import TENANT, TYPE
from tests.poison.raw import RawProducer, RawRecord, Writer, batch

HELD_MILLISECONDS = 60_000


class Publisher:
    """One transactional producer. Transactions are begun, committed and aborted through `producer`."""

    def __init__(self, producer: AIOKafkaProducer, bootstrap: str, id: str) -> None:
        self.producer = producer
        self._bootstrap = bootstrap
        self._id = id

    @property
    def producer_id(self) -> int:
        return int(self.producer._txn_manager.producer_id)

    async def begin(self) -> None:
        await self.producer.begin_transaction()

    async def commit(self) -> None:
        await self.producer.commit_transaction()

    async def abort(self) -> None:
        await self.producer.abort_transaction()

    async def app(self, topic: str, code: str, partition: int = 0) -> int:
        """Send a command that makes app `code`; its offset, once the broker has it."""
        return await self.send(topic, TYPE, code, app_body(code), partition)

    async def send(self, topic: str, type: str, id: str, body: bytes, partition: int = 0) -> int:
        headers = [*Envelope(id, type, TENANT).headers()]
        sent = await self.producer.send_and_wait(topic, body, partition=partition, headers=headers)
        return int(sent.offset)

    async def raw(self, topic: str, records: Sequence[RawRecord], partition: int = 0) -> int:
        """Send one batch as it is, within the transaction, which has written to this partition before."""
        manager = self.producer._txn_manager
        place = TopicPartition(topic, partition)
        writer = Writer(manager.producer_id, manager.producer_epoch, manager.sequence_number(place))
        async with RawProducer(self._bootstrap) as producer:
            offset = await producer.send(topic, partition, batch(records, within=writer), self._id)
        manager.increment_sequence_number(place, len(records))
        return offset


@contextlib.asynccontextmanager
async def publisher(bootstrap: str, *, held_milliseconds: int = HELD_MILLISECONDS) -> AsyncIterator[Publisher]:
    """`held_milliseconds`: so long the broker lets a transaction be open. One that is open at the end stays so."""
    id = f"publisher-{uuid.uuid4().hex[:12]}"
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap, transactional_id=id, transaction_timeout_ms=held_milliseconds
    )
    await producer.start()
    try:
        yield Publisher(producer, bootstrap, id)
    finally:
        await producer.stop()


def app_body(code: str) -> bytes:
    return orjson.dumps({"kind": "app", "code": code, "name": "x"})


def command_of(id: str) -> str:
    """The id under which a record of `ingress` is moved on."""
    return derive(natural_id(TENANT, "command"), id)
