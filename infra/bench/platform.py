"""This system under measurement: its workers as processes of their own, its client in this one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise

import asyncpg
import orjson
from pydantic import SecretStr

from bus.producer import Producer
from bus.store import Out
from infra.bench.ends import Ends
from infra.bench.load import Load, Measured, closed_loop
from infra.bench.measure import OURS
from infra.bench.processes import Kinds
from infra.bench.role import NOOP
from infra.local.embedded import EmbeddedStack
from infra.local.embedded.processes import KILL, STOP_GENTLY, log_tail, spawn, stop_child
from infra.local.embedded.state import Role
from infra.roles.prepare import create_topics, migrate
from infra.settings import Settings, setting_name
from schemas.catalog import CreateDefinition, definition_id
from schemas.envelope import Envelope
from schemas.messages import Command, JsonObject
from schemas.runtime import CreateRun
from schemas.topics import COMMANDS, EVENTS, partition_of

TENANT = "bench"
PATIENCE_SECONDS = 60.0
RUN_SECONDS_MAX = 300.0
QUEUED_AT_ONCE = 2_000
COMPLETED = "completed"


class BenchFailed(Exception):
    """A measurement that did not do what it is said to measure."""


def chain(nodes: int, node_type: str) -> JsonObject:
    """A chain of so many nodes of one type, as a workflow's DSL."""
    config = {} if node_type == NOOP else {"template": "step {{inputs.x}}"}
    made = [{"id": f"n{number}", "type": node_type, "config": config} for number in range(nodes)]
    edges = [{"source": a["id"], "target": b["id"]} for a, b in pairwise(made)]
    return {"nodes": made, "edges": edges}


