"""A topic is made anew under a worker that reads it: its lanes say so and wait, and nothing sent since is lost."""

from __future__ import annotations

import os
import uuid

from infra.local.embedded import EmbeddedStack
from infra.operate import lanes as lane_operations
from schemas.catalog import CreateDefinition
from schemas.topics import COMMANDS
from tests.live import Live, prepared, recreate, running, until


async def test_what_comes_on_a_topic_made_anew_is_not_taken_for_late(services: EmbeddedStack) -> None:
    async with prepared(services, f"anew_{os.getpid()}") as settings, running(settings) as live:
        for number in range(80):
            await live.do(CreateDefinition(kind="app", code=f"old-{number}", name="A"))
        await recreate(settings, COMMANDS)
        ids = [await _sent(live, f"new-{number}") for number in range(8)]
        stopped = await until(lambda: _stopped(live))
        assert all("made anew" in reason or "beyond the topic's end" in reason for reason in stopped.values())
        for lane in stopped:
            await lane_operations.adopt(settings, lane, "begin")
        for id in ids:
            status, body = await live.outcome(id)
            assert status == "succeeded", body


async def _sent(live: Live, code: str) -> str:
    return await live.send(CreateDefinition(kind="app", code=code, name="A"), str(uuid.uuid4()))


async def _stopped(live: Live) -> dict[int, str]:
    """The lanes that stand still, once those of all partitions that were written to do."""
    rows = await live.database.fetch("SELECT id, next_offset, stopped FROM lane WHERE topic = 'commands'")
    stopped = {row["id"]: row["stopped"] for row in rows if row["stopped"]}
    return stopped if len(stopped) == sum(row["next_offset"] > 0 for row in rows) else {}
