"""Producing to Kafka: in order per partition, acknowledged by all replicas, replaced when a send is in doubt."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from bus.store import Out, SendFailed
from schemas.envelope import Headers
from schemas.topics import BROKER_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX

log = logging.getLogger("agent_platform.producer")

LINGER_SECONDS = 0.008
"""A request costs far more than a record: what is not urgent waits so long for company."""


class BusUnavailable(Exception):
    """Kafka did not acknowledge in time. The record may have been written all the same."""


@dataclass(slots=True)
class _Sending:
    """One `publish` call that waits for its round."""

    records: Iterable[Out]
    future: asyncio.Future[None]


class Producer:
    """An idempotent producer that sends in rounds: what waits goes out together, one batch per partition.

    `publish` is `bus.store.Log`. Records are queued before its first suspension, so two calls made one after
    the other keep their order; a round starts when the one before it is acknowledged, which is also how one
    broker connection works. A round that fails or takes longer than `timeout_seconds` fails everything queued
    and replaces the producer: an idempotent batch in flight never expires by itself.

    `ordered` false, for tests only, lets what waits go out although what was before it has failed.
    """

    def __init__(
        self, bootstrap: str, *, prefix: str = "", timeout_seconds: float = 10.0, ordered: bool = True
    ) -> None:
        self._bootstrap = bootstrap
        self._prefix = prefix
        self._timeout = timeout_seconds
        self._ordered = ordered
        self._producer: AIOKafkaProducer | None = None
        self._queue: list[_Sending] = []
        self._urgent = asyncio.Event()
        self._oldest = 0.0
        self._rounds: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Lock = asyncio.Lock()

    async def start(self) -> None:
        """Raises BusUnavailable if Kafka does not answer."""
        await self._started()

    async def stop(self) -> None:
        """Wait for what is queued, within the time-out, and close."""
        if self._rounds is not None:
            await asyncio.wait({self._rounds}, timeout=self._timeout)
        producer, self._producer = self._producer, None
        if producer is not None:
            await _close(producer)

    def enqueue(self, records: Iterable[Out], *, urgent: bool = True) -> asyncio.Future[None]:
        """Queue records for the next round, which iterates over them.

        The future ends as `publish` does; a record that is too large or cannot be made fails this call alone.
        """
        sending = _Sending(records, asyncio.get_running_loop().create_future())
        if not self._queue:
            self._oldest = time.monotonic()
        self._queue.append(sending)
        if urgent:
            self._urgent.set()
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.ensure_future(self._run())
        return sending.future

    async def publish(self, records: Sequence[Out]) -> None:
        if records:
            await self.enqueue(records)

    async def send(self, topic: str, partition: int, key: str | None, headers: Headers, body: bytes) -> None:
        """One record, acknowledged when this returns. Raises BusUnavailable."""
        try:
            await self.publish([Out(-1, 0, topic, partition, key or "", headers, body, "")])
        except SendFailed as error:
            raise BusUnavailable(str(error)) from error

    async def _run(self) -> None:
        """Send round after round until nothing waits."""
        while self._queue:
            await self._linger()
            self._urgent.clear()
            sendings, self._queue = self._queue, []
            try:
                async with asyncio.timeout(self._timeout):
                    await self._round(sendings)
            except Exception as error:  # Whatever it is: nobody may wait for ever for a round that has failed.
                why = f"{type(error).__name__} {error}"
                self._replace(why)
                if self._ordered:
                    sendings += self._queue
                    self._queue = []
                for sending in sendings:
                    if not sending.future.done():
                        sending.future.set_exception(SendFailed(why))
            else:
                for sending in sendings:
                    if not sending.future.done():
                        sending.future.set_result(None)

    async def _linger(self) -> None:
        """Let what is not urgent wait for LINGER_SECONDS, or for something that is."""
        wait = self._oldest + LINGER_SECONDS - time.monotonic()
        if wait > 0 and not self._urgent.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), wait)

    async def _round(self, sendings: Sequence[_Sending]) -> None:
        shares: dict[tuple[str, int], list[Out]] = {}
        for sending in sendings:
            for out in _fitting(sending):
                share = shares.get((out.topic, out.partition))
                if share is None:
                    shares[out.topic, out.partition] = [out]
                else:
                    share.append(out)
        producer = await self._started()
        acknowledged = []
        for (topic, partition), share in shares.items():
            acknowledged += await _batches(producer, self._prefix + topic, partition, share)
        for future in acknowledged:
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


def _fitting(sending: _Sending) -> Sequence[Out]:
    """The records of one call, or none of them if that has failed."""
    try:
        records = list(sending.records)
        largest = max((len(out.body) for out in records), default=0)
        if largest > MESSAGE_BYTES_MAX:
            raise SendFailed(f"a record of {largest} bytes is over {MESSAGE_BYTES_MAX}")
    except Exception as error:  # Whatever making a record raises: others must not fail with it.
        refused = error if isinstance(error, SendFailed) else SendFailed(f"{type(error).__name__} {error}")
        if not sending.future.done():
            sending.future.set_exception(refused)
        return ()
    return records


async def _batches(producer: AIOKafkaProducer, topic: str, partition: int, share: Sequence[Out]) -> list[Any]:
    """Hand one partition's records to the producer: one batch, or several if they do not fit."""
    futures: list[Any] = []
    batch = producer.create_batch()
    for out in share:
        key = out.key.encode() if out.key else None
        if batch.append(timestamp=None, key=key, value=out.body, headers=out.headers) is None:
            futures.append(await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            if batch.append(timestamp=None, key=key, value=out.body, headers=out.headers) is None:
                raise SendFailed("a record does not fit an empty batch")
    futures.append(await producer.send_batch(batch, topic, partition=partition))
    return futures


async def _close(producer: AIOKafkaProducer) -> None:
    """Close without waiting for ever: batches in flight of an idempotent producer do not expire."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(producer.stop(), 2.0)
