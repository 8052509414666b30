"""Outcomes of commands as they come back on this gateway's partition of `replies`."""

from __future__ import annotations

import asyncio
import contextlib
import logging

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from gateway.http.in_flight import InFlight
from gateway.http.ports import Outcome
from schemas.topics import REPLIES

log = logging.getLogger("agent_platform.replies")

BACK_OFF_SECONDS = 1.0
START_SECONDS_MAX = 5.0


class Replies:
    """`start` before requests are served: it returns once no later reply can be missed, if Kafka answers.

    Else it goes on trying. A reply that gets lost all the same (Kafka away, a worker killed before it sent
    it) is found in Postgres when the wait is over.
    """

    def __init__(self, bootstrap: str, topic_prefix: str, partition: int, in_flight: InFlight) -> None:
        self._bootstrap = bootstrap
        self._partition = TopicPartition(topic_prefix + REPLIES, partition)
        self._in_flight = in_flight
        self._consumer: AIOKafkaConsumer | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                self._consumer = await self._connected()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("Kafka does not answer yet: %s", error)
        self._task = asyncio.create_task(self._listen(), name="replies")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._disconnect()

    async def answers(self) -> None:
        """Return if the leader of this gateway's partition answers, else raise."""
        if self._consumer is None:
            raise ConnectionError("not connected")
        await self._consumer.end_offsets([self._partition])

    async def _connected(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            isolation_level="read_committed",
            fetch_max_wait_ms=100,  # What asks whether Kafka answers waits behind a fetch.
            request_timeout_ms=5_000,
            retry_backoff_ms=100,
        )
        try:
            await consumer.start()
            consumer.assign([self._partition])
            await consumer.seek_to_end(self._partition)
            await consumer.position(self._partition)
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def _disconnect(self) -> None:
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            with contextlib.suppress(KafkaError, OSError):
                await consumer.stop()

    async def _listen(self) -> None:
        while True:
            try:
                if self._consumer is None:
                    self._consumer = await self._connected()
                batches = await self._consumer.getmany(timeout_ms=1_000)
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning("replies are not read: %s", error)
                await self._disconnect()
                await asyncio.sleep(BACK_OFF_SECONDS)
                continue
            for records in batches.values():
                for record in records:
                    self._take(record.value)

    def _take(self, body: bytes | None) -> None:
        try:
            value = orjson.loads(body or b"")
            outcome = Outcome(value["command_id"], value["status"], value["body"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            log.warning("a record on %s is no outcome", self._partition)
            return
        self._in_flight.resolve(outcome)
