"""How long deciding may take: CPU time of this thread, since hosts and their load differ fourfold.

A batch that has taken too long is closed; a record that takes ten times as long is decided once more alone, then it
is a dead letter. One that does not return by itself is interrupted: whoever owns the process arms a timer that calls
`interrupt` now and then (`infra.roles.process`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from bus.store import Incoming

RECORD_FACTOR = 10


class TooLong(Exception):
    """Deciding one command took too long; raised inside it if need be."""


class BatchSpent(Exception):
    """Nothing was written: deciding took too long. `alone`: because of this one record, else up to it together."""

    def __init__(self, record: Incoming, reason: str, *, alone: bool) -> None:
        self.record = record
        self.alone = alone
        super().__init__(reason)


class DecidingTime:
    """Watches one batch after the other. `batch_seconds`: of CPU time. `cpu` and `wall` are clocks in seconds.

    Wall time is never less than CPU time, and cheap to read: the other clock is asked once it is over the limit.
    """

    def __init__(
        self,
        batch_seconds: float,
        *,
        cpu: Callable[[], float] = time.thread_time,
        wall: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._batch_seconds = batch_seconds
        self._cpu = cpu
        self._wall = wall
        self._batch_wall = wall()
        self._batch_cpu = cpu()
        self._record_cpu = self._batch_cpu
        self._deciding = False

    def begin_batch(self) -> None:
        self._batch_wall = self._wall()
        self._batch_cpu = self._record_cpu = self._cpu()

    def begin(self) -> None:
        """A command is decided from here on."""
        self._deciding = True

    def end(self) -> None:
        """It is decided, or not."""
        self._deciding = False

    def spent(self) -> bool:
        """Whether the batch is to be closed after the command that has been decided. Raises TooLong for that one."""
        if self._wall() - self._batch_wall <= self._batch_seconds:
            return False
        now = self._cpu()
        took, self._record_cpu = now - self._record_cpu, now
        if took > RECORD_FACTOR * self._batch_seconds:
            raise TooLong(f"deciding took {took:.1f} s of CPU time")
        return now - self._batch_cpu > self._batch_seconds

    def interrupt(self) -> None:
        """Raises TooLong in the midst of a decision that has taken too long. For a signal handler of this thread."""
        if self._deciding and self._cpu() - self._record_cpu > RECORD_FACTOR * self._batch_seconds:
            raise TooLong(f"deciding did not end within {RECORD_FACTOR * self._batch_seconds:.1f} s of CPU time")
