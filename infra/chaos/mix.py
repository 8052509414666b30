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
from aiokafka.errors import KafkaError

from bus.producer import BusUnavailable
from infra.chaos import matrix, poison, repeats
from infra.chaos.crashes import CrashReport, crash_test
from infra.chaos.faults import NobodyThere, Victim
from infra.chaos.judge import DATABASE_ERRORS
from infra.chaos.places import BEFORE_COMMIT, BEFORE_REPLY, BEFORE_SEND, BEFORE_WRITE, WORKER_PLACES
from infra.chaos.proxy import Proxy
from infra.chaos.scene import PROGRESS_SECONDS_MIN, Conclusion, Scene, scene
from infra.history.rebuild import rebuild
from infra.local.embedded.processes import KILL, STOP_GENTLY
from infra.local.embedded.state import Role
from infra.local.supervisor import Say
from infra.settings import Settings

WORKERS = 2
WORKERS_MAX = 4
QUIET_SECONDS = (0.5, 5.5)
"""Between one fault and the next."""
STOPPED_SECONDS = (1.0, 12.0)
"""How long a process stands still: less than a session, or more."""
HALF_OPEN_SECONDS = (1.0, 8.0)
SLOW_SECONDS = (0.2, 2.0)
REPEATED_MAX = 300
CRASHES_SHARE = 1 / 6
"""Crashes in process after a run, for each of its seconds."""


@dataclass(slots=True)
class MixReport:
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    """Faults whose victim was not there just then, or that met nothing to hit."""
    counts: Counter[str] = field(default_factory=Counter)
    """By line of the matrix."""
    problems: list[str] = field(default_factory=list)
    """What was seen while faults struck."""
    conclusion: Conclusion = field(default_factory=Conclusion)
    crashes: CrashReport | None = None

    def document(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "faults": dict(self.faults),
            "missed": dict(self.missed),
            "matrix": matrix.document(self.counts),
            "crashes in process": self.crashes.document() if self.crashes else None,
            **self.conclusion.document(),
        }


async def mix_test(settings: Settings, *, seconds: float, runs_per_second: float, seed: int, say: Say) -> MixReport:
    report = MixReport(seed)
    async with scene(settings, seed=seed, say=say, workers=WORKERS) as stage:
        await under_faults(stage, report, seconds, runs_per_second)
    return report


async def under_faults(stage: Scene, report: MixReport, seconds: float, runs_per_second: float) -> None:
    """Load and faults, then the conclusion; whatever keeps them from their end is a finding."""
    try:
        report.conclusion = await _faults(stage, report, seconds, runs_per_second)
        crashes = int(seconds * CRASHES_SHARE)
        report.crashes = await crash_test(stage.settings, crashes=crashes, seed=report.seed, say=stage.say)
        report.counts["crash point, in process"] += report.crashes.counts.total()
        report.conclusion.problems += report.crashes.problems
    except Exception as error:
        broken = stage.broken_off(error)
        broken.problems += report.conclusion.problems
        report.conclusion = broken
    report.conclusion.problems += report.problems


async def _faults(stage: Scene, report: MixReport, seconds: float, runs_per_second: float) -> Conclusion:
    load = asyncio.create_task(stage.load.run(int(seconds * runs_per_second), seconds))
    mix = Mix(stage, report)
    try:
        try:
            await mix.run(seconds)
        finally:
            mix.wake_all()
        stage.calm()
        await load
    finally:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)
        report.counts["run offered"] += stage.load.started
    return await stage.conclude(progress=seconds >= PROGRESS_SECONDS_MIN)