class Platform:
    """The system on the bench's servers. `settings` bears their addresses; the schema and topics are there."""

    def __init__(self, stack: EmbeddedStack, settings: Settings) -> None:
        self.stack = stack
        self.settings = settings
        self.workers: list[subprocess.Popen[bytes]] = []
        self._producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix)
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._queued: set[str] = set()
        self._failure: BenchFailed | None = None
        self._started = 0
        self.node_runs = 0
        """Node runs that have completed, as the events say."""

    async def start_worker(self) -> subprocess.Popen[bytes]:
        child = self.start_role("worker", self._started)
        self._started += 1
        self.workers.append(child)
        return child

    @contextlib.asynccontextmanager
    async def running(self, workers: int = 1) -> AsyncIterator[None]:
        """So many fresh workers, stopped at the end of the block."""
        for _ in range(workers):
            await self.start_worker()
        try:
            yield
        finally:
            await self.stop_workers()

    async def until_shared(self) -> None:
        """Wait until every worker owns lanes. Raises BenchFailed."""
        connection = await asyncpg.connect(self.settings.required_database_url)
        query = "SELECT DISTINCT split_part(owner, '-', 2) AS pid FROM lane WHERE topic = $1"
        wanted = {str(worker.pid) for worker in self.workers}
        try:
            for _ in range(int(PATIENCE_SECONDS / 0.1)):
                if {row["pid"] for row in await connection.fetch(query, COMMANDS)} == wanted:
                    return
                await asyncio.sleep(0.1)
        finally:
            await connection.close()
        raise BenchFailed(f"the workers {sorted(wanted)} did not come to share the lanes")

    async def stop_workers(self) -> None:
        workers, self.workers = self.workers, []
        await asyncio.gather(*(stop_child(child, STOP_GENTLY) for child in workers))

    async def kill_worker(self, child: subprocess.Popen[bytes]) -> None:
        """kill -9."""
        self.workers.remove(child)
        await stop_child(child, KILL)

    def start_role(self, role: Role, index: int, **changes: object) -> subprocess.Popen[bytes]:
        """Start one process of a role with these settings."""
        settings = self.settings.model_copy(update=changes)
        given = {setting_name(name): _shown(getattr(settings, name)) for name in settings.model_fields_set}
        log = self.stack.folder.path / "log" / f"{role}-{index}.log"
        child = spawn([sys.executable, "-m", "infra.bench.role", role], log=log, environment={**os.environ, **given})
        self.stack.folder.record_process(role, index, child.pid, log)
        return child

    def kinds(self) -> Kinds:
        postgres, kafka = self.stack.postgres.child, self.stack.kafka.child
        return {
            "worker": [worker.pid for worker in self.workers],
            "client": [os.getpid()],
            "postgres": [] if postgres is None else [postgres.pid],
            "kafka": [] if kafka is None else [kafka.pid],
        }

    async def create_workflow(self, nodes: int, node_type: str, tenant: str = TENANT) -> str:
        """The id of a published version of a chain.

        The version is written to its table: the catalogue rightly refuses a node type that only a benchmark's
        worker knows.
        """
        code = f"{node_type}-{nodes}"
        id = definition_id(tenant, "workflow", code)
        connection = await asyncpg.connect(self.settings.required_database_url)
        try:
            version: str | None = await connection.fetchval(
                "SELECT id::text FROM definition_version WHERE definition_id = $1", id
            )
            if version is not None:
                return version
            await self.send([(str(uuid.uuid4()), CreateDefinition(kind="workflow", code=code, name=code))], tenant)
            await _until_there(connection, id)
            version = str(uuid.uuid4())
            await connection.execute(
                "INSERT INTO definition_version (id, definition_id, tenant_id, kind, number, status, spec, problems,"
                " checks, description, created_at, published_at)"
                " VALUES ($1, $2, $3, 'workflow', 1, 'published', $4, '[]', '{}', '', $5, $5)",
                version, id, tenant, orjson.dumps(chain(nodes, node_type)), time.time(),
            )  # fmt: skip
            return version
        finally:
            await connection.close()

    async def send(self, commands: Sequence[tuple[str, Command]], tenant: str = TENANT) -> None:
        """Send commands as a gateway does, each with its id; acknowledged when this returns."""
        await self._producer.publish([self._record(id, command, tenant) for id, command in commands])

    async def queue(self, version: str, runs: int, tenant: str = TENANT) -> list[str]:
        """Ask for so many runs at once and wait for none of them: `queued` says how many are left. Their ids."""
        ids = [str(uuid.uuid4()) for _ in range(runs)]
        self._queued.update(ids)
        command = CreateRun(workflow_version_id=version, inputs={"x": 1})
        for start in range(0, runs, QUEUED_AT_ONCE):
            await self.send([(id, command) for id in ids[start : start + QUEUED_AT_ONCE]], tenant)
        return ids

    @property
    def queued(self) -> int:
        """How many of the runs that were queued have not ended. Raises BenchFailed if none may ever."""
        if self._failure is not None:
            raise self._failure
        return len(self._queued)

    def _record(self, id: str, command: Command, tenant: str) -> Out:
        key, body = command.aggregate_id(tenant, id), command.encode()
        envelope = Envelope(
            id, command.type, tenant, subject=key, correlation_id=id, actor="bench",
            traceparent=f"00-{uuid.uuid4().hex}-{id[-16:].replace('-', '0')}-01",
            fingerprint=hashlib.sha256(body).hexdigest(),
        )  # fmt: skip
        place = partition_of(key, self.settings.commands_partitions)
        return Out(-1, 0, COMMANDS, place, key, envelope.headers(), body, tenant)

    async def run_once(self, version: str, id: str | None = None, tenant: str = TENANT) -> str:
        """Start one run and wait for the event of its end. Returns its id. Raises BenchFailed."""
        id = id or str(uuid.uuid4())
        ended = self._waiting[id] = asyncio.get_running_loop().create_future()
        await self.send([(id, CreateRun(workflow_version_id=version, inputs={"x": 1}))], tenant)
        try:
            async with asyncio.timeout(RUN_SECONDS_MAX):
                await ended
        except TimeoutError:
            raise BenchFailed(f"run {id} did not end within {RUN_SECONDS_MAX:g} s") from None
        return id

    def _notice_the_dead(self) -> None:
        """Whoever waits for a run waits in vain once a worker has ended that was not asked to."""
        dead = [worker.pid for worker in self.workers if worker.poll() is not None]
        if dead:
            self._fail(BenchFailed(f"worker {dead[0]} has ended ({self._last_words()})"))

    def _fail(self, failure: BenchFailed) -> None:
        """Nobody needs to wait any longer."""
        self._failure = failure
        waiting, self._waiting = self._waiting, {}
        for ended in waiting.values():
            if not ended.done():
                ended.set_exception(failure)

    def _last_words(self) -> str:
        logs = sorted((self.stack.folder.path / "log").glob("worker-*.log"), key=lambda log: log.stat().st_mtime)
        return log_tail(logs[-1], ("Error", "ERROR")) if logs else ""

    async def watch(self) -> None:
        """Read the events topic and end the waiting of those whose run has ended."""
        settings = self.settings
        reader = Ends(settings.topic_prefix + EVENTS, settings.events_partitions, settings.required_kafka_bootstrap)
        try:
            await reader.start()
            while True:
                for seen in await reader.poll():
                    self.node_runs += seen.node_runs
                    for id, how in seen.ends:
                        self._note(id, how)
                self._notice_the_dead()
        except Exception as error:
            self._fail(BenchFailed(f"the events cannot be read: {type(error).__name__} {error}"))
            raise
        finally:
            await reader.stop()

    def _note(self, id: str, how: str) -> None:
        failure = None if how == COMPLETED else BenchFailed(f"run {id} ended as {how}")
        if id in self._queued:
            self._queued.remove(id)
            self._failure = self._failure or failure
        ended = self._waiting.pop(id, None)
        if ended is None or ended.done():
            return
        if failure is None:
            ended.set_result(None)
        else:
            ended.set_exception(failure)

    async def check(self, runs: Sequence[str], nodes: int) -> None:
        """Every node of every run is in Postgres as completed. Raises BenchFailed."""
        connection = await asyncpg.connect(self.settings.required_database_url)
        try:
            query = "SELECT count(*) FROM node_run WHERE run_id = ANY($1::uuid[]) AND status = 'completed'"
            stored = await connection.fetchval(query, runs)
        finally:
            await connection.close()
        if stored != len(runs) * nodes:
            raise BenchFailed(f"{stored} node runs are stored as completed, not {len(runs) * nodes}")

    async def start(self) -> None:
        await self._producer.start()

    async def stop(self) -> None:
        await self.stop_workers()
        await self._producer.stop()


