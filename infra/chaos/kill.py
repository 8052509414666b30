"""The kill test: roles die by kill -9 under a steady load, Kafka and Postgres once each; nothing may be lost."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import asyncpg

from infra.chaos.faults import NobodyThere, Victim
from infra.chaos.judge import DATABASE_ERRORS
from infra.chaos.scene import PROGRESS_SECONDS_MIN, Conclusion, Scene, scene
from infra.chaos.workload import VIAS
from infra.local.supervisor import RoleName, Say
from infra.settings import Settings

VICTIMS = ("worker-0", "worker-1", "executor-0", "gateway-0")
TARGET_SECONDS = 4.0
"""Beyond the session time-out: how soon what a dead worker left should go on."""
LEAD_SECONDS = 3.0
WATCH_SECONDS = 45.0
POLL_SECONDS = 0.2
AIM_SECONDS = 40.0
"""How long to wait for a victim to have work: while a server is away, nobody has."""


@dataclass(frozen=True, slots=True)
class Plan:
    runs: int = 2_000
    seconds: float = 150.0
    seed: int = 1
    kills: int = 32
    workers: int = 2
    servers: bool = True
    """Also kill Kafka and cut Postgres, once each."""
    victims: tuple[str, ...] = VICTIMS
    vias: tuple[str, ...] = VIAS


@dataclass(slots=True)
class Kill:
    """One kill -9. `steps`: leased by the process; `runs`: under way in its lanes; `requests`: being answered."""

    name: str
    at: float
    steps: int = 0
    runs: int = 0
    requests: int = 0
    lanes_seconds: float | None = None
    steps_seconds: list[float] = field(default_factory=list)
    alone: bool = True
    """No other fault hit before what it left had been taken up."""

    @property
    def with_work(self) -> bool:
        return bool(self.steps or self.runs or self.requests)


@dataclass(frozen=True, slots=True)
class Aim:
    """A process about to be killed and what it holds; `at` is database time."""

    kill: Kill
    victim: Victim
    lanes: list[int]
    steps: list[str]
    at: float


@dataclass(slots=True)
class KillReport:
    plan: Plan
    kills: list[Kill] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)
    conclusion: Conclusion = field(default_factory=Conclusion)

    @property
    def problems(self) -> list[str]:
        idle = [kill.name for kill in self.kills if not kill.with_work]
        return self.conclusion.problems + ([f"killed without work in flight: {idle}"] if idle else [])

    def document(self) -> dict[str, Any]:
        alone = [kill for kill in self.kills if kill.alone]
        return {
            "seed": self.plan.seed,
            "kills": len(self.kills),
            "kills by process": dict(Counter(kill.name for kill in self.kills)),
            "kills with work in flight": sum(kill.with_work for kill in self.kills),
            "servers": self.servers,
            "lanes resumed, seconds": spread(_lanes(self.kills)),
            "lanes resumed, no other fault near": spread(_lanes(alone)),
            "steps resumed, seconds": spread(_steps(self.kills)),
            "steps resumed, no other fault near": spread(_steps(alone)),
            **self.conclusion.document(),
            "clean": not self.problems,
            "problems": self.problems,
        }


def _lanes(kills: list[Kill]) -> list[float]:
    return [kill.lanes_seconds for kill in kills if kill.lanes_seconds is not None]


def _steps(kills: list[Kill]) -> list[float]:
    return [seconds for kill in kills for seconds in kill.steps_seconds]


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(statistics.median(ordered), 2),
        "p90": round(ordered[int(len(ordered) * 0.9)], 2),
        "max": round(ordered[-1], 2),
    }


async def kill_test(settings: Settings, plan: Plan, say: Say) -> KillReport:
    """Start a stack on `settings.data_dir`, load it, kill in it, let it heal, judge it, stop it."""
    report = KillReport(plan)
    async with scene(settings, seed=plan.seed, say=say, workers=plan.workers, vias=plan.vias) as stage:
        say(f"{plan.runs} runs over {plan.seconds:g} s, {plan.kills} kills, seed {plan.seed}")
        killer = Killer(stage, report)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(stage.load.run(plan.runs, plan.seconds))
                group.create_task(killer.run())
            report.conclusion = await stage.conclude(progress=plan.seconds >= PROGRESS_SECONDS_MIN)
            await killer.measure()
        except Exception as error:
            report.conclusion = stage.broken_off(error)
    return report


class Killer:
    """Kills by turns, each process about as often as any other; always one that has work in flight."""

    def __init__(self, stage: Scene, report: KillReport) -> None:
        self._settings = stage.settings
        self._plan = report.plan
        self._load = stage.load
        self._report = report
        self._say = stage.say
        self._faults = stage.faults
        self._random = Random(report.plan.seed)
        self._aims: list[Aim] = []
        self._watches: list[asyncio.Task[None]] = []
        self._began = 0.0
        self._served = 0
        self._disturbed: list[float] = []

    async def run(self) -> None:
        plan = self._plan
        self._began = time.monotonic()
        events: list[tuple[float, str]] = []
        span = max(1.0, plan.seconds - LEAD_SECONDS - 2)
        for number, name in enumerate(self._turns()):
            jitter = self._random.uniform(-0.3, 0.3)
            events.append((LEAD_SECONDS + (number + 0.5 + jitter) * span / plan.kills, name))
        if plan.servers:
            events += [(plan.seconds * 0.45, "kafka"), (plan.seconds * 0.7, "postgres")]
        for due, name in sorted(events):
            await asyncio.sleep(max(0.0, self._began + due - time.monotonic()))
            await self._hit(name)
        await asyncio.gather(*self._watches)

    def _turns(self) -> list[str]:
        """Which process dies when: shuffled rounds, so that none waits long for its turn."""
        names = list(self._plan.victims)
        turns: list[str] = []
        while len(turns) < self._plan.kills:
            self._random.shuffle(names)
            turns += names
        return turns[: self._plan.kills]

    async def _hit(self, name: str) -> None:
        if name == "kafka":
            self._faults.kill_kafka()
        elif name == "postgres":
            self._faults.cut_postgres()
        else:
            await self._kill_busy(name)
            return
        self._report.servers.append(f"{name} at {self._elapsed():.1f} s")
        self._disturbed.append(self._elapsed())
        self._say(f"{self._elapsed():6.1f} s  {name} killed")

    async def _kill_busy(self, name: str) -> None:
        aim = await self._aim(name)
        kill = aim.kill
        if aim.victim.role == "gateway":
            self._served = self._load.served
        self._report.kills.append(kill)
        self._disturbed.append(kill.at)
        self._aims.append(aim)
        self._say(
            f"{kill.at:6.1f} s  {name} killed: {kill.steps} steps, {kill.runs} runs, {kill.requests} requests in flight"
        )
        if aim.lanes:
            self._watches.append(asyncio.create_task(self._watch(aim)))

    async def _aim(self, name: str) -> Aim:
        """Wait until the process has work in flight (bounded), then kill it."""
        role, _, index = name.partition("-")
        patience = time.monotonic() + AIM_SECONDS
        while True:
            try:
                aim = await self._look(self._faults.victim(_role(role), int(index)))
                if aim.kill.with_work or time.monotonic() > patience:
                    self._faults.kill(aim.victim)
                    return aim
            except (NobodyThere, *DATABASE_ERRORS) as error:
                if time.monotonic() > patience + WATCH_SECONDS:
                    raise
                self._say(f"{self._elapsed():6.1f} s  waiting to kill {name}: {type(error).__name__} {error}")
            await asyncio.sleep(POLL_SECONDS)

    async def _look(self, victim: Victim) -> Aim:
        kill = Kill(victim.name, self._elapsed())
        if victim.role == "gateway":
            # Attempts to reach one that is not up yet are no work in flight.
            kill.requests = self._load.in_flight if self._load.served > self._served else 0
            return Aim(kill, victim, [], [], 0.0)
        pattern = victim.owner_pattern
        async with self._database() as database:
            lanes = [row["id"] for row in await database.fetch("SELECT id FROM lane WHERE owner LIKE $1", pattern)]
            leases = await database.fetch(
                "SELECT id FROM node_run WHERE leased_by LIKE $1 AND ready AND status = 'queued'", pattern
            )
            kill.steps = len(leases)
            kill.runs = await database.fetchval(
                "SELECT count(DISTINCT run_id) FROM node_run WHERE lane = ANY($1::int2[])"
                " AND status IN ('queued', 'running', 'pending')",
                lanes,
            )
            at = await database.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
        return Aim(kill, victim, lanes, [str(row["id"]) for row in leases], at)

    async def _watch(self, aim: Aim) -> None:
        """Note when all lanes of a dead worker have been claimed by another process."""
        kill, seen = aim.kill, dict[int, float]()
        until = time.monotonic() + WATCH_SECONDS
        while len(seen) < len(aim.lanes) and time.monotonic() < until:
            await asyncio.sleep(POLL_SECONDS)
            with contextlib.suppress(*DATABASE_ERRORS):
                async with self._database() as database:
                    rows = await database.fetch(
                        "SELECT id, extract(epoch FROM claimed_at)::float8 AS claimed FROM lane"
                        " WHERE id = ANY($1::int2[]) AND owner NOT LIKE $2",
                        aim.lanes,
                        aim.victim.owner_pattern,
                    )
                for row in rows:
                    seen.setdefault(row["id"], row["claimed"] - aim.at)
        kill.lanes_seconds = max(seen.values()) if len(seen) == len(aim.lanes) else WATCH_SECONDS
        if kill.lanes_seconds > self._settings.session_timeout_seconds + TARGET_SECONDS:
            self._say(f"{kill.name} killed at {kill.at:.1f} s: its lanes resumed after {kill.lanes_seconds:.1f} s")

    async def measure(self) -> None:
        """For each step a dead process held: how long until its run's lane heard of it again."""
        async with self._database() as database:
            for aim in self._aims:
                rows = await database.fetch(
                    "SELECT n.id, min(e.at) AS at FROM node_run n JOIN event e ON e.aggregate_id = n.run_id"
                    " AND e.at > $2 AND position(convert_to(n.id::text, 'UTF8') in e.data) > 0"
                    " WHERE n.id = ANY($1::uuid[]) GROUP BY n.id",
                    aim.steps,
                    aim.at,
                )
                aim.kill.steps_seconds = [row["at"] - aim.at for row in rows]
        for kill in self._report.kills:
            longest = max([*kill.steps_seconds, kill.lanes_seconds or 0.0])
            kill.alone = not any(kill.at < other < kill.at + longest for other in self._disturbed)

    @contextlib.asynccontextmanager
    async def _database(self) -> AsyncIterator[Any]:
        database = await asyncpg.connect(self._settings.required_database_url, timeout=3)
        try:
            yield database
        finally:
            await database.close()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began


def _role(name: str) -> RoleName:
    match name:
        case "worker" | "executor" | "gateway":
            return name
        case _:
            raise ValueError(name)
