"""Growing a topic: more partitions of `commands` while nothing runs, or of `ingress` at any time.

A key of `commands` belongs to one partition, and with it everything of its aggregate: records not handled yet, what
was made and not sent, timers, leases, its place in the log. All of it moves, or nothing. Until the last transaction
Postgres records the old number, the broker has the new one, and no role starts on such a pair: a growth that was
interrupted is only ever run again. Whatever is sent twice by that has the same id, and changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import for_code

from bus import postgres
from bus.lanes import INGRESS_BASE
from bus.postgres import PostgresStore
from bus.producer import Producer
from bus.records import Partitions, event_record
from bus.replay import Extent, TopicReader
from bus.store import Out
from gateway.http.postgres import APPLICATIONS
from infra import topics
from infra.db import session
from infra.domains import PROJECTIONS
from infra.operate import presence
from infra.settings import Settings
from projections.runtime import LEASED, UNLISTED
from schemas.topics import COMMANDS, EVENTS, INGRESS, TOPICS, partition_of

GROW_LOCK = 7_304_202
"""Key of the advisory lock under which topics are grown."""
PARTITIONS_MAX = INGRESS_BASE
IDS_AT_ONCE = 20_000
HOLDER = "growth"

Reached = Callable[[str], None]
"""Called after each phase of a growth with its name."""

_SESSIONS = """SELECT application_name AS name, count(*) AS sessions FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name <> $1
  AND (application_name LIKE 'agent-platform %' OR application_name = ANY($2::text[])) GROUP BY 1 ORDER BY 1"""
_SELF = "agent-platform topic growth"
_STANDING = "SELECT id, epoch, next_offset, position, sent, stopped FROM lane ORDER BY id"
_ADVANCE = "UPDATE lane SET next_offset = $3 WHERE id = $1 AND epoch = $2 RETURNING id"
_SENT = "UPDATE lane SET sent = position WHERE id = $1 AND epoch = $2 RETURNING id"
_TRIM = "DELETE FROM outbox o USING lane l WHERE l.id = $1 AND o.lane = l.id AND o.position <= l.sent"
_LANES = "INSERT INTO lane (id, topic, partition) SELECT p + $3, $4, p FROM generate_series($1::int, $2::int - 1) AS p"
_LIST = f"UPDATE node_run SET listed = {LEASED} WHERE listed = {UNLISTED} AND ready AND leased_by IS NOT NULL"
"""Lanes find the others by their places, which change."""
_REST = """UPDATE lane SET epoch = epoch + 1, owner = '', position = top, sent = top, floor = top
FROM (SELECT max(position) AS top FROM lane WHERE topic = $1) AS all_lanes WHERE topic = $1"""
_AGGREGATES = """SELECT DISTINCT aggregate_id AS id FROM event WHERE aggregate_id > $1
ORDER BY aggregate_id LIMIT $2"""
_TIMERS = """UPDATE timer t SET lane = u.lane, partition = u.lane FROM unnest($1::uuid[], $2::int2[]) AS u(id, lane)
WHERE t.id = u.id"""


class GrowthRefused(Exception):
    """Nothing was changed, and why; or an earlier growth has to be finished first."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What a growth did. `moved`: records not handled yet; `sent`: records made and not sent before."""

    topic: str
    before: int
    after: int
    moved: int = 0
    sent: int = 0
    aggregates: int = 0
    timers: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """A topic: partitions on the broker, and as Postgres has recorded them (None: it records none)."""

    topic: str
    partitions: int
    recorded: int | None
    retention_seconds: int


async def listed(settings: Settings) -> list[Listed]:
    """Every topic of ours that there is."""
    pool = await postgres.connect(settings, size=1, application="topics")
    try:
        rows = await pool.fetch("SELECT topic, count(*) AS lanes FROM lane GROUP BY topic")
    finally:
        await pool.close()
    lanes = {row["topic"]: row["lanes"] for row in rows}
    async with topics.administration(settings) as admin:
        there = await _partitions(admin, settings, [topic.name for topic in TOPICS])
    return [
        Listed(topic.name, there[topic.name], lanes.get(topic.name), topic.retention_seconds)
        for topic in TOPICS
        if topic.name in there
    ]


