"""A worker in this process on the session's Postgres and Kafka, with a database and topics of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
import orjson

from bus.producer import Producer
from bus.worker import Worker
from infra import topics
from infra.local.embedded import EmbeddedStack
from infra.operate import lanes as lane_operations
from infra.roles.extras import Extras
from infra.roles.prepare import create_topics, migrate
from infra.roles.worker import worker
from infra.settings import Settings, load_settings
from schemas.catalog import CreateDefinition, CreateVersion, definition_id
from schemas.envelope import Envelope
from schemas.messages import Command, JsonObject
from schemas.topics import COMMANDS, partition_of
from tests.patience import patient

T = TypeVar("T")
TENANT = "t1"
WAIT_SECONDS_MAX = 60.0


def settings_for(services: EmbeddedStack, name: str, **changes: Any) -> Settings:
    """Settings of a platform of its own: database `name`, topics `name.*`, few partitions."""
    base, _, _ = services.database_url.rpartition("/")
    return load_settings(
        database_url=f"{base}/{name}",
        kafka_bootstrap=services.kafka_bootstrap,
        topic_prefix=f"{name}.",
        commands_partitions=4,
        ingress_partitions=2,
        events_partitions=3,
        steps_partitions=1,
        replies_partitions=1,
        live_partitions=1,
        dead_letters_partitions=2,
        **changes,
    )


async def execute(services: EmbeddedStack, statement: str) -> None:
    """One statement outside any transaction, on the session's first database."""
    connection = await asyncpg.connect(services.database_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@dataclass(slots=True)
class Live:
    """A platform whose worker runs. `database` sees everything."""

    settings: Settings
    database: asyncpg.Connection
    producer: Producer
    worker: Worker
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def send(self, command: Command, id: str = "", *, tenant: str = TENANT, **changes: Any) -> str:
        """A command from outside, as the gateway sends it. Returns its id."""
        id = id or str(uuid.uuid4())
        key = command.aggregate_id(tenant, id)
        fingerprint = hashlib.sha256(command.encode()).hexdigest()
        envelope = Envelope(id, command.type, tenant, subject=key, fingerprint=fingerprint, actor="tester", **changes)
        partition = partition_of(key, self.settings.commands_partitions)
        await self.producer.send(COMMANDS, partition, key, envelope.headers(), command.encode())
        return id

    async def outcome(self, command_id: str) -> tuple[str, Any]:
        """Wait for what became of a command: its status, and its body."""

        async def look() -> tuple[str, Any] | None:
            row = await self.database.fetchrow(
                "SELECT status, body FROM command_outcome WHERE command_id = $1 AND status <> 'pending'", command_id
            )
            return (row["status"], orjson.loads(row["body"])) if row is not None else None

        return await until(look)

    async def do(self, command: Command, **options: Any) -> JsonObject:
        """Send a command that must succeed; what it answers."""
        status, body = await self.outcome(await self.send(command, **options))
        assert status == "succeeded", body
        return body  # type: ignore[no-any-return]

    async def publish_workflow(self, code: str, dsl: JsonObject) -> str:
        """The id of a fresh workflow with this DSL as its published version."""
        await self.do(CreateDefinition(kind="workflow", code=code, name=code))
        id = definition_id(TENANT, "workflow", code)
        await self.do(CreateVersion(definition_id=id, kind="workflow", spec=dsl, status="published"))
        return id

    async def run_ended(self, run_id: str) -> str:
        """Wait for the end of a run; its status."""

        async def look() -> str | None:
            query = "SELECT status FROM run WHERE id = $1 AND ended_at IS NOT NULL"
            return await self.database.fetchval(query, run_id)  # type: ignore[no-any-return]

        return await until(look)

    async def rest(self) -> None:
        """Wait until every lane is at its topic's end: what nobody would take any more is stuck, and reports say so."""

        async def look() -> bool:
            return all(lane.next_offset == lane.end for lane in await lane_operations.standings(self.settings))

        await until(look)


async def until(look: Callable[[], Awaitable[T | None]], seconds: float = WAIT_SECONDS_MAX) -> T:
    """Look until there is something to see."""
    async with asyncio.timeout(patient(seconds)):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(0.02)


async def cancelled(tasks: Collection[asyncio.Future[Any]]) -> None:
    """End tasks: a library may swallow a cancellation, so they are told again. One that never ends shows its stack."""
    end = asyncio.get_running_loop().time() + patient(60)
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=patient(1))
        if asyncio.get_running_loop().time() > end:
            raise TimeoutError(f"cannot be cancelled: {pending}")
    await asyncio.gather(*tasks, return_exceptions=True)


async def recreate(settings: Settings, topic: str) -> None:
    """Delete a topic and make it anew: all its records are gone."""
    name = settings.topic_prefix + topic
    async with topics.administration(settings) as admin:
        await admin.delete_topics([name])

        async def gone() -> bool:
            return name not in await admin.list_topics()

        await until(gone)
    await create_topics(settings)


def lasting(services: EmbeddedStack, name: str, work: Callable[[Settings], Awaitable[T]]) -> Iterator[T]:
    """What `work` answers on a prepared platform that stays until the caller is done: the body of a fixture."""
    with asyncio.Runner() as runner:
        context = prepared(services, name)

        async def start() -> T:
            return await work(await context.__aenter__())

        yield runner.run(start())
        runner.run(context.__aexit__(None, None, None))


@contextlib.asynccontextmanager
async def prepared(services: EmbeddedStack, name: str, **changes: Any) -> AsyncIterator[Settings]:
    """A migrated database and its topics; the database is dropped at the end."""
    settings = settings_for(services, name, **changes)
    await execute(services, f'CREATE DATABASE "{name}"')
    try:
        await migrate(settings)
        await create_topics(settings)
        yield settings
    finally:
        await execute(services, f'DROP DATABASE "{name}" WITH (FORCE)')


@contextlib.asynccontextmanager
async def running(settings: Settings, extras: Extras | None = None) -> AsyncIterator[Live]:
    """The platform with one worker that owns all lanes."""
    database = await asyncpg.connect(settings.database_url)
    producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix)
    try:
        async with worker(settings, extras or Extras()) as started:
            live = Live(settings, database, producer, started.worker)
            live.tasks = [
                asyncio.ensure_future(started.worker.run()),
                *(asyncio.ensure_future(duty.run()) for duty in started.duties),
            ]
            lanes = settings.commands_partitions + settings.ingress_partitions

            async def owned() -> bool:
                for task in live.tasks:
                    if task.done():
                        task.result()
                return len(started.worker.lanes) == lanes

            try:
                await until(owned)
                yield live
            finally:
                await cancelled(live.tasks)
    finally:
        await producer.stop()
        await database.close()
