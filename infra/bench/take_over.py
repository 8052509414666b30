"""Take-over: how soon a new worker handles records, after its process started and after another was killed."""

from __future__ import annotations

import time
import uuid

from infra.bench.bench import Bench
from infra.bench.load import Load, closed_loop
from infra.bench.measure import Values
from infra.bench.platform import PATIENCE_SECONDS, Chain, Platform
from infra.bench.workloads import NODES, PURE
from schemas.topics import partition_of


async def take_over(bench: Bench) -> None:
    """A run waits in every lane; timed from the start of the process, or from the kill -9, to the ends of the runs."""
    platform = bench.platform
    async with platform.running():
        version = await platform.create_workflow(NODES, PURE)
        await Chain(platform, version, NODES).load(bench.warm_up(8))
    for _ in bench.repeats():
        async with platform.running(0):
            began = time.perf_counter()
            await platform.start_worker()
            bench.note("take-over", "start, none before", await _every_lane(platform, version, began))

            began = time.perf_counter()
            await platform.kill_worker(platform.workers[0])
            await platform.start_worker()
            bench.note(
                "take-over", "kill -9 of the only one, a new one at once", await _every_lane(platform, version, began)
            )

            await platform.start_worker()
            await platform.until_shared()
            began = time.perf_counter()
            await platform.kill_worker(platform.workers[0])
            bench.note("take-over", "kill -9 of one of two", await _every_lane(platform, version, began))


async def _every_lane(platform: Platform, version: str, began: float) -> Values:
    """Start one run in each lane; when the first and when the last of them had ended, in seconds."""
    lanes = platform.settings.commands_partitions
    ids: dict[int, str] = {}
    while len(ids) < lanes:
        id = str(uuid.uuid4())
        ids[partition_of(id, lanes)] = id
    waiting, ends = list(ids.values()), []

    async def one() -> None:
        await platform.run_once(version, waiting.pop())
        ends.append(time.perf_counter() - began)

    await closed_loop(one, Load(lanes, lanes, PATIENCE_SECONDS))
    session = platform.settings.session_timeout_seconds
    return {"first lane s": min(ends), "every lane s": max(ends), "session time-out s": session}