async def grow(settings: Settings, topic: str, partitions: int, reached: Reached = lambda phase: None) -> Grown:
    """Give a topic so many partitions. Raises GrowthRefused; whatever else it raises, run it again."""
    if topic not in (COMMANDS, INGRESS):
        raise GrowthRefused(_why_not(topic))
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise GrowthRefused(f"a topic has 1 to {PARTITIONS_MAX} partitions, not {partitions}")
    async with topics.administration(settings) as admin, _alone(settings) as pool:
        recorded: int = await pool.fetchval("SELECT count(*) FROM lane WHERE topic = $1", topic)
        broker = (await _partitions(admin, settings, [topic])).get(topic, 0)
        _check_numbers(topic, recorded, broker, partitions)
        if topic == INGRESS:
            return await _grow_ingress(settings, admin, pool, recorded, broker, partitions)
        growth = _Growth(settings, pool, recorded, partitions, reached)
        return await growth.run(admin, broker)


def _why_not(topic: str) -> str:
    names = [each.name for each in TOPICS]
    if topic == EVENTS:
        return (
            f"{EVENTS} keeps its partitions: subscribers read the events of a key in order from one of them, and after"
            " a growth a key would go on in another; `ap replay` copies the log to a topic with more"
        )
    if topic in names:
        return f"{topic} is read by everybody or by one gateway: more partitions would help nobody"
    return f"{topic!r} is no topic; {COMMANDS} and {INGRESS} can grow"


def _check_numbers(topic: str, recorded: int, broker: int, wanted: int) -> None:
    if not recorded or not broker:
        raise GrowthRefused(f"topic {topic} has not been made yet: `ap migrate` makes it")
    if broker not in (recorded, wanted):
        raise GrowthRefused(
            f"topic {topic} has {broker} partitions, {recorded} are recorded: a growth to {broker} was interrupted,"
            f" `ap topics grow {topic} {broker}` finishes it"
        )
    if wanted <= recorded:
        raise GrowthRefused(f"topic {topic} has {recorded} partitions: it can have more, not {wanted}")


