"""Named places inside role processes at which a chaos run may stop or kill them, and the ports that pass there."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from bus.store import Out, Writes
from schemas.envelope import Headers
from schemas.runtime import NodeCompleted

BEFORE_WRITE = "before-write"
"""A batch is decided, its transaction not begun."""
BEFORE_ANSWER = "before-answer"
"""The same of a batch with a step's answer: until its lease runs out, nobody else may bring the run further."""
BEFORE_COMMIT = "before-commit"
"""In mid-transaction: all is written, nothing committed."""
BEFORE_SEND = "before-send"
"""Committed, nothing sent."""
AFTER_SEND = "after-send"
"""Sent and acknowledged; neither the outbox is trimmed nor the offset committed to the group."""
BEFORE_REPLY = "before-reply"
"""Kafka has acknowledged a request's command, its sender has not been told."""
WORKER_PLACES = (BEFORE_WRITE, BEFORE_COMMIT, BEFORE_SEND, AFTER_SEND)

What = Literal["stop", "kill"]
_SIGNALS = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}


def wish(folder: Path, pid: int, place: str) -> Path:
    """The file that asks a role process to stop, or to die, at a place; its content says which."""
    return folder / f"wish-{pid}-{place}"


class Places:
    """Sends this process a signal at a named place when somebody has asked for it by a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def wanted(self, place: str) -> bool:
        return wish(self._folder, os.getpid(), place).exists()

    def at(self, place: str) -> None:
        asked = wish(self._folder, os.getpid(), place)
        try:
            what = asked.read_text()
        except FileNotFoundError:
            return
        asked.unlink(missing_ok=True)
        os.kill(os.getpid(), _SIGNALS[what])


class InterruptedStore:
    """A store that something may happen to in mid-transaction: all is written, nothing committed."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def before_commit(self, unit: Any) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[Any]:
        async with self._inner.unit() as unit:
            yield unit
            self.before_commit(unit)


class PlacedStore(InterruptedStore):
    """A store that passes the places before a transaction, and after its last statement before COMMIT."""

    def __init__(self, inner: Any, places: Places) -> None:
        super().__init__(inner)
        self._places = places

    def before_commit(self, unit: Any) -> None:
        self._places.at(BEFORE_COMMIT)

    async def write(self, writes: Writes) -> None:
        self._places.at(BEFORE_WRITE)
        if any(
            isinstance(made := logged.recorded.event, NodeCompleted) and made.lease_token for logged in writes.events
        ):
            self._places.at(BEFORE_ANSWER)
        if not self._places.wanted(BEFORE_COMMIT):
            await self._inner.write(writes)
            return
        async with self.unit() as unit:  # One statement leaves no place to stop at.
            await unit.save(writes)


class PlacedLog:
    """A log that passes the places before it sends what was committed, and once that is acknowledged."""

    def __init__(self, inner: Any, places: Places) -> None:
        self._inner = inner
        self._places = places

    def enqueue(self, records: Sequence[Out], *, patience: float = 0.0) -> asyncio.Future[None]:
        self._places.at(BEFORE_SEND)
        sending: asyncio.Future[None] = self._inner.enqueue(records, patience=patience)
        sending.add_done_callback(self._sent)
        return sending

    def encoded(self, records: Sequence[Out]) -> Sequence[Out]:
        encoded: Sequence[Out] = self._inner.encoded(records)
        return encoded

    async def publish(self, records: Sequence[Out]) -> None:
        self._places.at(BEFORE_SEND)
        await self._inner.publish(records)
        self._places.at(AFTER_SEND)

    def _sent(self, sending: asyncio.Future[None]) -> None:
        if not sending.cancelled() and sending.exception() is None:
            self._places.at(AFTER_SEND)


class PlacedBus:
    """What a gateway sends by; passes the place between Kafka's acknowledgement and the answer."""

    def __init__(self, inner: Any, places: Places) -> None:
        self._inner = inner
        self._places = places

    async def send(self, topic: str, partition: int, key: str | None, headers: Headers, body: bytes) -> None:
        await self._inner.send(topic, partition, key, headers, body)
        self._places.at(BEFORE_REPLY)
