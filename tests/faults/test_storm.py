"""Members join and leave the group every two seconds: lanes wander, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
from random import Random

from infra.chaos.scene import Scene, scene
from infra.local.supervisor import Say
from infra.settings import Settings
from tests.faults.conftest import LONG
from tests.faults.damage import undetected

SECONDS = 120.0 if LONG else 16.0
RUNS = 1_200 if LONG else 160
MEMBERS_MAX = 4
CHANGES_MIN = int(SECONDS / 4)


async def test_members_join_and_leave_every_two_seconds(settings: Settings, say: Say) -> None:
    async with scene(settings, seed=5, say=say, workers=2, executors=0) as stage:
        changes: list[str] = []
        await _storm(stage, asyncio.create_task(_load(stage, changes)), changes)
        done = await stage.conclude(progress=LONG)  # A short load ends late on a slow machine.
        unseen = await undetected(stage)
    say(f"{changes}; {RUNS / SECONDS:.1f} runs/s offered; {done.document()}")
    assert done.problems == []
    assert unseen == set(), "the judge would not have seen such damage"


async def _load(stage: Scene, changes: list[str]) -> None:
    """Offer runs for so long, and on until the membership has changed often enough, however slow that is."""
    await stage.load.run(RUNS, SECONDS)
    while len(changes) < CHANGES_MIN:
        await stage.load.run(RUNS // 16, SECONDS / 16)


async def _storm(stage: Scene, load: asyncio.Task[None], changes: list[str]) -> None:
    """Change the membership every two seconds while the load runs; `changes` tells how."""
    random = Random(5)
    members = ["worker-0", "worker-1"]
    leaving: set[asyncio.Task[None]] = set()
    while not load.done():
        if len(members) == 1 or (len(members) < MEMBERS_MAX and random.random() < 0.5):
            members.append(await stage.stack.add("worker"))
            changes.append(f"{members[-1]} joined")
        else:
            leaver = members.pop(random.randrange(len(members)))
            leaving.add(asyncio.create_task(stage.stack.remove(leaver)))
            changes.append(f"{leaver} left")
        await asyncio.sleep(2)
    await asyncio.gather(load, *leaving)
