"""The composition root: every role is put together here, and only here."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
from aiokafka import AIOKafkaConsumer

from bus import postgres
from bus.kernel import Kernel
from bus.limits import Defences, Limits
from bus.plan import Partitions
from bus.postgres import PostgresStore, load_row
from bus.producer import Producer
from bus.store import Log, Store
from bus.worker import DatabaseClock, Worker
from gateway import server
from gateway.ports import CommandBus
from handlers import access, catalog
from handlers.ingress import IngressRules
from handlers.programs import Programs
from handlers.runtime import Runtime
from handlers.steps.code import CodeRunner, SandboxUnavailable
from handlers.steps.executor import Executor, Heartbeats, Sweeper
from handlers.steps.lane_steps import LaneSteps, claimable, hint
from handlers.steps.leases import Leases
from handlers.steps.pool import Result, StepPool
from handlers.steps.port import Performer
from infra import database, topics
from infra.reachable import until_reachable
from infra.schema import PROJECTIONS
from infra.settings import Settings
from infra.telemetry.metrics import LaneMetrics, Owned
from infra.telemetry.role import RoleTelemetry, telemetry
from outbox.retention import Retention
from projections.catalog import VERSIONS, Version
from projections.runtime import NodeRun
from schemas.graph import Program
from schemas.node_types import NodeConfig
from schemas.topics import STEP_KINDS

log = logging.getLogger("agent_platform")

STEP_STOP_SECONDS = 20.0
"""How long steps under way may take after SIGTERM; the others are repeated elsewhere."""
CODE_AT_ONCE = 64
"""Code steps leased at once: more than run at once, so that the sandbox never waits for a claim."""
SPARE_AT_ONCE = 32


T = TypeVar("T")


def _same(port: T) -> T:
    return port


@dataclass(frozen=True, slots=True)
class Extras:
    """What an installation adds: node types with their performers by step kind (the benchmark's no-op).

    `store` and `log` wrap those of the kernel, `bus` what a gateway sends by; a fault that must hit between two of
    their actions goes there. `defences` are for tests only.
    """

    node_types: Mapping[str, type[NodeConfig]] = field(default_factory=dict)
    performers: Mapping[str, Performer] = field(default_factory=dict)
    store: Callable[[Store], Store] = _same
    log: Callable[[Log], Log] = _same
    bus: Callable[[CommandBus], CommandBus] = _same
    defences: Defences = field(default_factory=Defences)


async def migrate(settings: Settings) -> None:
    """Bring Postgres to the newest schema."""
    await database.migrate(settings.sqlalchemy_url, settings.commands_partitions, settings.ingress_partitions)


async def create_topics(settings: Settings) -> None:
    await topics.create(settings)


async def run_worker(settings: Settings, extras: Extras | None = None) -> None:
    """Own lanes and execute steps until SIGTERM or SIGINT."""
    async with _stopping() as stop:
        if not await until_reachable(settings, stop):
            return
        async with worker(settings, extras or Extras()) as running:
            _settle_memory()
            async with _working(stop, running.worker.run(), *(task.run() for task in running.duties)):
                await stop.wait()
                await running.worker.stop()
                await asyncio.gather(*(pool.stop(STEP_STOP_SECONDS) for pool in running.pools))


async def run_executor(settings: Settings, extras: Extras | None = None) -> None:
    """Execute steps that no worker took, until SIGTERM or SIGINT."""
    async with _stopping() as stop:
        if not await until_reachable(settings, stop):
            return
        settings = await topics.check(settings)
        async with _steps(settings, extras or Extras(), "executor") as parts:
            executor = Executor(
                parts.pool, parts.leases, parts.producer, parts.program, poll_seconds=settings.step_poll_seconds
            )
            parts.deliver = executor.deliver
            heartbeats = Heartbeats(parts.pool, parts.leases, settings.lease_renew_seconds)
            hints = _hints(settings, executor, parts.pool.kinds)
            async with _working(stop, executor.run(), heartbeats.run(), hints):
                await stop.wait()
                await parts.pool.stop(STEP_STOP_SECONDS)


async def run_gateway(settings: Settings, extras: Extras | None = None) -> None:
    """Serve HTTP until SIGTERM or SIGINT."""
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix, timeout_seconds=5.0)
    async with _stopping() as stop, telemetry(settings, "gateway", f"gateway-{os.getpid()}") as told:
        if not await until_reachable(settings, stop):
            return
        settings = await topics.check(settings)  # A wrong number of partitions would send commands astray.
        try:
            await server.serve(
                settings,
                (extras or Extras()).bus(producer),
                database_url=settings.required_database_url,
                kafka_bootstrap=settings.required_kafka_bootstrap,
                stop=stop,
                started=lambda port: log.info("serving at http://%s:%d/gateway", settings.gateway_host, port),
                telemetry=told.requests,
            )
        finally:
            await producer.stop()


@dataclass(slots=True)
class _Parts:
    """What workers and executors share."""

    owner: str
    clock: DatabaseClock
    database: asyncpg.Pool
    store: PostgresStore
    producer: Producer
    programs: Programs
    leases: Leases
    pool: StepPool
    told: RoleTelemetry
    check_code: Callable[[str], str | None] | None = None
    deliver: Any = None

    async def program(self, version_id: str) -> Program:
        """The program of a version, from memory or from Postgres."""
        known = self.programs.known(version_id)
        if known is not None:
            return known
        names = ", ".join(f'"{column.name}"' for column in VERSIONS.columns)
        row = await self.database.fetchrow(f"SELECT {names} FROM definition_version WHERE id = $1", version_id)
        if row is None:
            raise LookupError(f"there is no workflow version {version_id}")
        return self.programs.of(load_row(VERSIONS, tuple(row)))


@contextlib.asynccontextmanager
async def _steps(settings: Settings, extras: Extras, role: str) -> AsyncIterator[_Parts]:
    owner = f"{role}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    async with telemetry(settings, role, owner) as told, _connected(settings, extras, owner, told) as parts:
        yield parts


@contextlib.asynccontextmanager
async def _connected(settings: Settings, extras: Extras, owner: str, told: RoleTelemetry) -> AsyncIterator[_Parts]:
    clock = DatabaseClock()
    pool = await postgres.connect(settings.required_database_url, size=4, application=owner)
    store = PostgresStore(pool, {spec.name: spec for spec in PROJECTIONS})
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix)
    code = CodeRunner(processes_max=2, timeout_seconds_max=settings.max_timeout_seconds, sandbox=settings.code_sandbox)
    await clock.measure(store.now)
    await producer.start()
    check_code: Callable[[str], str | None] | None = code.check
    try:
        await code.start()
    except SandboxUnavailable as error:
        log.error("code nodes are refused: %s", error)
        check_code = None
    performers: dict[str, Performer] = {"code": code.perform, **extras.performers}
    capacity = dict.fromkeys(performers, settings.step_concurrency)
    capacity["code"] = min(settings.step_concurrency, CODE_AT_ONCE)
    parts = _Parts(
        owner=owner,
        clock=clock,
        database=pool,
        store=store,
        producer=producer,
        programs=Programs(extras.node_types),
        leases=Leases(pool, owner, settings.lease_seconds),
        pool=StepPool(
            performers,
            capacity,
            owner=owner,
            deliver=_deliver,
            lease_seconds=settings.lease_seconds,
            now=clock.now,
            telemetry=told.bus,
        ),
        told=told,
        check_code=check_code,
    )
    if told.waiting is not None:
        told.waiting.pool = pool

    async def deliver(result: Result) -> None:
        await parts.deliver(result)

    parts.pool.deliver = deliver
    try:
        yield parts
    finally:
        await parts.pool.stop(0)
        await code.stop()
        await producer.stop()
        await pool.close()


async def _deliver(result: Result) -> None:
    raise RuntimeError(f"nobody waits for the answer of step {result.row.id}")


@dataclass(slots=True)
class RunningWorker:
    worker: Worker
    parts: _Parts
    duties: list[Any]
    pools: list[StepPool]


@contextlib.asynccontextmanager
async def worker(settings: Settings, extras: Extras) -> AsyncIterator[RunningWorker]:
    """A started worker; leave the block to stop it in order. Raises TopicMismatch."""
    settings = await topics.check(settings)
    async with _steps(settings, extras, "worker") as parts:
        steps = LaneSteps(parts.pool, parts.leases, parts.programs, parts.producer)
        parts.deliver = steps.deliver
        kinds = frozenset(parts.pool.kinds)
        runtime = Runtime(parts.programs, step_kinds=kinds, check_tokens=extras.defences.lease_token)
        kernel = Kernel(
            extras.store(parts.store),
            extras.log(parts.producer),
            [runtime.domain(), catalog.domain(parts.check_code), access.DOMAIN],
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
            limits=Limits(rows_max=settings.batch_rows_max),
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
        spare, spare_pool, spare_leases = _spare(parts, settings)
        duties = [
            Heartbeats(parts.pool, parts.leases, settings.lease_renew_seconds),
            Sweeper(parts.leases, parts.producer, lanes, settings.commands_partitions),
            spare,
            Retention(parts.database),
            Heartbeats(spare_pool, spare_leases, settings.lease_renew_seconds),
        ]
        await running.start()
        try:
            yield RunningWorker(running, parts, duties, [parts.pool, spare_pool])
        finally:
            await running.stop()
            await spare_pool.stop(0)


def _owned(worker: Worker) -> list[Owned]:
    return [Owned(lane, worker.end_offset(lane.id)) for lane in worker.lanes.values()]


def _spare(parts: _Parts, settings: Settings) -> tuple[Executor, StepPool, Leases]:
    """Takes steps that nobody claimed, while this worker has room: its own lanes' and others'."""
    leases = Leases(parts.database, f"{parts.owner}/spare", settings.lease_seconds)
    pool = StepPool(
        parts.pool.performers,
        dict.fromkeys(parts.pool.kinds, SPARE_AT_ONCE),
        owner=f"{parts.owner}/spare",
        deliver=_deliver,
        lease_seconds=settings.lease_seconds,
        now=parts.clock.now,
        telemetry=parts.told.bus,
    )
    executor = Executor(pool, leases, parts.producer, parts.program, poll_seconds=settings.step_poll_seconds)
    pool.deliver = executor.deliver
    return executor, pool, leases


async def _hints(settings: Settings, executor: Executor, kinds: list[str]) -> None:
    """Wake the executor when a hint of one of its kinds arrives. Every executor hears every hint."""
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


def _settle_memory() -> None:
    """What is there at start-up stays; a batch makes many short-lived objects, which need no frequent collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@contextlib.asynccontextmanager
async def _stopping() -> AsyncIterator[asyncio.Event]:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def _working(stop: asyncio.Event, *work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these in the background. One that ends by itself ends the role: what it did must not stay undone."""
    tasks = [asyncio.ensure_future(each) for each in work]
    for task in tasks:
        task.add_done_callback(lambda _: stop.set())
    stopped_by_us = False
    try:
        yield
        stopped_by_us = True
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended if stopped_by_us else ():
        task.result()
