"""A worker: takes records from its lanes, one poll one transaction, and owns the duties of these lanes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from faststream import AckPolicy
from faststream.kafka import KafkaBroker, KafkaMessage

from bus.consumer import Consumer
from bus.kernel import Kernel
from bus.lanes import INGRESS_BASE, Lane
from bus.store import Incoming, SendFailed, Unavailable, Unknown
from schemas.topics import COMMANDS, INGRESS

log = logging.getLogger("agent_platform.worker")

GROUP = "agent-platform"
PAUSE_MILLISECONDS = 2
"""FastStream sleeps so long after a poll that found nothing."""
POLL_MILLISECONDS = 200
"""A poll waits so long for its first record, so few find nothing."""
METADATA_MILLISECONDS = 10_000
"""How long a topic that was made anew, or has more partitions, may go unnoticed."""
FETCH_BYTES = 128 * 1024
"""Of one partition at once, or one batch of records if that is larger: what is fetched early only takes memory."""
TURNS = 5
"""So many turns of the loop bring the answers of steps that take no time, which then join the next batch, and see what
the last batch made on its way to Kafka before the next is decided."""
SWEEP_SECONDS = 0.25
COMMIT_SECONDS = 2.0
RECLAIM_SECONDS = 0.25
INTAKE_RECORDS_MAX = 2_000
INTAKE_BYTES_MAX = 32 * 1024 * 1024
"""Fetched and not handled yet: beyond either nothing more is fetched."""


class DatabaseClock:
    """Database time by our own monotonic clock: its offset is measured anew by `measure`.

    In whole microseconds, as RFC 3339 shows them: else a moment read from an event could lie after the event.
    """

    def __init__(self) -> None:
        self._offset_ns = 0

    def now(self) -> float:
        return (time.monotonic_ns() + self._offset_ns) // 1_000 / 1e6

    async def measure(self, now: Callable[[], Awaitable[float]]) -> None:
        before = time.monotonic_ns()
        there = await now()
        self._offset_ns = int(there * 1e9) - (before + time.monotonic_ns()) // 2


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]
    """Consumes `commands` and `ingress` in one group.

    Life: `start`, then `run` until `stop` is called or it raises; `run` handles, claims, drains, fires timers,
    all in one task, so no two of them meet. Handed-over results come in by `hand_over`, from the same loop.
    """

    def __init__(
        self,
        kernel: Kernel,
        clock: DatabaseClock,
        *,
        bootstrap: str,
        prefix: str = "",
        session_seconds: float = 6.0,
        heartbeat_seconds: float = 0.5,
        records_max: int = 300,
        client_id: str = "worker",
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.kernel = kernel
        self._clock = clock
        self._prefix = prefix
        self._records_max = records_max
        self._on_batch = on_batch
        self._intake: deque[Incoming] = deque()
        self._intake_bytes = 0
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._to_claim: dict[int, float] = {}
        self._assigned: set[int] = set()
        self._stopping = asyncio.Event()
        self._busy = asyncio.Lock()
        self._stored_stops: set[tuple[int, int]] = set()
        self._paced: set[int] = set()
        self._broker = KafkaBroker(
            bootstrap,
            client_id=client_id,
            metadata_max_age_ms=METADATA_MILLISECONDS,
            logger=log,
            log_level=logging.DEBUG,
        )
        self._subscriber = self._broker.subscriber(
            prefix + COMMANDS,
            prefix + INGRESS,
            group_id=prefix + GROUP,
            batch=True,
            max_records=records_max,
            batch_timeout_ms=PAUSE_MILLISECONDS,
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            parser=self._parse,
            decoder=_no_decode,
            listener=self,
            auto_offset_reset="earliest",
            session_timeout_ms=int(session_seconds * 1_000),
            heartbeat_interval_ms=int(heartbeat_seconds * 1_000),
            rebalance_timeout_ms=max(10_000, int(session_seconds * 1_000)),
            max_poll_interval_ms=300_000,
            fetch_max_wait_ms=500,
            max_partition_fetch_bytes=FETCH_BYTES,
            title="commands",
            description="Every command, keyed by its aggregate.",
        )
        self._subscriber(self._on_records)
        kernel.preparations.wake = self._wake.set

    # --- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self._clock.measure(self.kernel.store.now)
        await self._broker.connect()
        made = self._broker.config.broker_config
        made.builder = functools.partial(
            Consumer, poll_ms=POLL_MILLISECONDS, **cast("functools.partial[Any]", made.builder).keywords
        )
        await self._broker.start()

    async def run(self) -> None:
        """Work until stopped. Raises Unavailable when Postgres stays away too long; the process should end then."""
        sweeping = 0.0
        measured = committed = time.monotonic()
        while not self._stopping.is_set():
            async with self._busy:
                await self._claim()
                await self._mend()
                records = self._take()
                if records or self.kernel.preparations.ready:
                    started = time.perf_counter()
                    try:
                        await self.kernel.handle(records)
                    except Unavailable as error:
                        log.error("Postgres is away, these lanes wait for it: %s", error)
                    self._seek_back()
                    self._pace()
                    if self._on_batch is not None:
                        self._on_batch(len(records), time.perf_counter() - started)
                now = time.monotonic()
                if now >= sweeping:
                    sweeping = now + SWEEP_SECONDS
                    await self._sweep()
                if now - measured > 10:
                    measured = now
                    with contextlib.suppress(Unavailable):
                        await self._clock.measure(self.kernel.store.now)
                if now - committed > COMMIT_SECONDS:
                    committed = now
                    await self._commit(self.kernel.lanes.values())
            for _ in range(TURNS):
                await asyncio.sleep(0)
            if not self._intake and not self._stopping.is_set():
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), SWEEP_SECONDS if not self._to_claim else 0.05)

    async def stop(self) -> None:
        """Finish the batch under way, send what it made, leave the group. `run` ends; a second call does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake.set()
        self._room.set()
        async with self._busy:
            sending = [future for lane in self.kernel.lanes.values() for future in lane.unacknowledged]
            if sending:
                await asyncio.wait(sending, timeout=5)
            await self._commit(self.kernel.lanes.values())
            for lane in list(self.kernel.lanes):
                self.kernel.release(lane)
        await self._broker.stop()

    def hand_over(self, records: Iterable[Incoming]) -> None:
        """Results of steps that this process executed: handled as if they had come back from Kafka."""
        self._intake.extend(records)
        self._wake.set()

    @property
    def _consumer(self) -> Any:
        return self._subscriber.consumer

    @property
    def lanes(self) -> dict[int, Lane]:
        return self.kernel.lanes

    def end_offset(self, lane: int) -> int:
        """Where reading the topic of a lane ended when it was fetched last; 0 if it has not been yet."""
        place = self._place(lane)
        return int(self._consumer.last_stable_offset(place) or 0) if place in self._consumer.assignment() else 0

    def held_back(self, lane: int) -> int:
        """How many offsets of a lane's topic an open transaction held back when it was fetched last."""
        place = self._place(lane)
        if place not in self._consumer.assignment():
            return 0
        return max(0, int(self._consumer.highwater(place) or 0) - self.end_offset(lane))

    # --- records ---------------------------------------------------------------------------------------------

    async def _parse(self, records: Any, _: Any) -> KafkaMessage:
        """The whole batch as one raw message: headers are decoded by the kernel, each with its own error."""
        return KafkaMessage(
            body=b"",
            headers={},
            batch_headers=[],
            reply_to="",
            content_type=None,
            message_id="batch",
            correlation_id="batch",
            raw_message=records,
            path={},
            consumer=self._consumer,
        )

    async def _on_records(self, _: Any) -> None:
        records = self._broker.context.get_local("message").raw_message
        consumer = self._consumer
        self._stop_lost(consumer.gone_back())
        self._intake.extend(
            Incoming(
                self._lane_id(record.topic, record.partition),
                record.offset,
                record.key,
                record.headers,
                record.value or b"",
                record.timestamp / 1_000,
                None,
                consumer.follows(record),
            )
            for record in records
        )
        self._intake_bytes += sum(len(record.value or b"") for record in records)
        self._wake.set()
        if len(self._intake) > INTAKE_RECORDS_MAX or self._intake_bytes > INTAKE_BYTES_MAX:
            self._room.clear()
            await self._room.wait()

    def _stop_lost(self, gone_back: Mapping[TopicPartition, int]) -> None:
        """A topic that was made anew gives offsets that its lanes have passed: what is there would count as late."""
        for place, offset in gone_back.items():
            lane = self.kernel.lanes.get(self._lane_id(place.topic, place.partition))
            if lane is not None and lane.usable and offset < lane.next_offset:
                lane.stopped = f"next offset {lane.next_offset}, but the topic goes on at {offset}: it was made anew"
                log.error("lane %d stops: %s; `ap lanes adopt` goes on", lane.id, lane.stopped)

    def _take(self) -> list[Incoming]:
        intake = self._intake
        taken = [intake.popleft() for _ in range(min(len(intake), self._records_max))]
        self._intake_bytes -= sum(len(record.body) for record in taken)
        self._make_room()
        return taken

    def _make_room(self) -> None:
        if len(self._intake) < INTAKE_RECORDS_MAX // 2 and self._intake_bytes < INTAKE_BYTES_MAX // 2:
            self._room.set()

    def _lane_id(self, topic: str, partition: int) -> int:
        return partition + (INGRESS_BASE if topic == self._prefix + INGRESS else 0)

    def _place(self, lane: int) -> TopicPartition:
        if lane >= INGRESS_BASE:
            return TopicPartition(self._prefix + INGRESS, lane - INGRESS_BASE)
        return TopicPartition(self._prefix + COMMANDS, lane)

    # --- lanes -----------------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: Sequence[TopicPartition]) -> None:
        """The batch under way is awaited, bounded; what it wrote is fenced by its epoch anyway."""
        ids = {self._lane_id(place.topic, place.partition) for place in revoked}
        self._assigned -= ids
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(4):
                await self._busy.acquire()
                self._busy.release()
        for id in ids:
            self.kernel.release(id)
            self._to_claim.pop(id, None)

    async def on_partitions_assigned(self, assigned: Sequence[TopicPartition]) -> None:
        self._consumer.forget(assigned)
        for place in assigned:
            id = self._lane_id(place.topic, place.partition)
            self._assigned.add(id)
            self._to_claim[id] = 0.0
        self._wake.set()

    async def _claim(self) -> None:
        """Claim what was assigned; what was lost only after the group has proved that we are still its member."""
        now = time.monotonic()
        for id in self._assigned:
            if id not in self.kernel.lanes and id not in self._to_claim:
                self._to_claim[id] = now + RECLAIM_SECONDS
        fresh = [id for id, due in self._to_claim.items() if not due]
        again = [id for id, due in self._to_claim.items() if due and due <= now]
        if again and not await self._still_member(again):
            for id in again:
                self._to_claim[id] = now + RECLAIM_SECONDS
            again = []
        ids = fresh + again
        if not ids:
            return
        try:
            lanes = await self.kernel.claim(ids)
            await self._position(lanes)
        except (Unavailable, Unknown, SendFailed, KafkaError, IllegalStateError) as error:
            log.warning("claiming lanes failed, trying again: %s", error)
            for id in ids:
                self.kernel.release(id)
                if id in self._assigned:
                    self._to_claim[id] = time.monotonic() + RECLAIM_SECONDS
            return
        for id in ids:
            self._to_claim.pop(id, None)
        log.info("claimed lanes %s", sorted(ids))

    async def _position(self, lanes: Sequence[Lane]) -> None:
        """Read on from where each lane stands; one whose topic does not reach there stops."""
        consumer = self._consumer
        places = {lane: self._place(lane.id) for lane in lanes}
        bounds = await consumer.bounds(places.values())
        for lane, place in places.items():
            if lane.next_offset > bounds[place].high:
                lane.stopped = f"next offset {lane.next_offset} is beyond the topic's end {bounds[place].high}"
            elif lane.next_offset < bounds[place].begin:
                lane.stopped = f"next offset {lane.next_offset} is before the topic's beginning {bounds[place].begin}"
            if lane.stopped:
                log.error("lane %d stops: %s; `ap lanes adopt` goes on", lane.id, lane.stopped)
                consumer.pause(place)
            else:
                consumer.resume(place)
                consumer.seek(place, lane.next_offset)
        self._forget({lane.id for lane in lanes})

    def _seek_back(self) -> None:
        """Fetch again what a lane missed: its records were taken in while it was not ours."""
        for lane in self.kernel.lanes.values():
            if lane.gap:
                lane.gap = False
                lane.gaps += 1
                self._forget({lane.id})
                with contextlib.suppress(IllegalStateError):
                    self._consumer.seek(self._place(lane.id), lane.polled)

    def _pace(self) -> None:
        """Fetch nothing more of a lane whose records wait for a preparation."""
        waiting = {lane.id for lane in self.kernel.lanes.values() if lane.awaits}
        for id in waiting ^ self._paced:
            with contextlib.suppress(IllegalStateError):
                (self._consumer.pause if id in waiting else self._consumer.resume)(self._place(id))
        self._paced = waiting

    def _forget(self, lanes: set[int]) -> None:
        """What was fetched of these lanes comes again: else one gap would look like several."""
        self._intake = deque(record for record in self._intake if record.offset < 0 or record.lane not in lanes)
        self._intake_bytes = sum(len(record.body) for record in self._intake)
        self._make_room()

    async def _still_member(self, lanes: Sequence[int]) -> bool:
        """A commit that the group accepts proves that it still counts us as the owner."""
        places = [self._place(id) for id in lanes]
        consumer = self._consumer
        try:
            held = consumer.assignment()
            offsets = {place: await consumer.position(place) for place in places if place in held}
            if len(offsets) < len(places):
                return False
            await asyncio.wait_for(consumer.commit(offsets), 5)
        except (KafkaError, IllegalStateError, TimeoutError) as error:
            log.info("not claiming again yet: %s", error)
            return False
        return True

    async def _mend(self) -> None:
        """Drain lanes whose send failed; note why lanes stand still."""
        for lane in self.kernel.failed_lanes:
            try:
                await self.kernel.drain(lane)
            except (SendFailed, Unavailable, Unknown) as error:
                log.warning("lane %d cannot send, its records wait: %s", lane.id, error)
                self.kernel.release(lane.id)
        for lane in list(self.kernel.lanes.values()):
            if lane.stopped and (lane.id, lane.epoch) not in self._stored_stops:
                with contextlib.suppress(Unavailable, IllegalStateError):
                    await self.kernel.store.stop(lane.id, lane.epoch, lane.stopped)
                    self._stored_stops.add((lane.id, lane.epoch))
                    self._consumer.pause(self._place(lane.id))

    def _pass_holes(self) -> None:
        """Lanes that have taken all they were given go on behind what does not exist."""
        for lane in self.kernel.lanes.values():
            if lane.usable:
                lane.passes(*self._consumer.passed(self._place(lane.id)))

    async def _sweep(self) -> None:
        self._pass_holes()
        try:
            await self.kernel.fire_timers()
            await self.kernel.list_leases()
            await self.kernel.trim()
            stopped = [lane.id for lane in self.kernel.lanes.values() if lane.stopped]
            if stopped:
                for id in await self.kernel.store.restarted(stopped, [self.kernel.lanes[id].epoch for id in stopped]):
                    self.kernel.release(id)
        except Unavailable as error:
            log.warning("the sweep waits for Postgres: %s", error)

    async def _commit(self, lanes: Iterable[Lane]) -> None:
        """Tell Kafka where the lanes stand, for lag monitors only."""
        held = self._consumer.assignment() if self._consumer is not None else ()
        offsets = {self._place(lane.id): lane.next_offset for lane in lanes if not lane.lost}
        offsets = {place: offset for place, offset in offsets.items() if place in held}
        if offsets:
            with contextlib.suppress(KafkaError, IllegalStateError, TimeoutError):
                await asyncio.wait_for(self._consumer.commit(offsets), 5)


async def _no_decode(_: Any) -> tuple[()]:
    return ()