def _shown(value: object) -> str:
    """A setting as its environment variable says it; none is the empty string."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return "" if value is None else str(value)


async def _until_there(connection: asyncpg.Connection, definition: str) -> None:
    for _ in range(int(PATIENCE_SECONDS / 0.05)):
        if await connection.fetchval("SELECT count(*) FROM definition WHERE id = $1", definition):
            return
        await asyncio.sleep(0.05)
    raise BenchFailed(f"definition {definition} was not made within {PATIENCE_SECONDS:g} s")


@contextlib.asynccontextmanager
async def started(stack: EmbeddedStack, settings: Settings) -> AsyncIterator[Platform]:
    """The system without workers, migrated; leave the block to stop what it started."""
    await migrate(settings)
    await create_topics(settings)
    platform = Platform(stack, settings)
    await platform.start()
    watching = asyncio.create_task(platform.watch())
    try:
        yield platform
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await platform.stop()


class Chain:
    """Runs of one chain on this system."""

    name = OURS

    def __init__(self, platform: Platform, version: str, nodes: int, tenant: str = TENANT) -> None:
        self._platform = platform
        self._tenant = tenant
        self._version = version
        self._nodes = nodes

    def kinds(self) -> Kinds:
        return self._platform.kinds()

    async def load(self, load: Load) -> Measured:
        runs: list[str] = []

        async def one() -> None:
            runs.append(await self._platform.run_once(self._version, tenant=self._tenant))

        measured = await closed_loop(one, load)
        await self._platform.check(runs, self._nodes)
        return measured
