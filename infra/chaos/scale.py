"""The scale test: 2 workers become 4 and 2 again under load, then 16 members of the group come and go for a while."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import asyncpg

from infra.chaos.roles import STEPS_AT_ONCE, extras
from infra.local.embedded.processes import spawn, stop_child
from infra.local.embedded.state import read_state
from infra.roles.worker import worker
from infra.settings import Settings, load_settings, setting_name
from infra.telemetry import logs

if TYPE_CHECKING:
    from infra.chaos.scene import Conclusion, Scene
    from infra.local.supervisor import Say

MEMBERS = 16
HOSTS = 2
"""Processes that house the members: each member is a worker with its own lanes, sessions and member id."""
CHANGE_SECONDS = 2.0
"""How often one member leaves or joins, over all hosts."""
COMING_POLL_SECONDS = 0.1
MEMBERS_MIN_SHARE = 0.5
STEADY_SECONDS_MIN = 3.0
STOP_SECONDS = 20.0
OWNED_SECONDS_MAX = 240.0
"""Far longer than it takes: what is late is reported, only what hangs is an error."""
RUNS_PER_SECOND = 8.0
LOG = "members.log"
CALM = "members-calm"
"""A file whose being there tells the hosts to let everybody join and stay."""


@dataclass(slots=True)
class ScaleReport:
    """`take_over`: seconds from each request to scale until every lane had an owner of those who should run."""

    seed: int
    take_over: list[tuple[str, float]] = field(default_factory=list)
    joined: int = 0
    left: int = 0
    members_max: int = 0
    storm_seconds: float = 0.0
    runs_per_second: float = 0.0
    records_per_second: float = 0.0
    claims: int = 0
    conclusion: Any = None

    @property
    def problems(self) -> list[str]:
        found: list[str] = list(self.conclusion.problems)
        if self.members_max < MEMBERS:
            found.append(f"{self.members_max} of {MEMBERS} members were in the group at a time")
        return found

    def document(self) -> dict[str, Any]:
        conclusion: Conclusion = self.conclusion
        return {
            "seed": self.seed,
            "take-over, seconds": {what: round(seconds, 2) for what, seconds in self.take_over},
            "storm": {
                "members": self.members_max,
                "joined": self.joined,
                "left": self.left,
                "seconds": round(self.storm_seconds, 1),
                "lanes claimed": self.claims,
                "runs ended a second": round(self.runs_per_second, 1),
                "records handled a second": round(self.records_per_second, 1),
            },
            **conclusion.document(),
            "clean": not self.problems,
            "problems": self.problems,
        }


async def scale_test(settings: Settings, *, seconds: float, seed: int, say: Say) -> ScaleReport:
    """Start a stack on `settings.data_dir`, scale it and let members storm it for `seconds`, then judge what became
    of every run."""
    from infra.chaos.scene import PROGRESS_SECONDS_MIN, scene

    report = ScaleReport(seed)
    async with scene(settings, seed=seed, say=say, workers=2, executors=1) as stage:
        try:
            await _come_and_go(stage, seconds, report)
            report.conclusion = await stage.conclude(progress=seconds >= PROGRESS_SECONDS_MIN)
        except Exception as error:
            report.conclusion = stage.broken_off(error)
    return report


async def _come_and_go(stage: Scene, seconds: float, report: ScaleReport) -> None:
    database = await asyncpg.connect(stage.settings.required_database_url)
    try:
        await _up_and_down(stage, database, seconds / 3, report)
        await _storm(stage, database, seconds, report)
    finally:
        await database.close()


# --- two, four, two ------------------------------------------------------------------------------------------------


async def _up_and_down(stage: Scene, database: Any, seconds: float, report: ScaleReport) -> None:
    load = asyncio.create_task(stage.load.run(int(seconds * RUNS_PER_SECOND), seconds))
    steady = max(STEADY_SECONDS_MIN, seconds / 4)
    await _owned(stage, database, 2)
    for count in (4, 2):
        await asyncio.sleep(steady)
        began = time.monotonic()
        scaling = asyncio.create_task(stage.stack.scale({"worker": count}))
        # The second half of the workers leaves: who is named by then need not have ended yet.
        await _owned(stage, database, count)
        report.take_over.append((f"to {count} workers", time.monotonic() - began))
        await scaling
        stage.say(f"{count} workers own all lanes after {report.take_over[-1][1]:.1f} s")
    await load


async def _owned(stage: Scene, database: Any, count: int) -> None:
    """Wait until the first `count` workers own every lane, each at least one."""
    until = time.monotonic() + OWNED_SECONDS_MAX
    while True:
        state = read_state(stage.settings.data_dir)
        assert state is not None  # The stack runs.
        workers = sorted((p.index, p.identity.pid) for p in state.processes if p.role == "worker")[:count]
        rows = await database.fetch("SELECT DISTINCT split_part(owner, '-', 2) AS pid FROM lane")
        if {row["pid"] for row in rows} == {str(pid) for _, pid in workers} and len(workers) == count:
            return
        if time.monotonic() > until:
            raise TimeoutError(f"{count} workers do not own all lanes: {[row['pid'] for row in rows]} do")
        await asyncio.sleep(0.02)


# --- sixteen come and go -------------------------------------------------------------------------------------------


async def _storm(stage: Scene, database: Any, seconds: float, report: ScaleReport) -> None:
    async with _hosts(stage, report.seed):
        until = time.monotonic() + OWNED_SECONDS_MAX
        while _present(stage.settings) < MEMBERS:
            if time.monotonic() > until:
                raise TimeoutError(f"{_present(stage.settings)} of {MEMBERS} members have come")
            await asyncio.sleep(0.1)
        await stage.stack.scale({"worker": 0})
        stage.say(f"{MEMBERS} members in {HOSTS} processes; one comes or goes every {CHANGE_SECONDS:g} s")
        before, began = await _standing(database), time.monotonic()
        changes = len(_changes(stage.settings))
        await stage.load.run(int(seconds * RUNS_PER_SECOND), seconds)
        passed, after = time.monotonic() - began, await _standing(database)
        storm = _changes(stage.settings)[changes:]
        stage.calm()
        (stage.settings.data_dir / CALM).touch()
        report.storm_seconds = passed
        report.joined, report.left = storm.count("joined"), storm.count("left")
        report.members_max = _most(_changes(stage.settings))
        report.claims = after["claims"] - before["claims"]
        report.runs_per_second = (after["ended"] - before["ended"]) / passed
        report.records_per_second = (after["records"] - before["records"]) / passed
        await stage.stack.scale({"worker": 2})
        await asyncio.sleep(CHANGE_SECONDS)
    await _owned(stage, database, 2)


async def _standing(database: Any) -> dict[str, int]:
    lanes = await database.fetchrow("SELECT sum(epoch)::int8 AS claims, sum(next_offset)::int8 AS records FROM lane")
    ended = await database.fetchval("SELECT count(*) FROM run WHERE kind = 'graph' AND ended_at IS NOT NULL")
    return {"claims": lanes["claims"], "records": lanes["records"], "ended": ended}


@asynccontextmanager
async def _hosts(stage: Scene, seed: int) -> AsyncIterator[None]:
    """The processes that house the members; they end in order with the block."""
    settings = stage.settings
    hosts = [
        spawn(
            [sys.executable, "-m", "infra.chaos.scale", str(MEMBERS // HOSTS), f"{seed}/{number}"],
            log=settings.data_dir / "log" / f"members-{number}.log",
            environment=_environment(settings),
        )
        for number in range(HOSTS)
    ]
    try:
        yield
    finally:
        how = ((signal.SIGTERM, STOP_SECONDS + 20), (signal.SIGKILL, 5.0))
        await asyncio.gather(*(stop_child(host, how) for host in hosts))


def _environment(settings: Settings) -> dict[str, str]:
    names = ("database_url", "kafka_bootstrap", "data_dir", "session_timeout_seconds", "lease_seconds")
    given = {setting_name(name): str(getattr(settings, name)) for name in names}
    return {**os.environ, **given}


def _changes(settings: Settings) -> list[str]:
    log = settings.data_dir / LOG
    return log.read_text(encoding="ascii").split() if log.exists() else []


def _present(settings: Settings) -> int:
    changes = _changes(settings)
    return changes.count("joined") - changes.count("left")


def _most(changes: list[str]) -> int:
    """The most members there were at a time."""
    most = present = 0
    for change in changes:
        present += 1 if change == "joined" else -1
        most = max(most, present)
    return most


# --- a host --------------------------------------------------------------------------------------------------------


class Host:
    """Houses members of the group: each is a worker as `ap worker` runs one, but for its process."""

    def __init__(self, settings: Settings, places: int, seed: str) -> None:
        self._settings = settings.model_copy(update={"step_concurrency": STEPS_AT_ONCE})
        self._random = Random(f"members {seed}")
        self._places = places
        self._members: dict[int, tuple[asyncio.Event, asyncio.Task[None]]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self.stop = asyncio.Event()

    async def run(self) -> None:
        for place in range(self._places):
            self._join(place)
        while _changes(self._settings).count("joined") < MEMBERS and not self.stop.is_set():
            self._check()
            await self._wait(COMING_POLL_SECONDS)
        calm = self._settings.data_dir / CALM
        while not self.stop.is_set():
            self._check()
            await self._wait(self._random.uniform(0.5, 1.5) * CHANGE_SECONDS * HOSTS)
            absent = [place for place in range(self._places) if place not in self._members]
            if calm.exists():
                for place in absent:
                    self._join(place)
            elif (absent and self._random.random() < 0.5) or len(self._members) <= self._places * MEMBERS_MIN_SHARE:
                self._join(self._random.choice(absent))
            else:
                self._leave(self._random.choice(sorted(self._members)))
        for place in list(self._members):
            self._leave(place)
        await asyncio.gather(*self._leaving)

    def _check(self) -> None:
        """A member that ends by itself ends the host: it must not."""
        for _, task in self._members.values():
            if task.done():
                task.result()

    async def _wait(self, seconds: float) -> None:
        stopped = asyncio.create_task(self.stop.wait())
        await asyncio.wait({stopped}, timeout=seconds)
        stopped.cancel()

    def _join(self, place: int) -> None:
        leave = asyncio.Event()
        self._members[place] = (leave, asyncio.create_task(self._member(leave)))

    def _leave(self, place: int) -> None:
        leave, task = self._members.pop(place)
        leave.set()
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _member(self, leave: asyncio.Event) -> None:
        async with worker(self._settings, extras(self._settings)) as running:
            work = [asyncio.ensure_future(running.worker.run())]
            work += [asyncio.ensure_future(duty.run()) for duty in running.duties]
            self._note("joined")
            try:
                left = asyncio.ensure_future(leave.wait())
                await asyncio.wait({left, *work}, return_when=asyncio.FIRST_COMPLETED)
                left.cancel()
                for task in work:
                    if task.done():
                        task.result()
                await running.worker.stop()
                await asyncio.gather(*(pool.stop(STOP_SECONDS) for pool in running.pools))
            finally:
                self._note("left")
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)

    def _note(self, what: str) -> None:
        with (self._settings.data_dir / LOG).open("a", encoding="ascii") as log:
            log.write(f"{what}\n")


async def _house(places: int, seed: str) -> None:
    settings = load_settings()
    logs.start(settings, "members")
    host = Host(settings, places, seed)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, host.stop.set)
    await host.run()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_house(int(sys.argv[1]), sys.argv[2]))