class Mix:
    """Draws faults and does them; one that takes a while goes on beside the next ones."""

    def __init__(self, stage: Scene, report: MixReport) -> None:
        self._stage = stage
        self._report = report
        self._random = Random(report.seed)
        self._workers = [f"worker-{index}" for index in range(WORKERS)]
        self._stopped: list[Victim] = []
        self._began = time.monotonic()
        settings = stage.settings
        self._poison = poison.cases(report.seed, settings.commands_partitions, settings.ingress_partitions)
        self._faults: dict[str, tuple[int, Callable[[], Awaitable[None]]]] = {
            "kill worker": (6, self._kill_worker),
            "kill worker at a place": (6, self._kill_worker_at),
            "kill all workers": (2, self._kill_all_workers),
            "kill executor": (3, self._kill_executor),
            "kill gateway": (6, self._kill_gateway),
            "kill gateway before it replies": (6, self._kill_gateway_at),
            "stop worker": (3, self._stop_worker),
            "stop worker before its transaction": (2, lambda: self._stop_worker(BEFORE_WRITE)),
            "stop worker before commit": (2, lambda: self._stop_worker(BEFORE_COMMIT)),
            "stop worker before send": (2, lambda: self._stop_worker(BEFORE_SEND)),
            "stop executor": (3, lambda: self._stand_still("executor", 0)),
            "stop gateway": (1, lambda: self._stand_still("gateway", 0)),
            "kill kafka": (2, self._kill_kafka),
            "stop kafka": (2, self._stop_kafka),
            "half-open kafka": (3, self._half_open_kafka),
            "cut postgres": (3, self._cut_postgres),
            "end sessions of postgres": (4, self._cut_connections),
            "slow postgres": (3, self._slow_postgres),
            "worker joins": (3, self._join),
            "worker leaves": (3, self._leave),
            "send records again": (4, self._repeat),
            "replay a partition": (2, self._replay),
            "poison": (11, self._poison_one),
            "rebuild": (1, self._rebuild),
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
        except (NobodyThere, *DATABASE_ERRORS, KafkaError, BusUnavailable) as error:
            self._report.missed[name] += 1
            self._stage.say(f"{name}: {type(error).__name__} {error}")
        else:
            self._report.faults[name] += 1

    def _count(self, line: str, times: int = 1) -> None:
        self._report.counts[line] += times

    # --- processes -------------------------------------------------------------------------------------------

    def _any_worker(self) -> int:
        return _index(self._random.choice(self._workers))

    def _kill(self, role: Role, index: int) -> None:
        faults = self._stage.faults
        faults.kill(faults.victim(role, index))

    async def _kill_worker(self) -> None:
        self._kill("worker", self._any_worker())
        self._count("worker or executor killed")

    async def _kill_executor(self) -> None:
        self._kill("executor", 0)
        self._count("worker or executor killed")

    async def _kill_all_workers(self) -> None:
        for name in self._workers:
            self._kill("worker", _index(name))
            self._count("worker or executor killed")
        self._count("all workers killed")

    async def _kill_gateway(self) -> None:
        self._kill("gateway", 0)
        self._count("gateway killed")

    async def _kill_worker_at(self) -> None:
        place = self._random.choice(WORKER_PLACES)
        await self._kill_at("worker", self._any_worker(), place)
        self._count("worker or executor killed")

    async def _kill_gateway_at(self) -> None:
        await self._kill_at("gateway", 0, BEFORE_REPLY)
        self._count("gateway killed")

    async def _kill_at(self, role: Role, index: int, place: str) -> None:
        """Wait, bounded, until it has come to the place and died there."""
        faults = self._stage.faults
        victim = faults.victim(role, index)
        faults.kill_at(victim, place)
        for _ in range(50):
            await asyncio.sleep(0.1)
            if not faults.asked_at(victim, place):
                break
        if faults.not_at(victim, place):
            raise NobodyThere(f"{victim.name} did not come to {place}")
        self._count("crash point, kill -9")

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
        came = place is None or not faults.not_at(victim, place)
        self._go_on(victim)
        if not came:
            raise NobodyThere(f"{victim.name} did not come to {place}")
        if role in ("worker", "executor"):
            self._count("zombie")

    def _go_on(self, victim: Victim) -> None:
        try:
            self._stage.faults.go_on(victim)
        except NobodyThere:
            return  # Killed meanwhile.

    async def _join(self) -> None:
        if len(self._workers) >= WORKERS_MAX:
            raise NobodyThere("as many workers as there may be")
        self._workers.append(await self._stage.stack.add("worker"))
        self._count("member joined or left")

    async def _leave(self) -> None:
        if len(self._workers) == 1:
            raise NobodyThere("the last worker stays")
        name = self._workers.pop(self._random.randrange(len(self._workers)))
        self._count("member joined or left")
        await self._stage.stack.remove(name, self._random.choice((STOP_GENTLY, KILL)))

    # --- servers ---------------------------------------------------------------------------------------------

    async def _kill_kafka(self) -> None:
        self._kill("kafka", 0)
        self._count("kafka killed")

    async def _stop_kafka(self) -> None:
        await self._stand_still("kafka", 0)
        self._count("kafka stood still")

    async def _half_open_kafka(self) -> None:
        proxy = _there(self._stage.kafka)
        proxy.block()
        try:
            await asyncio.sleep(self._random.uniform(*HALF_OPEN_SECONDS))
        finally:
            proxy.unblock()
        self._count("kafka half-open")

    async def _cut_postgres(self) -> None:
        self._stage.faults.cut_postgres()
        self._count("postgres cut off")

    async def _cut_connections(self) -> None:
        database = await asyncpg.connect(self._stage.settings.required_database_url, timeout=3)
        try:
            self._count("postgres sessions ended", await self._stage.faults.cut_connections(database, self._random))
        finally:
            await database.close()

    async def _slow_postgres(self) -> None:
        proxy = _there(self._stage.postgres)
        proxy.delay_seconds = self._random.uniform(*SLOW_SECONDS) / 2  # There, and back.
        try:
            await asyncio.sleep(self._random.uniform(2, 6))
        finally:
            proxy.delay_seconds = 0.0
        self._count("postgres slow")

    # --- records ---------------------------------------------------------------------------------------------

    async def _repeat(self) -> None:
        """Some records of `commands` and `ingress`, old and new, once more."""
        again = await repeats.some(self._stage.settings, self._random, REPEATED_MAX)
        self._count("records sent again", again)

    async def _replay(self) -> None:
        again = await repeats.whole_partition(self._stage.settings, self._random)
        self._count("records sent again", again)
        self._count("partition replayed")

    async def _poison_one(self) -> None:
        it = next(self._poison, None)
        if it is None or not await self._stage.load.poison(it):
            raise NobodyThere("no poison is left, or Kafka did not take it")
        self._count("poison")

    async def _rebuild(self) -> None:
        """Folding the log anew beside live work finds every row as it is."""
        found = await rebuild(self._stage.settings.required_database_url)
        if not found.equal:
            self._report.problems.append(f"a rebuild under load found differences: {found.document()}"[:1_000])
        self._count("rebuilt while running")


def _index(name: str) -> int:
    return int(name.rpartition("-")[2])


def _there(proxy: Proxy | None) -> Proxy:
    if proxy is None:
        raise NobodyThere("the server is somebody else's")
    return proxy
