"""What workers and executors share: connections, performers, the pool that executes steps."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, cast

import asyncpg

from bus import postgres
from bus.postgres import PostgresStore, load_row
from bus.producer import Producer
from bus.worker import DatabaseClock
from handlers.runs.programs import Programs
from handlers.steps.check import Checker
from handlers.steps.code import CodeRunner, SandboxUnavailable
from handlers.steps.kinds import other_kind, step_kinds
from handlers.steps.leases import Leases
from handlers.steps.pool import Result, StepPool
from handlers.steps.port import Performer
from infra.domains import PROJECTIONS
from infra.roles.extras import Extras
from infra.settings import Settings
from infra.telemetry.role import RoleTelemetry, telemetry
from projections.catalog import VERSIONS, Version
from projections.runtime import NodeRun
from schemas.workflow.graph import Program

log = logging.getLogger("agent_platform")


STEP_STOP_SECONDS = 20.0
"""How long steps under way may take after SIGTERM; the others are repeated elsewhere."""
CODE_PROCESSES = 2


@dataclass(slots=True)
class StepParts:
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
    deliver: Any = None

    async def program(self, version_id: str) -> Program:
        """The program of a version, from memory or from Postgres. Raises LookupError, or Rejected if it has errors."""
        known = self.programs.known(version_id)
        if known is not None:
            return known
        version = await version_of(self.database, version_id)
        if version is None:
            raise LookupError(f"there is no workflow version {version_id}")
        compiled = await asyncio.to_thread(self.programs.compile, version)
        self.programs.keep(version_id, compiled)
        return self.programs.of(version)


def _refused_code(why: str, code: str) -> str:
    """What a code node is told where there is no sandbox."""
    return f"code nodes cannot run here: {why}"


async def version_of(database: asyncpg.Pool, version_id: str) -> Version | None:
    """A stored version, with its definition."""
    names = ", ".join(f'"{column.name}"' for column in VERSIONS.columns)
    row = await database.fetchrow(f"SELECT {names} FROM definition_version WHERE id = $1", version_id)
    return None if row is None else cast(Version, load_row(VERSIONS, tuple(row)))


@contextlib.asynccontextmanager
async def step_parts(settings: Settings, extras: Extras, role: str) -> AsyncIterator[StepParts]:
    owner = f"{role}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    async with telemetry(settings, role, owner) as told, _connected(settings, extras, owner, told) as parts:
        yield parts


@contextlib.asynccontextmanager
async def _connected(settings: Settings, extras: Extras, owner: str, told: RoleTelemetry) -> AsyncIterator[StepParts]:
    clock = DatabaseClock()
    pool = await postgres.connect(settings, size=4, application=owner)
    store = PostgresStore(pool, {spec.name: spec for spec in PROJECTIONS})
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix)
    code = CodeRunner(
        processes_max=CODE_PROCESSES, timeout_seconds_max=settings.max_timeout_seconds, sandbox=settings.code_sandbox
    )
    await clock.measure(store.now)
    await producer.start()
    check_code: Callable[[str], str | None] = code.check
    try:
        await code.start()
    except SandboxUnavailable as error:
        log.error("code nodes are refused: %s", error)
        check_code = functools.partial(_refused_code, str(error))
    checker = Checker(functools.partial(version_of, pool), check_code)
    performers: dict[str, Performer] = {"code": code.perform, "check": checker.perform, **extras.performers}
    known = step_kinds(settings.max_timeout_seconds, settings.step_concurrency, CODE_PROCESSES)
    kinds = {kind: known.get(kind, other_kind(settings.step_concurrency)) for kind in performers}
    parts = StepParts(
        owner=owner,
        clock=clock,
        database=pool,
        store=store,
        producer=producer,
        programs=Programs(extras.node_types),
        leases=Leases(pool, owner, settings.lease_seconds),
        pool=StepPool(
            performers,
            {name: kind.at_once for name, kind in kinds.items()},
            owner=owner,
            deliver=undeliverable,
            abandon=undeliverable,
            default_timeouts={name: kind.timeout_seconds for name, kind in kinds.items()},
            lease_seconds=settings.lease_seconds,
            now=clock.now,
            telemetry=told.bus,
        ),
        told=told,
    )
    if told.waiting is not None:
        told.waiting.pool = pool

    async def deliver(result: Result) -> None:
        await parts.deliver(result)

    parts.pool.deliver = deliver
    parts.pool.abandon = parts.leases.abandon
    try:
        yield parts
    finally:
        await parts.pool.stop(0)
        await code.stop()
        await producer.stop()
        await pool.close()


async def undeliverable(step: Result | NodeRun) -> None:
    raise RuntimeError(f"nobody takes what became of a step: {step}")
