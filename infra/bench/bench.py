"""A whole benchmark: servers of its own, each workload on each system in turns, and everything measured."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from infra.bench import machine
from infra.bench.measure import OURS, Result, Values
from infra.bench.platform import Platform, started
from infra.embedded import EmbeddedStack
from infra.settings import Settings

Say = Callable[[str], None]
COLD_FACTOR = 4


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure. `seconds`: for how long a load starts runs; `runs`: how many at most."""

    against: Sequence[str] = ()
    runs: int = 5_000
    in_flight: Sequence[int] = (100, 8)
    repeats: int = 3
    seconds: float = 10.0
    alone_runs: int = 200
    warm_up_seconds: float = 3.0
    stored_node_runs: int = 1_000_000
    memory_runs: int = 2_000

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Bench:
    """One benchmark under way."""

    stack: EmbeddedStack
    platform: Platform
    options: Options
    say: Say
    results: list[Result] = field(default_factory=list)
    warm: bool = False
    """Kafka has compiled its hot paths, which takes it much longer than a worker takes to fill its caches."""

    def warm_up_seconds(self) -> float:
        """For how long to load this system before a measurement of it."""
        cold, self.warm = not self.warm, True
        return self.options.warm_up_seconds * (COLD_FACTOR if cold else 1)

    def note(self, workload: str, load: str, values: Values, system: str = OURS) -> None:
        self.results.append(Result(workload, load, system, values))
        shown = ", ".join(f"{name} {value:,.4g}" for name, value in list(values.items())[:3])
        self.say(f"  {workload}, {load}: {system}: {shown}")

    async def settle(self) -> None:
        """Write out what earlier measurements left to write, so that the next does not pay for it."""
        connection = await asyncpg.connect(self.stack.database_url)
        try:
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def workers(self, count: int = 1) -> AsyncIterator[None]:
        """So many fresh workers, stopped at the end of the block."""
        for _ in range(count):
            await self.platform.start_worker()
        try:
            yield
        finally:
            await self.platform.stop_workers()


Workload = Callable[[Bench], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found, and where."""

    machine: dict[str, Any]
    options: Options
    results: Sequence[Result]

    def document(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "options": self.options.document(),
            "results": [result.document() for result in self.results],
        }


async def run(workloads: Sequence[Workload], options: Options, settings: Settings, folder: Path, say: Say) -> Report:
    """Start servers in the folder, measure, stop. Raises BenchFailed or StackError."""
    facts = machine.facts()
    async with EmbeddedStack(
        folder,
        full_jit=True,
        heap_megabytes=settings.embedded_kafka_heap_megabytes,
        cache_dir=settings.cache_dir,
    ) as stack:
        addresses = {
            "data_dir": stack.folder.path,
            "database_url": stack.database_url,
            "kafka_bootstrap": stack.kafka_bootstrap,
        }
        async with started(stack, settings.model_copy(update=addresses)) as platform:
            bench = Bench(stack, platform, options, say)
            for workload in workloads:
                await bench.settle()
                await workload(bench)
            return Report(facts, options, bench.results)
