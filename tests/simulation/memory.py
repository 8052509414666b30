"""A store and a log in memory with the contracts of `bus.store`, for the simulation and the contract suite."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bus.store import (
    Admitted,
    Advance,
    Claimed,
    DeadLetter,
    Fenced,
    Incoming,
    Logged,
    Out,
    Outcome,
    Poison,
    SendFailed,
    Timer,
    Writes,
)
from infra.db import TableSpec

Point = Callable[[str], Awaitable[None]]
"""Called at named points; a test suspends or crashes the caller there."""


async def no_point(name: str) -> None:
    return None


@dataclass
class LaneRow:
    epoch: int = 0
    next_offset: int = 0
    position: int = 0
    sent: int = 0
    stopped: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryDatabase:
    """What Postgres holds. Transactions buffer their writes, lock lanes, and apply all or nothing."""

    def __init__(self, lanes: Iterable[int], specs: Iterable[TableSpec], clock: Callable[[], float]) -> None:
        self.lanes = {lane: LaneRow() for lane in lanes}
        self.specs = {spec.name: spec for spec in specs}
        self.tables: dict[str, dict[str, Any]] = {name: {} for name in self.specs}
        self.events: dict[tuple[str, int], Logged] = {}
        self.outbox: dict[tuple[int, int], Out] = {}
        self.inbox: set[tuple[str, int]] = set()
        self.outcomes: dict[str, Outcome] = {}
        self.timers: dict[str, tuple[float, Timer]] = {}
        self.letters: dict[str, DeadLetter] = {}
        self.clock = clock
        self.fence = True

    def check(self, advances: Sequence[Advance]) -> None:
        lost = [
            a.lane
            for a in advances
            if self.lanes[a.lane].epoch != a.epoch or self.lanes[a.lane].next_offset != a.expected
        ]
        if lost and self.fence:
            raise Fenced(lost)

    def apply(self, writes: Writes) -> None:
        """Everything or nothing. Raises Poison for a key that is there already."""
        for name, rows in writes.inserts.items():
            for row in rows:
                if row.id in self.tables[name]:
                    raise Poison(f"23505: {name} {row.id} exists")
        for logged in writes.events:
            if (logged.recorded.aggregate_id, logged.recorded.seq) in self.events:
                raise Poison(f"23505: event {logged.recorded.aggregate_id}/{logged.recorded.seq} exists")
        for name, rows in writes.inserts.items():
            self.tables[name].update((row.id, row) for row in rows)
        for name, rows in writes.updates.items():
            self.tables[name].update((row.id, row) for row in rows)
        for logged in writes.events:
            self.events[logged.recorded.aggregate_id, logged.recorded.seq] = logged
        for out in writes.outbox:
            self.outbox[out.lane, out.position] = out
        for timer in writes.timers:
            self.timers.setdefault(timer.id, (self.clock() + timer.seconds, timer))
        for outcome in writes.outcomes:
            self.outcomes[outcome.command_id] = outcome
        for letter in writes.dead_letters:
            self.letters[letter.id] = letter
        for a in writes.advances:
            row = self.lanes[a.lane]
            row.next_offset, row.position, row.sent = a.next, a.position, max(row.sent, a.sent)
            for key in [key for key in self.outbox if key[0] == a.lane and key[1] <= a.sent]:
                del self.outbox[key]


class MemoryStore:
    """`Store` of one process on a shared database."""

    def __init__(self, database: MemoryDatabase, point: Point = no_point) -> None:
        self.database = database
        self._point = point

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[MemoryUnit]:
        unit = MemoryUnit(self.database, self._point)
        try:
            yield unit
            await self._point("before_commit")
            if unit.writes is not None:
                self.database.apply(unit.writes)
            self.database.inbox |= unit.inbox
            for outcome in unit.outcomes:
                self.database.outcomes.setdefault(outcome.command_id, outcome)
            await self._point("after_commit")
        finally:
            unit.unlock()

    async def write(self, writes: Writes) -> None:
        async with self.unit() as unit:
            await unit.lock(writes.advances)
            await unit.save(writes)

    async def claim(self, lanes: Sequence[int], owner: str) -> list[Claimed]:
        claimed = []
        for lane in sorted(lanes):
            row = self.database.lanes[lane]
            async with row.lock:
                row.epoch += 1
                row.stopped = ""
                claimed.append(Claimed(lane, row.epoch, row.next_offset, row.position, row.sent))
        return claimed

    async def unsent(self, lane: int, sent: int) -> tuple[list[Logged], list[Out]]:
        events = [e for e in self.database.events.values() if e.recorded.lane == lane and e.position > sent]
        outs = [out for key, out in self.database.outbox.items() if key[0] == lane and key[1] > sent]
        return sorted(events, key=lambda e: e.position), sorted(outs, key=lambda out: out.position)

    async def stop(self, lane: int, epoch: int, reason: str) -> None:
        if self.database.lanes[lane].epoch == epoch:
            self.database.lanes[lane].stopped = reason

    async def now(self) -> float:
        return self.database.clock()


class MemoryUnit:
    def __init__(self, database: MemoryDatabase, point: Point) -> None:
        self._database = database
        self._point = point
        self._locked: list[asyncio.Lock] = []
        self.writes: Writes | None = None
        self.inbox: set[tuple[str, int]] = set()
        self.outcomes: list[Outcome] = []

    async def lock(self, advances: Sequence[Advance]) -> None:
        for advance in sorted(advances, key=lambda a: a.lane):
            lock = self._database.lanes[advance.lane].lock
            await lock.acquire()
            self._locked.append(lock)
        self._database.check(advances)
        await self._point("locked")

    def unlock(self) -> None:
        for lock in self._locked:
            lock.release()
        self._locked.clear()

    async def admit(self, inbox: Sequence[tuple[str, int, float]], outcomes: Sequence[Outcome]) -> Admitted:
        keys = {(id, redrive) for id, redrive, _ in inbox}
        repeats = frozenset(keys & self._database.inbox)
        stored = {
            o.command_id: self._database.outcomes[o.command_id]
            for o in outcomes
            if o.command_id in self._database.outcomes
        }
        self.inbox = keys
        self.outcomes = list(outcomes)
        return Admitted(repeats, stored)

    async def load(self, spec: TableSpec, ids: Sequence[str]) -> list[Any]:
        await self._point("load")
        table = self._database.tables[spec.name]
        return [copy.copy(table[id]) for id in sorted(set(ids)) if id in table]

    async def load_live(self, spec: TableSpec, parents: Sequence[str]) -> list[Any]:
        await self._point("load")
        wanted = set(parents)
        rows = self._database.tables[spec.name].values()
        return [copy.copy(row) for row in rows if getattr(row, spec.parent) in wanted and spec.live(row)]

    async def save(self, writes: Writes) -> None:
        self._database.check(writes.advances)
        self.writes = writes


class MemoryLog:
    """Topics as lists of records; `log(topic, partition)[offset]`. A send may be lost or repeated by `fault`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.partitions: dict[tuple[str, int], list[Out]] = {}
        self._clock = clock

    def of(self, topic: str, partition: int) -> list[Out]:
        return self.partitions.setdefault((topic, partition), [])

    def append(self, out: Out) -> None:
        self.of(out.topic, out.partition).append(out)

    def incoming(self, topic: str, lane: int, partition: int, offset: int) -> Incoming:
        out = self.of(topic, partition)[offset]
        return Incoming(lane, offset, out.key.encode(), out.headers, out.body, self._clock())


class MemoryProducer:
    """`Log` of one process. `fault(out)`: 0 drops the record and fails the send, 2 doubles it, 1 is plain."""

    def __init__(
        self, log: MemoryLog, point: Point = no_point, fault: Callable[[Out], int] = lambda out: 1
    ) -> None:
        self._log = log
        self._point = point
        self._fault = fault

    async def publish(self, records: Sequence[Out]) -> None:
        await self._point("before_send")
        failed = False
        for out in records:
            times = 0 if failed else self._fault(out)
            failed = failed or times == 0
            for _ in range(times):
                self._log.append(out)
        if failed:
            raise SendFailed("a record was lost on its way")
        await self._point("after_send")
