"""A gateway whose Kafka or Postgres is away says so, promises nothing, and recovers by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from infra.chaos.scene import Scene, scene
from infra.local.embedded import EmbeddedStack, embedded_stack
from infra.local.supervisor import Say
from infra.settings import load_settings
from tests.faults.waiting import until
from tests.patience import patient

RUNS, SECONDS = 60, 10.0
"""A load for each outage: one for both could be over before the second one comes."""


async def test_without_kafka_or_postgres_503_and_never_a_false_promise(folder: Path, say: Say) -> None:
    async with embedded_stack(folder / "servers") as servers:
        settings = load_settings(
            data_dir=folder / "roles",
            database_url=servers.database_url,
            kafka_bootstrap=servers.kafka_bootstrap,
            gateway_port=0,
        )
        async with scene(settings, seed=4, say=say, workers=1, executors=0, vias=("http",)) as stage:
            await _without(stage, servers.kafka.kill, servers.kafka.start)
            await _without(stage, lambda: servers.postgres.stop(immediate=True), _again(servers), reads=True)
            done = await stage.conclude(progress=False)  # The outages are most of its time.
    say(str(done.document()))
    assert done.problems == []
    assert done.accepted == 2 * RUNS


async def _without(
    stage: Scene, stop: Callable[[], Awaitable[None]], start: Callable[[], Awaitable[None]], *, reads: bool = False
) -> None:
    before = len(stage.load.taken)
    load = asyncio.create_task(stage.load.run(RUNS, SECONDS))
    await until(lambda: len(stage.load.taken) > before + 5, "runs are accepted")
    refused = stage.load.answers["503"]
    known = next(iter(stage.load.taken))
    await stop()
    await until(lambda: stage.load.answers["503"] > refused, "writes are refused with 503")
    async with httpx.AsyncClient(base_url=stage.load.gateway_url, timeout=patient(30)) as client:
        ready = await client.get("/ready")
        assert ready.status_code == 503, ready.text
        assert ready.headers["retry-after"]
        answer = await client.get(
            f"/gateway/runtime/runs/{known}", headers={"x-tenant-id": stage.load.taken[known].tenant_id}
        )
        if reads:
            assert answer.status_code == 503, answer.text
            assert answer.headers["retry-after"]
        else:
            assert answer.status_code == 200, answer.text
    served = stage.load.served
    await start()
    await until(lambda: stage.load.served > served + 5, "runs are accepted again")
    await load


def _again(servers: EmbeddedStack) -> Callable[[], Awaitable[None]]:
    return lambda: servers.postgres.start()
