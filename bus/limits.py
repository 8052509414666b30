"""The kernel's bounds, its clock, and the switches that tests turn its defences off with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Database time as far as this process knows it, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`deciding_seconds_max`: of CPU time, for one batch. `unlisted_seconds`: so long a step may last before its
    lease is listed. Far below a lease's time.
    """

    rows_max: int = 4_096
    aggregates_max: int = 400
    aggregate_bytes_max: int = 256 * 1024
    lane_bytes_max: int = 8 * 1024 * 1024
    facts_max: int = 256
    facts_bytes_max: int = 16 * 1024 * 1024
    deciding_seconds_max: float = 0.1
    dead_ratio: float = 0.01
    dead_window_records: int = 1_000
    record_age_seconds_max: float = 7 * 86_400
    unlisted_seconds: float = 2.0
    retry_seconds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Defences:
    """Switches for tests only: each turns one defence off, to show that its test notices."""

    inbox: bool = True
    fence: bool = True
    drain: bool = True
    lease_token: bool = True
    order: bool = True
    dead_letters: bool = True
    lasting_leases: bool = True
    left_leases: bool = True
    answers: bool = True
    tombstones: bool = True
