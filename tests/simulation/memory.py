"""A store and a log in memory with the contracts of `bus.store`, for the simulation and the contract suite."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
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
    Unavailable,
    Unknown,
    Writes,
)
from infra.db import TableSpec
from outbox.tombstones import TOMBSTONES

Point = Callable[[str], Awaitable[None]]
"""Called at named points. A test suspends the caller there, or raises what may be raised there."""

IDLE_SECONDS_MAX = 3.0
LOCK_SECONDS_MAX = 5.0
TIMERS_MAX = 300
"""As the worker's sessions have them: an idle transaction is ended, a wait for a lock is given up."""


async def no_point(name: str) -> None:
    return None


@dataclass
class LaneRow:
    epoch: int = 0
    next_offset: int = 0
    position: int = 0
    sent: int = 0
    floor: int = 0
    stopped: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryDatabase:
    """What Postgres holds. Transactions buffer their writes, lock lanes, and apply all or nothing.

    `made` keeps every outbox row that was ever committed; `fence` false turns that defence off; `refused` are
    messages whose events it refuses, as Postgres refuses a value it cannot hold.
    """

    def __init__(self, lanes: Iterable[int], specs: Iterable[TableSpec], clock: Callable[[], float]) -> None:
        self.lanes = {lane: LaneRow() for lane in lanes}
        self.specs = {spec.name: spec for spec in specs}
        self._texts = {
            name: [column.name for column in spec.columns if column.pg_type == "text"]
            for name, spec in self.specs.items()
        }
        self.tables: dict[str, dict[str, Any]] = {name: {} for name in (*self.specs, TOMBSTONES.name)}
        self.row_locks: set[tuple[str, str]] = set()
        self.events: dict[tuple[str, int], Logged] = {}
        self.outbox: dict[tuple[int, int], Out] = {}
        self.made: list[Out] = []
        self.inbox: set[tuple[str, int]] = set()
        self.outcomes: dict[str, Outcome] = {}
        self.timers: dict[str, tuple[float, Timer]] = {}
        self.letters: dict[str, DeadLetter] = {}
        self.transactions = 0
        self.redrives: dict[str, int] = {}
        self.clock = clock
        self.fence = True
        self.refused: set[str] = set()
        self.committed: Callable[[Writes], None] = lambda writes: None

    def check(self, advances: Sequence[Advance]) -> None:
        lost = [
            a.lane
            for a in advances
            if self.lanes[a.lane].epoch != a.epoch or self.lanes[a.lane].next_offset != a.expected
        ]
        if lost and self.fence:
            raise Fenced(lost)

    def apply(self, writes: Writes) -> None:
        """Everything that `refuse_existing` has let pass."""
        self.transactions += 1
        for id in writes.ended_timers:
            self.timers.pop(id, None)
        for name, rows in writes.inserts.items():
            self.tables[name].update((row.id, row) for row in rows)
        for name, rows in writes.updates.items():
            self._update(name, rows)
        for logged in writes.events:
            self.events[logged.recorded.aggregate_id, logged.recorded.seq] = logged
        for out in writes.outbox:
            self.outbox[out.lane, out.position] = out
        self.made.extend(writes.outbox)
        for timer in writes.timers:
            self.timers.setdefault(timer.id, (self.clock() + timer.seconds, timer))
        self.inbox |= {(id, redrive) for id, redrive, _ in writes.inbox}
        self.outcomes.update((outcome.command_id, outcome) for outcome in writes.new_outcomes)
        for outcome in writes.outcomes:
            if outcome.command_id in self.outcomes:  # Where it was reserved, as an update finds it.
                self.outcomes[outcome.command_id] = outcome
        for letter in writes.dead_letters:
            self.letters[letter.id] = letter
            self.redrives[letter.id] = self.redrives.get(letter.id, -1) + 1
        for a in writes.advances:
            self._advance(a)
        self.committed(writes)

    def due(self, lanes: Sequence[int]) -> list[tuple[str, Out]]:
        """The timers of these lanes that are due, the longest due first."""
        now = self.clock()
        found = [
            (at, id, timer.out) for id, (at, timer) in self.timers.items() if timer.out.lane in lanes and at <= now
        ]
        return [(id, out) for _, id, out in sorted(found, key=lambda each: each[:2])]

    def refuse_existing(self, writes: Writes) -> None:
        """Raises Poison for a key that is there already, and for what is `refused`."""
        for id, redrive, _ in writes.inbox:
            if (id, redrive) in self.inbox:
                raise Poison(f"23505: inbox {id} exists")
        for outcome in writes.new_outcomes:
            if outcome.command_id in self.outcomes:
                raise Poison(f"23505: outcome {outcome.command_id} exists")
        for name, rows in writes.inserts.items():
            for row in rows:
                if row.id in self.tables[name] or row.id in self.tables[TOMBSTONES.name]:
                    raise Poison(f"23505: {name} {row.id} exists")
        for name, rows in (*writes.inserts.items(), *writes.updates.items()):
            for row in rows:
                if any("\x00" in (getattr(row, text) or "") for text in self._texts[name]):
                    raise Poison(f"22021: {name} {row.id} holds U+0000")
        for logged in writes.events:
            if logged.recorded.causation_id in self.refused:
                raise Poison("22P05: a value cannot be stored")
            if (logged.recorded.aggregate_id, logged.recorded.seq) in self.events:
                raise Poison(f"23505: event {logged.recorded.aggregate_id}/{logged.recorded.seq} exists")
        for out in writes.outbox:
            if (out.lane, out.position) in self.outbox:
                raise Poison(f"23505: outbox {out.lane}/{out.position} exists")

    def _update(self, name: str, rows: Iterable[Any]) -> None:
        table, mutable = self.tables[name], [column.name for column in self.specs[name].mutable]
        for row in rows:
            if row.id in table:
                changes = {column: getattr(row, column) for column in mutable}
                table[row.id] = replace(table[row.id], **changes)

    def _advance(self, a: Advance) -> None:
        row = self.lanes[a.lane]
        row.next_offset, row.position, row.sent = a.next, a.position, max(row.sent, a.sent)
        row.floor = a.floor
        for key in [key for key in self.outbox if key[0] == a.lane and key[1] <= a.sent]:
            del self.outbox[key]


