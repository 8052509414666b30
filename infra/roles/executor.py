"""The executor: it takes steps only."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer

from handlers.steps.executor import Executor, Heartbeats
from infra.roles.extras import Extras
from infra.roles.prepare import prepared
from infra.roles.process import stopping, working
from infra.roles.reachable import until_reachable
from infra.roles.steps import STEP_STOP_SECONDS, step_parts
from infra.settings import Settings
from schemas.topics import STEP_KINDS


async def run_executor(settings: Settings, extras: Extras | None = None) -> None:
    """Execute steps that no worker took, until SIGTERM or SIGINT."""
    async with stopping() as stop:
        if not await until_reachable(settings, stop):
            return
        settings = await prepared(settings)
        async with step_parts(settings, extras or Extras(), "executor") as parts:
            executor = Executor(
                parts.pool, parts.leases, parts.producer, parts.program, poll_seconds=settings.step_poll_seconds
            )
            parts.deliver = executor.deliver
            heartbeats = Heartbeats(parts.pool, parts.leases, settings.lease_renew_seconds)
            hints = _hints(settings, executor, parts.pool.kinds)
            async with working(stop, executor.run(), heartbeats.run(), hints):
                await stop.wait()
                await parts.pool.stop(STEP_STOP_SECONDS)


async def _hints(settings: Settings, executor: Executor, kinds: list[str]) -> None:
    """Wake the executor when a hint of one of its kinds arrives. Every executor hears every hint.

    Also one that its publisher aborts: nothing is decided by it, and nobody's transaction may keep an executor asleep.
    """
    names = [f"{settings.topic_prefix}steps.{kind}" for kind in kinds if kind in STEP_KINDS]
    consumer = AIOKafkaConsumer(
        *names, bootstrap_servers=settings.required_kafka_bootstrap, group_id=None, auto_offset_reset="latest"
    )
    await consumer.start()
    try:
        while True:
            if await consumer.getmany(timeout_ms=1_000, max_records=500):
                executor.wake()
    finally:
        await consumer.stop()