async def _grow_ingress(
    settings: Settings, admin: AIOKafkaAdminClient, pool: asyncpg.Pool, recorded: int, broker: int, wanted: int
) -> Grown:
    """Keys are free there, and order holds per producer and key by what each producer knows: nothing moves.

    The lanes come first: a worker may be assigned a partition as soon as there is one.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(_LANES, recorded, wanted, INGRESS_BASE, INGRESS)
        if broker < wanted:
            await _alter(admin, settings, INGRESS, wanted)
    return Grown(INGRESS, recorded, wanted)


class _Growth:
    """One growth of `commands`. `standing`: each lane as it stands, under the epoch that is ours."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, before: int, after: int, reached: Reached) -> None:
        self._settings = settings
        self._pool = pool
        self._before = before
        self._after = after
        self._reached = reached
        self._store = PostgresStore(pool, {})
        self._epochs: dict[int, int] = {}

    async def run(self, admin: AIOKafkaAdminClient, broker: int) -> Grown:
        settings = self._settings
        await self._nobody_runs(admin)
        producer = Producer(settings.required_kafka_bootstrap, prefix=settings.topic_prefix)
        async with TopicReader(settings.required_kafka_bootstrap, settings.topic_prefix) as reader:
            pending = await self._pending(reader)
            await self._claim()
            self._reached("claimed")
            if broker < self._after:
                await _alter(admin, settings, COMMANDS, self._after)
            self._reached("altered")
            await producer.start()
            try:
                moved = await self._move(reader, producer, pending)
                self._reached("moved")
                sent = await self._send((await reader.extents(EVENTS)), producer)
                self._reached("sent")
            finally:
                await producer.stop()
        await self._nobody_runs(admin)
        aggregates, timers = await self._switch()
        return Grown(COMMANDS, self._before, self._after, moved, sent, aggregates, timers)

    def _lane(self, key: str) -> int:
        return partition_of(key, self._after)

    async def _nobody_runs(self, admin: AIOKafkaAdminClient) -> None:
        """Raises GrowthRefused."""

        async def running() -> set[str]:
            sessions = await self._pool.fetch(_SESSIONS, _SELF, list(APPLICATIONS.values()))
            names = {row["name"].removeprefix("agent-platform ") for row in sessions}
            return names | await presence.members(admin, self._settings.topic_prefix)

        if names := await presence.still_there(running):
            raise GrowthRefused(
                f"these still run: {names}; stop all workers, executors and gateways first"
                " (`--restart` stops those of `ap up` for the moment)"
            )

    async def _pending(self, reader: TopicReader) -> dict[int, Extent]:
        """The records of each partition that its lane has not handled. Raises GrowthRefused for one that cannot."""
        extents = await reader.extents(COMMANDS)
        pending = {}
        for row in await self._pool.fetch(_STANDING):
            if row["id"] >= INGRESS_BASE:
                continue
            if row["stopped"]:
                raise GrowthRefused(f"lane {COMMANDS}/{row['id']} has stopped ({row['stopped']}): see `ap lanes`")
            extent, at = extents[row["id"]], row["next_offset"]
            if extent.hidden:
                held = await reader.held(COMMANDS, row["id"], extent) or "an open transaction"
                raise GrowthRefused(f"{COMMANDS}/{row['id']} waits for {held}: try again when it has ended")
            if not extent.holds(at):
                held = f"{extent.begin} to {extent.end}"
                raise GrowthRefused(f"lane {COMMANDS}/{row['id']} stands at {at}, its topic holds {held}: `ap lanes`")
            pending[row["id"]] = Extent(at, extent.end)
        return pending

    async def _claim(self) -> None:
        """Every lane: what its former owner still tries to write is fenced off."""
        lanes = [row["id"] for row in await self._pool.fetch("SELECT id FROM lane")]
        self._epochs = {each.lane: each.epoch for each in await self._store.claim(lanes, HOLDER)}

    async def _move(self, reader: TopicReader, producer: Producer, pending: dict[int, Extent]) -> int:
        """What was not handled goes, in order, to where its key belongs now; its lane then stands behind it."""
        moved = 0
        for lane, extent in pending.items():
            async for records in reader.read(COMMANDS, lane, extent):
                await producer.publish([self._again(record, lane) for record in records])
                await self._stand(lane, records[-1].offset + 1)
                moved += len(records)
            await self._stand(lane, extent.end)  # Behind holes, too: transactions of publishers leave them.
        return moved

    def _again(self, record: Any, lane: int) -> Out:
        key = (record.key or b"").decode("utf-8", "replace")
        return Out(-1, 0, COMMANDS, self._lane(key) if key else lane, key, list(record.headers), record.value, "")

    async def _stand(self, lane: int, offset: int) -> None:
        if await self._pool.fetchval(_ADVANCE, lane, self._epochs[lane], offset) is None:
            raise GrowthRefused(f"lane {lane} was claimed by somebody else meanwhile: stop it, then run this again")

    async def _send(self, events: dict[int, Extent], producer: Producer) -> int:
        """What the lanes made and nobody acknowledged, in order; commands to where their keys belong now."""
        count = 0
        partitions = Partitions(self._after, len(events), self._settings.dead_letters_partitions)
        for row in await self._pool.fetch(_STANDING):
            lane = row["id"]
            logged, outs = await self._store.unsent(lane, row["sent"])
            records = [
                event_record(each, partitions)._replace(partition=partition_of(each.recorded.aggregate_id, len(events)))
                for each in logged
            ]
            records += [out._replace(partition=self._lane(out.key)) if out.topic == COMMANDS else out for out in outs]
            records.sort(key=lambda record: record.position)
            if records:
                await producer.publish(records)
            async with self._pool.acquire() as connection, connection.transaction():
                if await connection.fetchval(_SENT, lane, self._epochs[lane]) is None:
                    raise GrowthRefused(f"lane {lane} was claimed by somebody else meanwhile: stop it, run this again")
                await connection.execute(_TRIM, lane)
            count += len(records)
        return count

    async def _switch(self) -> tuple[int, int]:
        """One transaction: rows get the lanes of their keys, the new lanes are there, the new number is recorded."""
        connection = await asyncpg.connect(
            self._settings.required_database_url,
            server_settings=session(self._settings.required_database_url, application_name=_SELF),
        )
        try:
            async with connection.transaction():
                rows = await connection.fetch("SELECT id, epoch FROM lane ORDER BY id FOR UPDATE")
                if {row["id"]: row["epoch"] for row in rows} != self._epochs:
                    raise GrowthRefused("lanes were claimed by somebody else meanwhile: stop it, then run this again")
                await connection.execute(_LIST)
                moved = await self._moved(connection)
                await connection.execute("UPDATE event e SET lane = m.lane FROM moved m WHERE e.aggregate_id = m.id")
                for spec in PROJECTIONS:
                    if any(column.name == "lane" for column in spec.columns):
                        await connection.execute(
                            f"UPDATE {spec.name} t SET lane = m.lane FROM moved m WHERE t.{spec.parent} = m.id"
                        )
                timers = await connection.fetch("SELECT id, key FROM timer")
                lanes = [self._lane(timer["key"]) for timer in timers]
                await connection.execute(_TIMERS, [timer["id"] for timer in timers], lanes)
                await connection.execute(_LANES, self._before, self._after, 0, COMMANDS)
                # Positions count on from above all that came along: what stands below is sent, and no place is used
                # twice.
                await connection.execute(_REST, COMMANDS)
                await connection.execute("UPDATE lane SET epoch = epoch + 1, owner = '' WHERE topic = $1", INGRESS)
                self._reached("switching")
        finally:
            await connection.close()
        return moved, len(timers)

    async def _moved(self, connection: asyncpg.Connection) -> int:
        """Fill table `moved` with the aggregates whose lane changes; says how many."""
        await connection.execute("CREATE TEMP TABLE moved (id uuid PRIMARY KEY, lane int2 NOT NULL) ON COMMIT DROP")
        count = 0
        last: Any = UUID(int=0)
        while rows := await connection.fetch(_AGGREGATES, last, IDS_AT_ONCE):
            last = rows[-1]["id"]
            ids = [str(row["id"]) for row in rows]
            lanes = [(id, self._lane(id)) for id in ids if self._lane(id) != partition_of(id, self._before)]
            await connection.copy_records_to_table("moved", records=lanes)
            count += len(lanes)
        await connection.execute("ANALYZE moved")
        return count


@contextlib.asynccontextmanager
async def _alone(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    """A pool, and no other growth meanwhile. Raises GrowthRefused."""
    pool = await postgres.connect(settings, size=4, application="topic growth")
    try:
        async with pool.acquire() as holding:
            if not await holding.fetchval("SELECT pg_try_advisory_lock($1)", GROW_LOCK):
                raise GrowthRefused("somebody else is growing a topic just now")
            yield pool
    finally:
        await pool.close()


async def _partitions(admin: AIOKafkaAdminClient, settings: Settings, names: Sequence[str]) -> dict[str, int]:
    wanted = {settings.topic_prefix + name: name for name in names}
    described = await admin.describe_topics(list(wanted))
    return {wanted[each["topic"]]: len(each["partitions"]) for each in described if each["partitions"]}


async def _alter(admin: AIOKafkaAdminClient, settings: Settings, topic: str, partitions: int) -> None:
    name = settings.topic_prefix + topic
    answer = await admin.create_partitions({name: NewPartitions(partitions)})
    for error in answer.topic_errors:
        if error[1]:
            raise for_code(error[1])(f"{name}: {error[2]}")
