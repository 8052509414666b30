"""Every fault there is, one after the other by chance, under a steady load: what comes up is the seed's choice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import asyncpg

from infra.chaos.faults import NobodyThere, Victim
from infra.chaos.judge import DATABASE_ERRORS
from infra.chaos.roles import BEFORE_COMMIT, BEFORE_SEND
from infra.chaos.scene import Conclusion, Scene, scene
from infra.embedded.processes import KILL, STOP_GENTLY
from infra.embedded.state import Role
from infra.settings import Settings
from infra.stack import Say

WORKERS = 2
WORKERS_MAX = 4
QUIET_SECONDS = (0.5, 7.0)
"""Between one fault and the next."""
STOPPED_SECONDS = (1.0, 12.0)
"""How long a process stands still: less than a session, or more."""


@dataclass(slots=True)
class MixReport:
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    """Faults whose victim was not there just then."""
    conclusion: Conclusion = field(default_factory=Conclusion)

    def document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "faults": dict(self.faults),
            "missed": dict(self.missed),
            **self.conclusion.document(),
        }


async def mix_test(settings: Settings, *, seconds: float, runs_per_second: float, seed: int, say: Say) -> MixReport:
    report = MixReport(seed)
    async with scene(settings, seed=seed, say=say, workers=WORKERS) as stage:
        load = asyncio.create_task(stage.load.run(int(seconds * runs_per_second), seconds))
        mix = Mix(stage, report)
        try:
            await mix.run(seconds)
        finally:
            mix.wake_all()
        await load
        report.conclusion = await stage.conclude()
    return report


class Mix:
    """Draws faults and does them; one that takes a while goes on beside the next ones."""

    def __init__(self, stage: Scene, report: MixReport) -> None:
        self._stage = stage
        self._report = report
        self._random = Random(report.seed)
        self._workers = [f"worker-{index}" for index in range(WORKERS)]
        self._stopped: list[Victim] = []
        self._began = time.monotonic()
        self._faults: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "kill worker": (6, self._kill_worker),
            "kill all workers": (1, self._kill_all_workers),
            "kill executor": (3, lambda: self._kill("executor", 0)),
            "kill gateway": (3, lambda: self._kill("gateway", 0)),
            "stop worker": (3, self._stop_worker),
            "stop worker before commit": (2, lambda: self._stop_worker(BEFORE_COMMIT)),
            "stop worker before send": (2, lambda: self._stop_worker(BEFORE_SEND)),
            "stop executor": (2, lambda: self._stand_still("executor", 0)),
            "stop gateway": (1, lambda: self._stand_still("gateway", 0)),
            "kill kafka": (2, lambda: self._kill("kafka", 0)),
            "stop kafka": (1, lambda: self._stand_still("kafka", 0)),
            "cut postgres": (2, self._cut_postgres),
            "cut connections": (4, self._cut_connections),
            "worker joins": (2, self._join),
            "worker leaves": (2, self._leave),
        }

    async def run(self, seconds: float) -> None:
        names = list(self._faults)
        weights = [weight for weight, _ in self._faults.values()]
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(self._random.uniform(*QUIET_SECONDS))
                if time.monotonic() - self._began > seconds - 1:
                    return
                name = self._random.choices(names, weights)[0]
                group.create_task(self._do(name))

    def wake_all(self) -> None:
        """Nothing may stand still for ever."""
        for victim in self._stopped:
            self._go_on(victim)

    async def _do(self, name: str) -> None:
        self._stage.say(f"{time.monotonic() - self._began:6.1f} s  {name}")
        try:
            await self._faults[name][1]()
        except (NobodyThere, *DATABASE_ERRORS) as error:
            self._report.missed[name] += 1
            self._stage.say(f"{name}: {type(error).__name__} {error}")
        else:
            self._report.faults[name] += 1

    def _any_worker(self) -> int:
        return int(self._random.choice(self._workers).rpartition("-")[2])

    async def _kill(self, role: Role, index: int) -> None:
        faults = self._stage.faults
        faults.kill(faults.victim(role, index))

    async def _kill_worker(self) -> None:
        await self._kill("worker", self._any_worker())

    async def _kill_all_workers(self) -> None:
        for name in self._workers:
            await self._kill("worker", int(name.rpartition("-")[2]))

    async def _cut_postgres(self) -> None:
        self._stage.faults.cut_postgres()

    async def _cut_connections(self) -> None:
        database = await asyncpg.connect(self._stage.settings.required_database_url, timeout=3)
        try:
            await self._stage.faults.cut_connections(database, self._random)
        finally:
            await database.close()

    async def _stop_worker(self, place: str | None = None) -> None:
        await self._stand_still("worker", self._any_worker(), place)

    async def _stand_still(self, role: Role, index: int, place: str | None = None) -> None:
        faults = self._stage.faults
        victim = faults.victim(role, index)
        seconds = self._random.uniform(*STOPPED_SECONDS)
        self._stopped.append(victim)
        if place is None:
            faults.stop(victim)
        else:
            faults.stop_at(victim, place)
        await asyncio.sleep(seconds)
        faults.not_at(victim)
        self._go_on(victim)

    def _go_on(self, victim: Victim) -> None:
        try:
            self._stage.faults.go_on(victim)
        except NobodyThere:
            return  # Killed meanwhile.

    async def _join(self) -> None:
        if len(self._workers) >= WORKERS_MAX:
            raise NobodyThere("as many workers as there may be")
        self._workers.append(await self._stage.stack.add("worker"))

    async def _leave(self) -> None:
        if len(self._workers) == 1:
            raise NobodyThere("the last worker stays")
        name = self._workers.pop(self._random.randrange(len(self._workers)))
        await self._stage.stack.remove(name, self._random.choice((STOP_GENTLY, KILL)))
