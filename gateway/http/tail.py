"""The one reader of `events` of a gateway, and those who wait for what happens to an aggregate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from bus.record_batches import Keyed
from gateway.http.ports import DatabaseUnavailable, EventReader

log = logging.getLogger("agent_platform.tail")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """`look_seconds`: who hears nothing for so long looks, since an event may be on its way to Kafka for long, or lost
    there; `look_seconds_deaf`: the same while events are not read. `linger_seconds`: so long events are read on when
    nobody waits, so that the next who does need not wait for the reader too.
    """

    look_seconds: float = 5.0
    look_seconds_deaf: float = 1.0
    linger_seconds: float = 5.0
    back_off_seconds: float = 1.0


class Heard(NamedTuple):
    """An event of an aggregate, by its type and its seq."""

    type: str
    seq: int


@dataclass(eq=False, slots=True)
class Watch:
    """One who waits for events of one aggregate: of these types, or of any.

    Of several events that come before anybody asks the last one is kept: it says up to which seq there is something
    to read. A wake-up is a hint and no more; what is true is in Postgres, where it was before the event came.
    """

    tail: Tail
    types: Set[str] | None
    _heard: Heard | None = None
    _woken: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, deadline: float) -> Heard | None:
        """The last event heard since the last call; None: time to look all the same, or `deadline` has come.

        Returns at once when the tail is closed: whoever waits in turns ends then.
        """
        if not self._woken.is_set() and not self.tail.is_closed:
            look_at = asyncio.get_running_loop().time() + self.tail.look_seconds
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, look_at)):
                    await self._woken.wait()
        self._woken.clear()
        heard, self._heard = self._heard, None
        return heard

    async def until(self, look: Callable[[], Awaitable[T | None]], deadline: float) -> T | None:
        """Look now and after every wake-up, until there is something to show; None if there is not by then."""
        while True:
            self._woken.clear()  # What was heard by now is there to be seen.
            try:
                shown = await look()
            except DatabaseUnavailable as error:
                log.warning("what has come of a command cannot be seen: %s", error)
                shown = None
            if shown is not None or self.tail.is_closed or asyncio.get_running_loop().time() >= deadline:
                return shown
            await self.wait(deadline)

    def hear(self, heard: Heard | None) -> None:
        """None: an event that cannot be told."""
        if heard is None or self.types is None or heard.type in self.types:
            self._heard = heard
            self.wake()

    def wake(self) -> None:
        self._woken.set()


class Tail:
    """`run` it for as long as requests are served, then `close` it: whoever waits looks a last time and answers.

    Whoever waits looks after his watch has begun. What happened before that he sees then; what happens later wakes
    him, either because events are read already, or because everybody is woken once the reader stands at their end.
    """

    def __init__(self, reader: EventReader, pace: Pace = Pace()) -> None:
        self._reader = reader
        self._pace = pace
        self._watches: dict[bytes, list[Watch]] = {}
        self._awaited = asyncio.Event()
        self._left_at = 0.0
        self.is_reading = False
        self.is_closed = False

    @property
    def look_seconds(self) -> float:
        return self._pace.look_seconds if self.is_reading else self._pace.look_seconds_deaf

    @contextlib.contextmanager
    def watch(self, aggregate_id: str, types: Set[str] | None = None) -> Iterator[Watch]:
        """Begin this before what is waited for is asked for; then look, then wait, in turns."""
        key = aggregate_id.encode()
        watch = Watch(self, types)
        self._watches.setdefault(key, []).append(watch)
        self._awaited.set()
        try:
            yield watch
        finally:
            others = self._watches[key]
            others.remove(watch)
            if not others:
                del self._watches[key]
                self._left_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Read while somebody waits. Never raises: without it everybody still looks, only less often."""
        try:
            while True:
                await self._awaited.wait()
                try:
                    await self._read_while_awaited()
                except Exception as error:  # Whatever it is: reading begins anew, and everybody looks.
                    log.warning("events are not read: %s %s", type(error).__name__, error)
                    self._turn(reading=False)
                    await self._reader.close()
                    await asyncio.sleep(self._pace.back_off_seconds)
                if not self._watches:
                    self._awaited.clear()
        finally:
            self.is_reading = False
            await self._reader.close()

    async def _read_while_awaited(self) -> None:
        await self._reader.to_end()
        self._turn(reading=True)
        while self._is_awaited():
            self._tell(await self._reader.read(self._watches))
        self.is_reading = False

    def close(self) -> None:
        self.is_closed = True
        self._wake_all()

    def _is_awaited(self) -> bool:
        return bool(self._watches) or asyncio.get_running_loop().time() < self._left_at + self._pace.linger_seconds

    def _turn(self, *, reading: bool) -> None:
        self.is_reading = reading
        self._wake_all()

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()

    def _tell(self, records: list[Keyed]) -> None:
        for record in records:
            heard = _heard(record)
            for watch in self._watches.get(record.key, ()):
                watch.hear(heard)


def _heard(record: Keyed) -> Heard | None:
    headers = dict(record.headers)
    try:
        return Heard((headers.get("ce_type") or b"").decode(), int(headers.get("ce_sequence") or b""))
    except ValueError:
        return None
