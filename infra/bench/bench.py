"""A whole benchmark: servers of its own, each workload on each system in turns, and everything measured."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import asyncpg

from infra.bench.catalogue import PEERS
from infra.bench.load import WITHOUT_END, Load, Measured
from infra.bench.measure import OURS, Result, Series, System, Values, measure
from infra.bench.platform import Platform, started
from infra.bench.processes import CpuSpent
from infra.bench.profiler import Profiler
from infra.local.embedded import EmbeddedStack
from infra.settings import Settings

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How much to measure. `seconds`: for how long a load starts runs; `runs`: how many at most.

    `saturating`: so many runs in flight that one worker has full batches, and more waiting.
    `cold_seconds`: before everything, until Kafka's broker has compiled its hot paths.
    """

    against: Sequence[str] = ()
    runs: int = 5_000
    in_flight: Sequence[int] = (100, 8)
    repeats: int = 3
    seconds: float = 10.0
    alone_runs: int = 200
    warm_up_seconds: float = 3.0
    cold_seconds: float = 60.0
    reads_in_flight: int = 32
    long_nodes: int = 1_000
    long_in_flight: int = 20
    stored_node_runs: int = 1_000_000
    memory_runs: int = 2_000
    saturating: int = 1_000
    rebuild_events: int = 200_000
    backlog_runs: int = 100_000
    noisy_runs: int = 5_000
    profile: bool = False

    def small(self) -> Options:
        """The same for a quick look: figures mean little, and everything is gone through."""
        return replace(
            self, runs=min(self.runs, 200), repeats=1, seconds=min(self.seconds, 2.0), alone_runs=20,
            warm_up_seconds=0.5, cold_seconds=2.0, long_nodes=100, long_in_flight=5, stored_node_runs=20_000,
            memory_runs=200, saturating=200, rebuild_events=5_000, backlog_runs=2_000, noisy_runs=500,
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Bench:
    """One benchmark under way. `settings`: with the addresses of the servers."""

    settings: Settings
    stack: EmbeddedStack
    platform: Platform
    options: Options
    say: Say
    results: list[Result] = field(default_factory=list)
    profiler: Profiler | None = None
    repeat: int = 0

    def warm_up(self, in_flight: int) -> Load:
        """What to load a system with before a measurement of it."""
        return Load(in_flight, WITHOUT_END, self.options.warm_up_seconds)

    def repeats(self) -> Iterator[int]:
        """One number for each repeat of a workload; what is noted meanwhile belongs to it."""
        for repeat in range(self.options.repeats):
            self.repeat = repeat
            yield repeat

    def note(self, workload: str, load: str, values: Values, system: str = OURS, series: Series | None = None) -> None:
        self.results.append(Result(workload, load, system, values, self.repeat, series))
        shown = ", ".join(f"{name} {value:,.4g}" for name, value in list(values.items())[:3])
        self.say(f"  {workload}, {load}: {system}: {shown}")

    async def measure(
        self, title: str, system: System, load: Load, platform: Platform | None = None
    ) -> tuple[Measured, CpuSpent]:
        """Put a load on a system and profile it if it is ours and that is wanted. Figures are lower then."""
        if self.profiler is None or system.name != OURS:
            return await measure(system, load)
        url = (platform or self.platform).settings.required_database_url
        async with self.profiler.during(title, system.kinds()["worker"], url) as shown:
            found = await measure(system, load)
        for line in shown:
            self.say(line)
        return found

    async def quiesce(self) -> None:
        """Write out what earlier measurements left to write, so that the next does not pay for it."""
        connection = await asyncpg.connect(self.stack.database_url)
        try:
            await connection.execute("CHECKPOINT")
        finally:
            await connection.close()

    @contextlib.asynccontextmanager
    async def fresh(self, name: str) -> AsyncIterator[Platform]:
        """The system with an empty database and topics of its own. The database is gone at the end of the block."""
        name = f"{name}_{uuid.uuid4().hex[:8]}"
        changes = {"database_url": await self.stack.new_database(name), "topic_prefix": f"{name}."}
        try:
            async with started(self.stack, self.settings.model_copy(update=changes)) as platform:
                yield platform
        finally:
            await self.stack.drop_database(name)


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found, and where. `versions`: of the other systems."""

    machine: dict[str, Any]
    options: Options
    versions: Mapping[str, str]
    results: Sequence[Result]
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """A report as `document` wrote it. Raises LookupError, TypeError or ValueError if it is none."""
        versions = {name: system["version"] for name, system in document["systems"].items()}
        results = [Result.of(each) for each in document["results"]]
        return cls(document["machine"], Options(**document["options"]), versions, results, document["notes"])

    def with_earlier(self, earlier: Report) -> Report:
        """Both together; repeats keep apart, so that nothing is compared with what was measured at another time."""
        first = 1 + max((result.repeat for result in self.results), default=-1)
        moved = [replace(result, repeat=first + result.repeat) for result in earlier.results]
        note = f"{', '.join(dict.fromkeys(each.workload for each in moved))}: measured at {earlier.machine['at']}"
        return replace(
            self,
            versions={**earlier.versions, **self.versions},
            results=[*self.results, *moved],
            notes=[*self.notes, *earlier.notes, note],
        )

    def document(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "options": self.options.document(),
            "systems": {
                name: {"version": version, "set_up": PEERS[name].set_up, "records": PEERS[name].records}
                for name, version in self.versions.items()
            },
            "notes": list(self.notes),
            "results": [result.document() for result in self.results],
        }
