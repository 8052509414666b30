"""The executor: it takes steps only."""

from __future__ import annotations

from handlers.steps.executor import Executor, Heartbeats
from infra.roles.extras import Extras
from infra.roles.hints import Hints
from infra.roles.prepare import prepared
from infra.roles.process import stopping, working
from infra.roles.reachable import until_reachable
from infra.roles.steps import STEP_STOP_SECONDS, step_parts
from infra.settings import Settings


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
            hints = Hints(settings, executor, parts.pool.kinds)
            async with working(stop, executor.run(), heartbeats.run(), hints.run()):
                await stop.wait()
                await parts.pool.stop(STEP_STOP_SECONDS)
