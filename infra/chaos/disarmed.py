"""Role processes without one of their defences: whatever a chaos run checks must notice that it is missing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

from bus.limits import Defences
from bus.producer import BusUnavailable, Producer
from bus.store import Advance, SendFailed, Writes
from infra.settings import Settings
from schemas.envelope import Headers

OFF_VARIABLE = "CHAOS_DEFENCES_OFF"
"""Names of what is turned off, separated by commas; `failing_sends` is no defence but the fault for `order`."""

ACKNOWLEDGEMENT = "acknowledgement"
FAILING_SENDS = "failing_sends"
FAILING_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Disarmed:
    """The defences that are left. `off`: those that are not."""

    off: frozenset[str]
    settings: Settings
    defences: Defences = field(default_factory=Defences)

    @classmethod
    def of(cls, names: str, settings: Settings) -> Disarmed:
        off = frozenset(name for name in names.split(",") if name)
        switches = {each.name for each in fields(Defences)}
        unknown = off - switches - {ACKNOWLEDGEMENT, FAILING_SENDS}
        if unknown:
            raise ValueError(f"{OFF_VARIABLE} names {sorted(unknown)}; there are {sorted(switches)}")
        defences = replace(Defences(), **dict.fromkeys(off & switches, False))
        return cls(off, settings, defences)

    def store(self, inner: Any) -> Any:
        return UnfencedStore(inner) if not self.defences.fence else inner

    def log(self, inner: Any) -> Any:
        if FAILING_SENDS not in self.off:
            return inner
        bootstrap, prefix = self.settings.required_kafka_bootstrap, self.settings.topic_prefix
        return FailingProducer(bootstrap, prefix=prefix, ordered=self.defences.order)

    def bus(self, inner: Any) -> Any:
        bus = FailingBus(inner) if FAILING_SENDS in self.off else inner
        return HastyBus(bus) if ACKNOWLEDGEMENT in self.off else bus


class UnfencedStore:
    """A store that lets anybody write to any lane: each write takes the lane as it stands for what it expected."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def write(self, writes: Writes) -> None:
        writes.advances = await self._as_it_stands(writes.advances)
        await self._inner.write(writes)

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Any]:
        async with self._inner.unit() as unit:
            yield _UnfencedUnit(unit, self)

    async def _as_it_stands(self, advances: Sequence[Advance]) -> list[Advance]:
        rows = await self._inner.pool.fetch(
            "SELECT id, epoch, next_offset FROM lane WHERE id = ANY($1::int2[])", [each.lane for each in advances]
        )
        stands = {row["id"]: row for row in rows}
        return [
            each._replace(epoch=stands[each.lane]["epoch"], expected=stands[each.lane]["next_offset"])
            for each in advances
        ]


class _UnfencedUnit:
    def __init__(self, inner: Any, store: UnfencedStore) -> None:
        self._inner = inner
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def lock(self, advances: Sequence[Advance]) -> None:
        await self._inner.lock(await self._store._as_it_stands(advances))

    async def save(self, writes: Writes) -> None:
        writes.advances = await self._store._as_it_stands(writes.advances)
        await self._inner.save(writes)


class FailingProducer(Producer):
    """A producer some of whose rounds fail before anything of them has reached Kafka."""

    async def _round(self, sendings: Sequence[Any]) -> None:
        if random.random() < FAILING_SHARE:
            await asyncio.sleep(0.05)
            raise SendFailed("made to fail")
        await super()._round(sendings)


class FailingBus:
    """A bus some of whose sends fail before anything has reached Kafka."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def send(self, topic: str, partition: int, key: str | None, headers: Headers, body: bytes) -> None:
        if random.random() < FAILING_SHARE:
            raise BusUnavailable("made to fail")
        await self._inner.send(topic, partition, key, headers, body)


class HastyBus:
    """A bus that does not wait for Kafka's acknowledgement."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._sends: set[asyncio.Task[None]] = set()

    async def send(self, topic: str, partition: int, key: str | None, headers: Headers, body: bytes) -> None:
        task = asyncio.create_task(self._send(topic, partition, key, headers, body))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _send(self, *record: Any) -> None:
        try:
            await self._inner.send(*record)
        except BusUnavailable:
            return  # Nobody is told.