class MemoryStore:
    """`Store` of one process on a shared database.

    A point that raises Unknown before or after the commit is a connection lost while committing.
    """

    def __init__(self, database: MemoryDatabase, point: Point = no_point) -> None:
        self.database = database
        self._point = point

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[MemoryUnit]:
        unit = MemoryUnit(self.database, self._point)
        try:
            yield unit
            await self._point("before_commit")
            unit.commit()
            await self._point("after_commit")
        finally:
            unit.end()

    async def write(self, writes: Writes) -> None:
        unit = MemoryUnit(self.database, self._point)
        await self._point("before_write")
        try:
            await unit.acquire([a.lane for a in writes.advances])
            await unit.save(writes)
            unit.commit()
        finally:
            unit.end()
        await self._point("after_commit")

    async def read(self, spec: TableSpec, ids: Sequence[str]) -> list[Any]:
        await self._point("load")
        table = self.database.tables[spec.name]
        return [table[id] for id in ids if id in table]

    async def claim(self, lanes: Sequence[int], owner: str) -> list[Claimed]:
        await self._point("before_claim")
        unit = MemoryUnit(self.database, self._point)
        try:
            await unit.acquire(lanes)
            claimed = []
            for lane in sorted(lanes):
                row = self.database.lanes[lane]
                row.epoch += 1
                row.stopped = ""
                claimed.append(Claimed(lane, row.epoch, row.next_offset, row.position, row.sent, row.floor))
        finally:
            unit.end()
        await self._point("after_claim")
        return claimed

    async def unsent(self, lane: int, sent: int) -> tuple[list[Logged], list[Out]]:
        await self._point("unsent")
        events = [e for e in self.database.events.values() if e.recorded.lane == lane and e.position > sent]
        outs = [out for key, out in self.database.outbox.items() if key[0] == lane and key[1] > sent]
        return sorted(events, key=lambda e: e.position), sorted(outs, key=lambda out: out.position)

    async def due_lanes(self, lanes: Sequence[int]) -> list[int]:
        return sorted({out.lane for _, out in self.database.due(lanes)})

    async def restarted(self, lanes: Sequence[int], epochs: Sequence[int]) -> list[int]:
        return [lane for lane, epoch in zip(lanes, epochs, strict=True) if self.database.lanes[lane].epoch > epoch]

    async def stop(self, lane: int, epoch: int, reason: str) -> None:
        if self.database.lanes[lane].epoch == epoch:
            self.database.lanes[lane].stopped = reason

    async def now(self) -> float:
        return self.database.clock()


