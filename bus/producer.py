"""Producing to Kafka: in order per partition, acknowledged by all replicas, replaced when a send is in doubt."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from bus.store import Out, SendFailed
from schemas.envelope import Headers
from schemas.topics import BROKER_MESSAGE_BYTES_MAX, MESSAGE_BYTES_MAX

log = logging.getLogger("agent_platform.producer")


class BusUnavailable(Exception):
    """Kafka did not acknowledge in time. The record may have been written all the same."""


Place = tuple[str, int]
"""A topic without the prefix, and a partition."""


class Encoded(list[Out]):
    """Records by where they go, with the batches that they make up if they are all that goes there in their round."""

    def __init__(
        self, records: Iterable[Out], shares: Mapping[Place, Sequence[Out]], batches: Mapping[Place, Sequence[Any]]
    ) -> None:
        super().__init__(records)
        self.shares = shares
        self.batches = batches


@dataclass(slots=True)
class _Sending:
    """One `publish` call that waits for its round."""

    records: Iterable[Out]
    future: asyncio.Future[None]


class Producer:
    """An idempotent producer that sends in rounds: what waits goes out together, one batch per partition.

    This is `bus.store.Log`. Records are queued before the first suspension of `publish`, so two calls made one
    after the other keep their order; a round starts when the one before it is acknowledged, which is also how one
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
        self._due = math.inf
        self._sooner = asyncio.Event()
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

    def enqueue(self, records: Iterable[Out], *, patience: float = 0.0) -> asyncio.Future[None]:
        """Queue records for the next round, which iterates over them if `encoded` has not before.

        The future ends as `publish` does; a record that is too large or cannot be made fails this call alone.
        """
        sending = _Sending(records, asyncio.get_running_loop().create_future())
        self._queue.append(sending)
        due = time.monotonic() + patience
        if due < self._due:
            self._due = due
            self._sooner.set()
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.ensure_future(self._run())
        return sending.future

    def encoded(self, records: Sequence[Out]) -> Sequence[Out]:
        """See `bus.store.Log`. What waits is encoded too, since it will go with them."""
        producer = self._producer
        if producer is None:
            return records
        for sending in self._queue:
            if not isinstance(sending.records, Encoded):
                sending.records = _encoded(producer, _fitting(sending))
        return _encoded(producer, records)

    async def publish(self, records: Sequence[Out]) -> None:
        if records:
            await self.enqueue(records)

    async def send(self, topic: str, partition: int, key: str | None, headers: Headers, body: bytes) -> None:
        """One record, acknowledged when this returns. Raises BusUnavailable."""
        try:
            await self.publish([Out(-1, 0, topic, partition, key or "", headers, body, "")])
        except SendFailed as error:
            raise BusUnavailable(str(error)) from error

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has, as known for up to 30 s. Raises BusUnavailable."""
        producer = await self._started()
        try:
            return len(await producer.partitions_for(self._prefix + topic))
        except (KafkaError, OSError) as error:
            raise BusUnavailable(f"Kafka at {self._bootstrap} does not know topic {topic}: {error}") from error

    async def _run(self) -> None:
        """Send round after round until nothing waits."""
        while self._queue:
            await self._linger()
            sendings = self._take()
            try:
                async with asyncio.timeout(self._timeout):
                    await self._round(sendings)
            except Exception as error:  # Whatever it is: nobody may wait for ever for a round that has failed.
                why = f"{type(error).__name__} {error}"
                self._replace(why)
                if self._ordered:
                    sendings += self._take()
                for sending in sendings:
                    if not sending.future.done():
                        sending.future.set_exception(SendFailed(why))
            else:
                for sending in sendings:
                    if not sending.future.done():
                        sending.future.set_result(None)

    async def _linger(self) -> None:
        """Wait until the patience of the least patient ends."""
        while (wait := self._due - time.monotonic()) > 0:
            self._sooner.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._sooner.wait()

    def _take(self) -> list[_Sending]:
        sendings, self._queue = self._queue, []
        self._due = math.inf
        return sendings

    async def _round(self, sendings: Sequence[_Sending]) -> None:
        shares: dict[Place, list[Sequence[Out]]] = {}
        ready: dict[Place, Sequence[Any]] = {}
        for sending in sendings:
            records = _fitting(sending)
            encoded = records if isinstance(records, Encoded) else None
            for place, share in _by_place(records).items() if encoded is None else encoded.shares.items():
                together = shares.setdefault(place, [])
                together.append(share)
                if len(together) > 1:
                    ready.pop(place, None)  # A second batch would have to wait for the first.
                elif encoded is not None:
                    ready[place] = encoded.batches[place]
        producer = await self._started()
        batches = [
            (place, batch)
            for place, together in shares.items()
            for batch in ready.get(place) or _batches(producer, chain.from_iterable(together))
        ]
        acknowledged = [
            await producer.send_batch(batch, self._prefix + topic, partition=partition)
            for (topic, partition), batch in batches
        ]
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
    if isinstance(sending.records, Encoded):
        return sending.records
    try:
        records = list(sending.records)
        _check_sizes(records)
    except Exception as error:  # Whatever making a record raises: others must not fail with it.
        refused = error if isinstance(error, SendFailed) else SendFailed(f"{type(error).__name__} {error}")
        if not sending.future.done():
            sending.future.set_exception(refused)
        return ()
    return records


def _check_sizes(records: Iterable[Out]) -> None:
    """Raises SendFailed."""
    largest = max((len(out.body) for out in records), default=0)
    if largest > MESSAGE_BYTES_MAX:
        raise SendFailed(f"a record of {largest} bytes is over {MESSAGE_BYTES_MAX}")


def _by_place(records: Iterable[Out]) -> dict[Place, list[Out]]:
    shares: dict[Place, list[Out]] = {}
    for out in records:
        share = shares.get((out.topic, out.partition))
        if share is None:
            shares[out.topic, out.partition] = [out]
        else:
            share.append(out)
    return shares


def _encoded(producer: AIOKafkaProducer, records: Sequence[Out]) -> Sequence[Out]:
    """Records with their batches; as they are if they cannot be encoded, which their round will say."""
    shares = _by_place(records)
    try:
        _check_sizes(records)
        batches = {place: _batches(producer, share) for place, share in shares.items()}
    except Exception as error:
        log.warning("records cannot be encoded: %s %s", type(error).__name__, error)
        return records
    return Encoded(records, shares, batches)


def _batches(producer: AIOKafkaProducer, share: Iterable[Out]) -> list[Any]:
    """One partition's records as one batch, or several if they do not fit. Raises SendFailed."""
    batch = producer.create_batch()
    found = [batch]
    for out in share:
        key = out.key.encode() if out.key else None
        if batch.append(timestamp=None, key=key, value=out.body, headers=out.headers) is None:
            batch = producer.create_batch()
            found.append(batch)
            if batch.append(timestamp=None, key=key, value=out.body, headers=out.headers) is None:
                raise SendFailed("a record does not fit an empty batch")
    return found


async def _close(producer: AIOKafkaProducer) -> None:
    """Close without waiting for ever: batches in flight of an idempotent producer do not expire."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError, asyncio.CancelledError):
        await asyncio.wait_for(producer.stop(), 2.0)
