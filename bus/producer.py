"""Producing to Kafka: in order per partition, acknowledged by all replicas, replaced when a send is in doubt."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from bus.store import Out, SendFailed
from schemas.envelope import Headers
from schemas.topics import BROKER_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX

log = logging.getLogger("agent_platform.producer")


class BusUnavailable(Exception):
    """Kafka did not acknowledge in time. The record may have been written all the same."""


class _Sending:
    """One `publish` call: done when each of its partitions has acknowledged its share."""

    __slots__ = ("future", "left")

    def __init__(self, left: int) -> None:
        self.left = left
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(self, error: BaseException | None) -> None:
        self.left -= 1
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(SendFailed(str(error)))
        elif self.left == 0:
            self.future.set_result(None)


class Producer:
    """An idempotent producer with one queue per partition: what waits there goes out as one batch.

    `publish` is `bus.store.Log`. Records are queued before its first suspension, so two calls made one after
    the other keep their order. A send that fails or takes longer than `timeout_seconds` fails every record
    behind it on that partition and replaces the producer: an idempotent batch in flight never expires by itself.
    """

    def __init__(self, bootstrap: str, *, prefix: str = "", timeout_seconds: float = 10.0) -> None:
        self._bootstrap = bootstrap
        self._prefix = prefix
        self._timeout = timeout_seconds
        self._producer: AIOKafkaProducer | None = None
        self._queues: dict[tuple[str, int], deque[tuple[list[Out], _Sending]]] = {}
        self._pumps: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Lock = asyncio.Lock()

    async def start(self) -> None:
        """Raises BusUnavailable if Kafka does not answer."""
        await self._started()

    async def stop(self) -> None:
        """Wait for what is queued, within the time-out, and close."""
        if self._pumps:
            await asyncio.wait(self._pumps, timeout=self._timeout)
        producer, self._producer = self._producer, None
        if producer is not None:
            await _close(producer)

    async def publish(self, records: Sequence[Out]) -> None:
        shares: dict[tuple[str, int], list[Out]] = {}
        for record in records:
            share = shares.get((record.topic, record.partition))
            if share is None:
                shares[record.topic, record.partition] = [record]
            else:
                share.append(record)
        if not shares:
            return
        sending = _Sending(len(shares))
        for place, share in shares.items():
            queue = self._queues.get(place)
            if queue is None:
                queue = self._queues[place] = deque()
                queue.append((share, sending))
                pump = asyncio.ensure_future(self._pump(place, queue))
                self._pumps.add(pump)
                pump.add_done_callback(self._pumps.discard)
            else:
                queue.append((share, sending))
        await sending.future

    async def send(self, topic: str, partition: int, key: str | None, headers: Headers, body: bytes) -> None:
        """One record, acknowledged when this returns. Raises BusUnavailable."""
        try:
            await self.publish([Out(-1, 0, topic, partition, key or "", headers, body, "")])
        except SendFailed as error:
            raise BusUnavailable(str(error)) from error

    async def _pump(self, place: tuple[str, int], queue: deque[tuple[list[Out], _Sending]]) -> None:
        """Send what waits for one partition until nothing does."""
        while queue:
            share = list(queue)
            queue.clear()
            try:
                await asyncio.wait_for(self._send(place, [out for outs, _ in share for out in outs]), self._timeout)
            except (KafkaError, BusUnavailable, OSError, TimeoutError, SendFailed) as error:
                self._replace(f"{place[0]}/{place[1]}: {type(error).__name__} {error}")
                share.extend(queue)
                queue.clear()
                for _, sending in share:
                    sending.done(SendFailed(f"{place[0]}/{place[1]}: {type(error).__name__} {error}"))
            else:
                for _, sending in share:
                    sending.done(None)
        del self._queues[place]

    async def _send(self, place: tuple[str, int], records: list[Out]) -> None:
        topic = self._prefix + place[0]
        producer = await self._started()
        futures: list[Any] = []
        batch = producer.create_batch()
        for out in records:
            if len(out.body) > MESSAGE_BYTES_MAX:
                raise SendFailed(f"a record of {len(out.body)} bytes is over {MESSAGE_BYTES_MAX}")
            key = out.key.encode() if out.key else None
            if batch.append(timestamp=None, key=key, value=out.body, headers=out.headers) is None:
                futures.append(await producer.send_batch(batch, topic, partition=place[1]))
                batch = producer.create_batch()
                if batch.append(timestamp=None, key=key, value=out.body, headers=out.headers) is None:
                    raise SendFailed("a record does not fit an empty batch")
        futures.append(await producer.send_batch(batch, topic, partition=place[1]))
        for future in futures:
            await future

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is not None:
            return self._producer
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=self._bootstrap,
                    enable_idempotence=True,
                    acks="all",
                    linger_ms=0,
                    max_request_size=BROKER_MESSAGE_BYTES_MAX,
                    max_batch_size=BROKER_MESSAGE_BYTES_MAX // 8,
                    request_timeout_ms=int(self._timeout * 1_000),
                    metadata_max_age_ms=30_000,
                )
                try:
                    await asyncio.wait_for(producer.start(), self._timeout)
                except (KafkaError, OSError, TimeoutError) as error:
                    await _close(producer)
                    raise BusUnavailable(f"Kafka at {self._bootstrap} does not answer: {error}") from error
                self._producer = producer
            return self._producer

    def _replace(self, why: str) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            log.warning("the producer is replaced: %s", why)
            closing = asyncio.ensure_future(_close(producer))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


async def _close(producer: AIOKafkaProducer) -> None:
    """Close without waiting for ever: batches in flight of an idempotent producer do not expire."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(producer.stop(), 2.0)