class MemoryUnit:
    """One transaction. Left idle with its locks for too long it is ended by the database, as a session is."""

    def __init__(self, database: MemoryDatabase, point: Point) -> None:
        self._database = database
        self._point = point
        self._locked: list[asyncio.Lock] = []
        self._rows: set[tuple[str, str]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._terminated = False
        self.writes: Writes | None = None
        self.inbox: set[tuple[str, int]] = set()
        self.outcomes: list[Outcome] = []
        self.timers: list[str] = []

    async def lock(self, advances: Sequence[Advance]) -> None:
        await self.acquire([a.lane for a in advances])
        self._database.check(advances)
        self._restart_idle()
        await self._point("locked")

    async def acquire(self, lanes: Iterable[int]) -> None:
        """Lock these lanes in order. Raises Unavailable when another transaction does not let go in time."""
        for lane in sorted(lanes):
            lock = self._database.lanes[lane].lock
            try:
                async with asyncio.timeout(LOCK_SECONDS_MAX if lock.locked() else None):
                    await lock.acquire()
            except TimeoutError:
                raise Unavailable(f"55P03: lane {lane} is locked") from None
            self._locked.append(lock)

    async def admit(self, inbox: Sequence[tuple[str, int, float]], outcomes: Sequence[Outcome]) -> Admitted:
        self._statement()
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
        self._statement()
        table = self._database.tables[spec.name]
        return self._hold(spec, [table[id] for id in sorted(set(ids)) if id in table])

    async def load_live(self, spec: TableSpec, parents: Sequence[str]) -> list[Any]:
        await self._point("load")
        self._statement()
        wanted = set(parents)
        rows = self._database.tables[spec.name].values()
        return self._hold(spec, [row for row in rows if getattr(row, spec.parent) in wanted and spec.live(row)])

    async def stored_outcomes(self, ids: Sequence[str]) -> dict[str, Outcome]:
        await self._point("load")
        self._statement()
        return {id: self._database.outcomes[id] for id in ids if id in self._database.outcomes}

    async def due_timers(self, lanes: Sequence[int]) -> list[Out]:
        await self._point("load")
        self._statement()
        due = self._database.due(lanes)[:TIMERS_MAX]
        self.timers = [id for id, _ in due]
        return [out for _, out in due]

    async def save(self, writes: Writes) -> None:
        self._statement()
        self._database.check(writes.advances)
        self._database.refuse_existing(writes)
        self.writes = writes

    def commit(self) -> None:
        if self._terminated:
            raise Unknown("the connection was lost while committing")
        if self.writes is not None:
            self._database.refuse_existing(self.writes)
        self._database.inbox |= self.inbox
        for outcome in self.outcomes:
            self._database.outcomes.setdefault(outcome.command_id, outcome)
        if self.writes is not None:
            self._database.apply(self.writes)
        for id in self.timers:
            del self._database.timers[id]
        self.end()

    def end(self) -> None:
        """Let go of every lock. May be called again."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        for lock in self._locked:
            lock.release()
        self._locked.clear()
        self._database.row_locks -= self._rows
        self._rows.clear()

    def _hold(self, spec: TableSpec, rows: list[Any]) -> list[Any]:
        if spec.volatile is not None:
            self._rows |= {(spec.name, row.id) for row in rows}
            self._database.row_locks |= self._rows
        return [copy.copy(row) for row in rows]

    def _statement(self) -> None:
        if self._terminated:
            raise Unavailable("57P01: the session was ended")
        self._restart_idle()

    def _restart_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS_MAX, self._terminate)

    def _terminate(self) -> None:
        self._terminated = True
        self.end()


class MemoryLog:
    """Topics as lists of records; `log.of(topic, partition)[offset]`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.partitions: dict[tuple[str, int], list[tuple[float, Out]]] = {}
        self._clock = clock
        self.appended: Callable[[Out], None] = lambda out: None

    def of(self, topic: str, partition: int) -> list[tuple[float, Out]]:
        return self.partitions.setdefault((topic, partition), [])

    def append(self, out: Out) -> None:
        self.of(out.topic, out.partition).append((self._clock(), out))
        self.appended(out)

    def topic(self, topic: str) -> list[Out]:
        """All records of a topic, partition by partition."""
        return [out for (name, _), rows in sorted(self.partitions.items()) if name == topic for _, out in rows]

    def incoming(self, topic: str, lane: int, partition: int, offset: int) -> Incoming:
        at, out = self.of(topic, partition)[offset]
        return Incoming(lane, offset, out.key.encode(), out.headers, out.body, at)


class MemoryProducer:
    """`Log` of one process: sends in rounds, as the producer for Kafka does; a round that fails fails all that waits.

    `fault(out)`: how often the record gets to the topic (0: the send fails, -1: it fails after one did).
    `ordered` false: what waits goes out all the same, as `bus.producer.Producer` has that switch.
    """

    def __init__(
        self,
        log: MemoryLog,
        point: Point = no_point,
        fault: Callable[[Out], int] = lambda out: 1,
        *,
        ordered: bool = True,
    ) -> None:
        self._log = log
        self._point = point
        self._fault = fault
        self._ordered = ordered
        self._queue: list[tuple[Sequence[Out], asyncio.Future[None]]] = []
        self._rounds: asyncio.Task[None] | None = None

    async def publish(self, records: Sequence[Out]) -> None:
        await self.enqueue(records)

    def encoded(self, records: Sequence[Out]) -> Sequence[Out]:
        return records

    def enqueue(self, records: Sequence[Out], *, patience: float = 0.0) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((records, future))
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.get_running_loop().create_task(self._run())
        return future

    async def _run(self) -> None:
        while self._queue:
            sendings, self._queue = self._queue, []
            try:
                await self._point("before_send")
                self._send([out for records, _ in sendings for out in records])
                await self._point("after_send")
            except SendFailed as failed:
                if self._ordered:
                    sendings += self._queue
                    self._queue = []
                for _, future in sendings:
                    future.set_exception(failed)
            else:
                for _, future in sendings:
                    future.set_result(None)

    def _send(self, records: Sequence[Out]) -> None:
        for out in records:
            times = self._fault(out)
            for _ in range(abs(times)):
                self._log.append(out)
            if times <= 0:
                raise SendFailed("a record was lost on its way")
