"""The load of every workload: a closed loop that keeps so many runs in flight, and what it measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

WITHOUT_END = 1_000_000_000
"""As many runs as the seconds of a load allow."""

One = Callable[[], Awaitable[None]]
"""Start one run and return when its client knows that it has ended well. Raises if it did not."""


@dataclass(frozen=True, slots=True)
class Load:
    """At most `in_flight` runs at once until `runs` are started or `seconds` have passed; all are awaited."""

    in_flight: int
    runs: int
    seconds: float

    def document(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Measured:
    """`seconds`: from the first start to the last end. `latencies`: of each run, in seconds."""

    seconds: float
    latencies: Sequence[float]

    @property
    def runs(self) -> int:
        return len(self.latencies)

    def document(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "latencies": list(self.latencies)}

    @classmethod
    def of(cls, document: dict[str, Any]) -> Self:
        return cls(document["seconds"], document["latencies"])


async def closed_loop(one: One, load: Load) -> Measured:
    """Put the load on. A run that fails fails the whole: figures of a broken system are worth nothing."""
    latencies: list[float] = []
    left = load.runs
    began = time.perf_counter()

    async def client() -> None:
        nonlocal left
        while left > 0 and time.perf_counter() - began < load.seconds:
            left -= 1
            start = time.perf_counter()
            await one()
            latencies.append(time.perf_counter() - start)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(load.in_flight, load.runs)):
                group.create_task(client())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # The others tell the same.
    return Measured(time.perf_counter() - began, latencies)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: the smallest value that at least this share of all values does not exceed."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    rank = -(-len(ordered) * share // 1)
    return ordered[max(0, int(rank) - 1)]
