"""A lane: one partition under one epoch, with where it stands, its aggregates in memory, and what it sent."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any

from bus.limits import Limits
from bus.rows import Aggregate
from bus.store import Advance, Claimed, Incoming
from infra.db import TableSpec

log = logging.getLogger("agent_platform.kernel")

GAPS_MAX = 5
ENDED_ROWS_KEPT = 16
"""Of a large aggregate: what has just ended is read by what comes next."""
HANDED_MAX = 4_000
"""Copies awaited per lane; one that is forgotten is decided again, and changes nothing."""
INGRESS_BASE = 10_000
"""Lane ids: a partition of `commands` is its own number, one of `ingress` this much more."""


class Lane:
    """Owned from a claim until the epoch is lost. Never used again afterwards.

    `next_offset`: as committed. `dealt`: the same in memory, beyond copies and holes, which need no transaction
    of their own. `held`: records that wait for the preparations it `awaits`, and those behind them. `polled`: the
    next offset to take in. `position`: of the last record made. `sent`: all records up to it are
    acknowledged.
    """

    def __init__(self, claimed: Claimed, limits: Limits | None = None) -> None:
        self.id = claimed.lane
        self.epoch = claimed.epoch
        self.next_offset = claimed.next_offset
        self.dealt = claimed.next_offset
        self.polled = claimed.next_offset
        self.position = claimed.position
        self.sent = claimed.sent
        self.trimmed = claimed.sent
        self.position_swept = claimed.position
        self.gaps = 0
        self.gap = False
        self.lost = False
        self.stopped = ""
        self.handled = 0
        self.died = 0
        self.handed: dict[str, None] = {}
        self.held: deque[Incoming] = deque()
        self.awaits: set[str] = set()
        self.unlisted: dict[str, tuple[int, float]] = {}
        self._floor: int | None = claimed.floor
        self.aggregates: OrderedDict[str, Aggregate] = OrderedDict()
        self._limits = limits or Limits()
        self._size = 0
        self._grown: set[str] = set()
        self._sending: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def ingress(self) -> bool:
        return self.id >= INGRESS_BASE

    @property
    def floor(self) -> int:
        """The position up to which no row is among the `unlisted`: ids, with the position before each and its time.

        As it was at the claim, until all that former owners made has been listed.
        """
        if self._floor is not None:
            return self._floor
        first = next(iter(self.unlisted.values()), None)
        return self.position if first is None else first[0]

    def all_listed(self) -> None:
        """What former owners made is."""
        self._floor = None

    def long_unlisted(self, before: float) -> list[str]:
        """What was made before this time: they are in order."""
        return [id for id, _ in itertools.takewhile(lambda made: made[1][1] < before, self.unlisted.items())]

    @property
    def usable(self) -> bool:
        return not self.lost and not self.stopped

    def takes(self, offset: int, follows: int = -1) -> bool:
        """Whether this is the next offset. One beyond it was fetched before a seek: the worker seeks again.

        Unless nothing exists between `follows` and it: transactions of publishers leave such holes. Another one
        is believed after GAPS_MAX fetches in a row.
        """
        if offset < self.polled:
            return False
        if offset > self.polled and not 0 <= follows <= self.polled:
            self.gap = True
            if self.gaps < GAPS_MAX:
                return False
            log.error("lane %d: offsets %d to %d do not exist", self.id, self.polled, offset - 1)
        self.polled = offset + 1
        self.gaps = 0
        self.gap = False
        return True

    def passes(self, since: int, to: int) -> None:
        """Nothing exists from `since` up to `to`: if that is where this lane stands, it goes on behind.

        Else a hole at the topic's end would count as work that waits. The next transaction tells, as of a copy.
        """
        if since == self.polled == self.dealt and to > since:
            self.polled = self.dealt = to

    def aggregate(self, id: str) -> Aggregate:
        found = self.aggregates.get(id)
        if found is None:
            found = self.aggregates[id] = Aggregate()
        else:
            self.aggregates.move_to_end(id)
        return found

    def was_handed(self, headers: Sequence[tuple[str, bytes]]) -> bool:
        """Whether this record is the copy of a result that was handed over in memory, and came true already."""
        for name, value in headers:
            if name == "ce_id":
                return self.handed.pop((value or b"").decode("ascii", "replace"), self) is None
        return False

    def grew(self, id: str, size: int) -> None:
        """The rows of an aggregate take about so many bytes more."""
        self.aggregate(id).size += size
        self._grown.add(id)
        self._size += size

    def forget(self, id: str) -> None:
        forgotten = self.aggregates.pop(id, None)
        if forgotten is not None:
            self._size -= forgotten.size

    def shrink(self, specs: Mapping[type[Any], TableSpec]) -> None:
        """Drop the aggregates used longest ago, and what has ended in large ones; between transactions only."""
        limits = self._limits
        while len(self.handed) > HANDED_MAX:
            del self.handed[next(iter(self.handed))]
        for id in self._grown:
            aggregate = self.aggregates.get(id)
            if aggregate is not None and aggregate.size > limits.aggregate_bytes_max:
                before = aggregate.size
                aggregate.drop_ended(specs, ENDED_ROWS_KEPT)
                self._size += aggregate.size - before
        self._grown.clear()
        while len(self.aggregates) > limits.aggregates_max or (
            self._size > limits.lane_bytes_max and len(self.aggregates) > 1
        ):
            _, dropped = self.aggregates.popitem(last=False)
            self._size -= dropped.size

    def sending(self, position: int, acknowledged: asyncio.Future[None]) -> None:
        self._sending.append((position, acknowledged))

    def acknowledge(self) -> bool:
        """Move `sent` over the contiguous acknowledged prefix; False if a send failed."""
        while self._sending and self._sending[0][1].done():
            position, future = self._sending[0]
            if future.cancelled() or future.exception() is not None:
                return False
            self.sent = max(self.sent, position)
            self._sending.popleft()
        return True

    @property
    def unacknowledged(self) -> list[asyncio.Future[None]]:
        return [future for _, future in self._sending]

    def forget_sending(self) -> None:
        self._sending.clear()


def standing(lane: Lane) -> Advance:
    """A lane as it stands, to be locked or written as it is."""
    return Advance(lane.id, lane.epoch, lane.next_offset, lane.dealt, lane.position, lane.sent, lane.floor)
