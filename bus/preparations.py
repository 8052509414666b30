"""What decisions need and takes long to make: made outside any transaction, while only the lanes that need it wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bus.lanes import Lane
from bus.store import Incoming
from schemas.decider import Preparation

log = logging.getLogger("agent_platform.kernel")

Background = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a function that takes long, and gives what it returns or raises what it raises."""


class Unprepared(Exception):
    """Nothing was written: these records can be decided only after what they need has been made."""

    def __init__(self, lacking: Sequence[tuple[Incoming, Sequence[Preparation]]]) -> None:
        self.lacking = lacking
        super().__init__(", ".join(each.key for _, work in lacking for each in work))


class Preparations:
    """Those under way, and the lanes that wait for them.

    `broken`: what could not be made, by key, with the reason; whoever decides about it next takes it away. `wake` is
    called when there is something to go on with.
    """

    def __init__(self, background: Background | None) -> None:
        self.broken: dict[str, str] = {}
        self.wake: Callable[[], None] = lambda: None
        self._background = background
        self._under_way: dict[str, asyncio.Task[None]] = {}
        self._made: list[tuple[Preparation, Any]] = []
        self._ended: set[str] = set()

    @property
    def ready(self) -> bool:
        """Whether `resumed` has something to give."""
        return bool(self._ended)

    def hold(self, records: Sequence[Incoming], lacking: Unprepared, lanes: Mapping[int, Lane]) -> list[Incoming]:
        """Keep back what lacks something, and what is behind it in its lane; the other records are returned."""
        for record, work in lacking.lacking:
            lane = lanes.get(record.lane)
            if lane is None:
                continue
            for each in work:
                lane.awaits.add(each.key)
                self._begin(each)
        firsts = {id(record) for record, _ in lacking.lacking}
        waiting: set[int] = set()
        others = []
        for record in records:
            if id(record) in firsts:
                waiting.add(record.lane)
            lane = lanes.get(record.lane)
            if record.lane in waiting and lane is not None:
                lane.held.append(record)
            else:
                others.append(record)
        return others

    def held_back(self, records: Sequence[Incoming], lanes: Mapping[int, Lane]) -> list[Incoming]:
        """Put records of lanes that wait behind those that are held; the other records are returned."""
        others = []
        for record in records:
            lane = lanes[record.lane]
            if lane.awaits:
                lane.held.append(record)
            else:
                others.append(record)
        return others

    def resumed(self, lanes: Mapping[int, Lane]) -> list[Incoming]:
        """Keep what has been made, between two batches; the records that can go on now, in the order of each lane."""
        made, self._made = self._made, []
        ended, self._ended = self._ended, set()
        for preparation, result in made:
            preparation.keep(result)
        records: list[Incoming] = []
        for lane in lanes.values() if ended else ():
            lane.awaits -= ended
            if lane.held and not lane.awaits:
                records.extend(lane.held)
                lane.held.clear()
        return records

    def _begin(self, preparation: Preparation) -> None:
        key = preparation.key
        if self._background is None:
            if key not in self._ended:
                with self._ending(preparation):
                    self._made.append((preparation, preparation.make()))
        elif key not in self._under_way:
            self._under_way[key] = asyncio.ensure_future(self._make(preparation, self._background))

    async def _make(self, preparation: Preparation, background: Background) -> None:
        with self._ending(preparation):
            try:
                made = await background(preparation.make)
                self._made.append((preparation, made))
            finally:
                del self._under_way[preparation.key]

    @contextmanager
    def _ending(self, preparation: Preparation) -> Iterator[None]:
        """Whatever comes of it, who waits goes on."""
        try:
            yield
        except Exception as error:
            log.exception("preparing %s failed", preparation.key)
            self.broken[preparation.key] = f"{type(error).__name__}: {error}"
        self._ended.add(preparation.key)
        self.wake()
