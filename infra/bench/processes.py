"""What processes cost: CPU time and memory of process trees, those that have ended included."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import psutil

Kinds = Mapping[str, Sequence[int]]
"""The root processes of each kind: worker, client, postgres, kafka."""


def cpu_seconds(pid: int, apart: Set[int] = frozenset()) -> float:
    """CPU time of a process, of its living descendants, and of all that any of these has waited for.

    A Postgres backend that has ended is counted: the postmaster waits for it, and Linux adds its time to the
    postmaster's `children` times. Read again when somebody was waited for meanwhile. `apart`: descendants to
    leave out, with theirs.
    """
    root = psutil.Process(pid)
    if pid == os.getpid():  # Everything was started by this process, and is accounted for by itself.
        own = root.cpu_times()
        return float(own.user + own.system)
    while True:
        before = root.cpu_times()
        total = 0.0
        for process in _descendants(root, apart):
            with contextlib.suppress(psutil.NoSuchProcess):  # In its parent's times now.
                total += _total(process.cpu_times())
        after = root.cpu_times()
        if (before.children_user, before.children_system) == (after.children_user, after.children_system):
            return total + _total(after)


def _descendants(root: psutil.Process, apart: Set[int]) -> list[psutil.Process]:
    """All below a process but those `apart` and what is below them."""
    found = root.children(recursive=True)
    left_out = set(apart)
    for process in found:
        if process.pid in apart:
            left_out |= {below.pid for below in process.children(recursive=True)}
    return [process for process in found if process.pid not in left_out]


@dataclass(frozen=True, slots=True)
class CpuReading:
    """CPU seconds since the start of each kind of process, and of the whole machine."""

    at: float
    kinds: Mapping[str, float]
    machine: float

    def since(self, earlier: CpuReading) -> CpuSpent:
        kinds = {kind: self.kinds[kind] - earlier.kinds.get(kind, 0.0) for kind in self.kinds}
        others = max(0.0, self.machine - earlier.machine - sum(kinds.values()))
        return CpuSpent(self.at - earlier.at, kinds, others)


@dataclass(frozen=True, slots=True)
class CpuSpent:
    """CPU seconds spent in a time; `others`: by processes that are not part of the measurement."""

    seconds: float
    kinds: Mapping[str, float]
    others: float

    def others_cores(self) -> float:
        return self.others / self.seconds if self.seconds else 0.0


def read_cpu(kinds: Kinds) -> CpuReading:
    busy = psutil.cpu_times()
    machine = busy.user + busy.nice + busy.system + busy.irq + busy.softirq + busy.steal
    roots = {pid for pids in kinds.values() for pid in pids}
    found = {kind: sum(cpu_seconds(pid, roots) for pid in pids) for kind, pids in kinds.items() if pids}
    return CpuReading(time.perf_counter(), found, machine)


def _total(times: Any) -> float:
    return float(times.user + times.system + times.children_user + times.children_system)
