"""The worker: it owns lanes, decides, and takes steps when it has room."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bus.kernel import Kernel
from bus.limits import Limits
from bus.records import Partitions
from bus.worker import Worker
from handlers.ingress import IngressRules
from handlers.steps.executor import Executor, Heartbeats, Sweeper
from handlers.steps.lane_steps import LaneSteps, claimable, hint
from handlers.steps.leases import Leases
from handlers.steps.pool import StepPool
from infra.domains import PROJECTIONS, Installation, domains
from infra.roles import retention
from infra.roles.extras import Extras
from infra.roles.hints import Hints
from infra.roles.prepare import prepared
from infra.roles.process import freeze_start_up_objects, interrupting, stopping, working
from infra.roles.reachable import until_reachable
from infra.roles.steps import STEP_STOP_SECONDS, StepParts, step_parts, undeliverable
from infra.settings import Settings
from infra.telemetry.metrics import LaneMetrics, Owned, RetentionMetrics
from outbox.retention import Retention, nobody
from projections.catalog import Version
from projections.runtime import NodeRun

FALLBACK_AT_ONCE = 32


async def run_worker(settings: Settings, extras: Extras | None = None) -> None:
    """Own lanes and execute steps until SIGTERM or SIGINT."""
    async with stopping() as stop:
        if not await until_reachable(settings, stop):
            return
        async with worker(settings, extras or Extras()) as running:
            freeze_start_up_objects()
            with interrupting(running.worker.kernel.deciding):
                async with working(stop, running.worker.run(), *(task.run() for task in running.duties)):
                    await stop.wait()
                    await running.worker.stop()
                    await asyncio.gather(*(pool.stop(STEP_STOP_SECONDS) for pool in running.pools))


@dataclass(slots=True)
class RunningWorker:
    worker: Worker
    parts: StepParts
    duties: list[Any]
    pools: list[StepPool]


@contextlib.asynccontextmanager
async def worker(settings: Settings, extras: Extras) -> AsyncIterator[RunningWorker]:
    """A started worker; leave the block to stop it in order. Raises SchemaRefused and TopicMismatch."""
    settings = await prepared(settings)
    async with step_parts(settings, extras, "worker") as parts:
        steps = LaneSteps(parts.pool, parts.leases, parts.programs, parts.producer)
        parts.deliver = steps.deliver
        preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        installed = Installation(parts.programs, frozenset(parts.pool.kinds), extras.defences.lease_token)
        kernel = Kernel(
            extras.store(parts.store),
            extras.log(parts.producer),
            domains(installed),
            PROJECTIONS,
            partitions=Partitions(
                settings.commands_partitions,
                settings.events_partitions,
                settings.dead_letters_partitions,
                settings.steps_partitions,
                settings.replies_partitions,
            ),
            clock=parts.clock,
            owner=parts.owner,
            steps=steps,
            claimable={NodeRun: claimable},
            hint=lambda row: hint(row, settings.steps_partitions),
            ingress=IngressRules(settings.auth_required),
            limits=Limits(
                rows_max=settings.batch_rows_max,
                deciding_seconds_max=settings.batch_deciding_milliseconds_max / 1_000,
            ),
            background=functools.partial(asyncio.get_running_loop().run_in_executor, preparing),
            defences=extras.defences,
            immutable_facts=frozenset({Version}),
            telemetry=parts.told.bus,
        )
        running = Worker(
            kernel,
            parts.clock,
            bootstrap=settings.required_kafka_bootstrap,
            prefix=settings.topic_prefix,
            session_seconds=settings.session_timeout_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
            records_max=settings.batch_records_max,
            client_id=parts.owner,
        )
        steps.worker = running
        if parts.told.metrics is not None:
            parts.told.metrics.watch(LaneMetrics(lambda: _owned(running)))
        lanes = lambda: [lane.id for lane in running.lanes.values() if not lane.ingress]  # noqa: E731
        fallback, fallback_pool, fallback_leases = _fallback(parts, settings)
        duties = [
            Heartbeats(parts.pool, parts.leases, settings.lease_renew_seconds),
            Sweeper(parts.leases, parts.producer, lanes, settings.commands_partitions),
            fallback,
            Hints(settings, fallback, fallback_pool.kinds),
            Retention(
                parts.database,
                retention.aged(settings),
                retention.ended(settings),
                RetentionMetrics(parts.told.metrics).seen if parts.told.metrics is not None else nobody,
                tombstones=extras.defences.tombstones,
            ),
            Heartbeats(fallback_pool, fallback_leases, settings.lease_renew_seconds),
        ]
        await running.start()
        try:
            yield RunningWorker(running, parts, duties, [parts.pool, fallback_pool])
        finally:
            await running.stop()
            await fallback_pool.stop(0)
            preparing.shutdown(wait=False, cancel_futures=True)


def _owned(worker: Worker) -> list[Owned]:
    return [Owned(lane, worker.end_offset(lane.id), worker.held_back(lane.id)) for lane in worker.lanes.values()]


def _fallback(parts: StepParts, settings: Settings) -> tuple[Executor, StepPool, Leases]:
    """Takes steps that nobody claimed, while this worker has room: its own lanes' and others'."""
    leases = Leases(parts.database, f"{parts.owner}/fallback", settings.lease_seconds)
    pool = StepPool(
        parts.pool.performers,
        {kind: min(FALLBACK_AT_ONCE, parts.pool.capacity(kind)) for kind in parts.pool.kinds},
        owner=f"{parts.owner}/fallback",
        deliver=undeliverable,
        abandon=leases.abandon,
        default_timeouts=parts.pool.default_timeouts,
        lease_seconds=settings.lease_seconds,
        now=parts.clock.now,
        telemetry=parts.told.bus,
    )
    executor = Executor(pool, leases, parts.producer, parts.program, poll_seconds=settings.step_poll_seconds)
    pool.deliver = executor.deliver
    return executor, pool, leases
