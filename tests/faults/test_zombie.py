"""A worker stands still past its session and comes back: what it held is somebody else's, and it must notice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg

from infra.chaos.book import effects
from infra.chaos.faults import Victim, is_stopped
from infra.chaos.places import BEFORE_COMMIT, BEFORE_SEND
from infra.chaos.scene import Scene, scene
from infra.local.supervisor import Say
from infra.settings import Settings
from tests.faults.conftest import LONG
from tests.faults.waiting import until

ROUNDS = 12 if LONG else 1
RUNS_PER_SECOND = 8


async def test_a_worker_stopped_in_mid_transaction_or_before_it_sends_writes_nothing_stale(
    settings: Settings, say: Say
) -> None:
    async with scene(settings, seed=3, say=say, workers=2, executors=0) as stage:
        stop = asyncio.Event()
        load = asyncio.create_task(_load_until(stage, stop))
        zombie = stage.faults.victim("worker", 0).pid
        await until(lambda: stage.load.started > RUNS_PER_SECOND, "some runs")
        for _ in range(ROUNDS):
            for place in (BEFORE_COMMIT, BEFORE_SEND):
                await _zombie(stage, place)
        stop.set()
        await load
        done = await stage.conclude(progress=False)  # Half of the workers stands still.
    say(str(done.document()))
    log = Path(settings.data_dir, "log", "worker-0.log").read_text()  # noqa: ASYNC240  # All is over.
    assert done.problems == []
    assert _started_late(Path(settings.data_dir), zombie) == []
    assert "is released" in log, "the zombie lost its lanes and noticed"
    on_topic, logged = done.invariants["checked"]["events records"], done.invariants["checked"]["events"]
    assert on_topic > logged, "the zombie sent late what its successor had sent: without that, nothing was shown"


def _started_late(folder: Path, zombie: int) -> list[str]:
    """Attempts whose effect the zombie started although somebody else, whose leases never ran out, had done so."""
    others: set[tuple[str, int]] = set()
    late = []
    for effect in effects(folder):
        if effect.pid != zombie:
            others.add((effect.key, effect.attempt))
        elif (effect.key, effect.attempt) in others:
            late.append(effect.key)
    return late


async def _zombie(stage: Scene, place: str) -> None:
    """Stop worker 0 at a place, let the other one take over and work, then let it go on."""
    zombie = stage.faults.victim("worker", 0)
    await until(lambda: _holds(stage, zombie, everything=False), "worker 0 has lanes")
    stage.faults.stop_at(zombie, place)
    await until(lambda: is_stopped(zombie), f"worker 0 stands still {place}")
    stage.say(f"worker 0 stands still {place}")
    try:
        await until(lambda: _holds(stage, stage.faults.victim("worker", 1), everything=True), "worker 1 has all lanes")
        taken = len(stage.load.taken)
        await until(lambda: len(stage.load.taken) > taken + RUNS_PER_SECOND, "runs accepted meanwhile")
    finally:
        stage.faults.go_on(zombie)
    await until(lambda: _holds(stage, zombie, everything=False), "worker 0 has lanes again")


async def _load_until(stage: Scene, stop: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        while not stop.is_set():
            group.create_task(stage.load.run(RUNS_PER_SECOND, 1))
            await asyncio.sleep(1)


async def _holds(stage: Scene, victim: Victim, *, everything: bool) -> bool:
    database = await asyncpg.connect(stage.settings.required_database_url)
    try:
        owned = await database.fetch("SELECT owner LIKE $1 AS own FROM lane", victim.owner_pattern)
    finally:
        await database.close()
    return (all if everything else any)(row["own"] for row in owned)
