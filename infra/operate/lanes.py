"""What an operator does about lanes: look at them, adopt a topic that was made anew, step over one record."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import asyncpg

from bus import postgres
from bus.answers import Answers
from bus.batch import Batch
from bus.dead_letters import letter_of
from bus.lanes import INGRESS_BASE, Lane
from bus.postgres import PostgresStore
from bus.records import Partitions
from bus.replay import Extent, TopicReader
from bus.store import Advance, Claimed, DeadLetter, Incoming
from infra import topics
from infra.domains import DOMAINS
from infra.operate import presence
from infra.settings import Settings
from schemas.decider import Answer
from schemas.topics import COMMANDS, INGRESS

Where = Literal["begin", "end", "here"]

_NAME = re.compile(rf"^(?:({COMMANDS}|{INGRESS})/)?(\d{{1,5}})$")
_ALL = "SELECT id, topic, partition, owner, epoch, next_offset, position, sent, floor, stopped FROM lane ORDER BY id"
_LOCKED = f"{_ALL.replace('ORDER BY id', '')} WHERE id = $1 FOR UPDATE"
_ADOPT = "UPDATE lane SET next_offset = $2, epoch = epoch + 1, stopped = '' WHERE id = $1"
_RESTART = "UPDATE lane SET epoch = epoch + 1, stopped = '' WHERE id = $1"
_RESEND = "UPDATE lane SET sent = 0, epoch = epoch + 1"


class LaneRefused(Exception):
    """The lane is left as it is, and why."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A lane and its topic: `begin` to `end` are the offsets that can be read; `stopped` says why it waits.

    `hidden`: how many offsets behind them are held back by an open transaction.
    """

    id: int
    topic: str
    partition: int
    owner: str
    epoch: int
    next_offset: int
    position: int
    sent: int
    floor: int
    stopped: str
    begin: int
    end: int
    hidden: int

    @property
    def extent(self) -> Extent:
        return Extent(self.begin, self.end, self.hidden)

    @property
    def name(self) -> str:
        return f"{self.topic}/{self.partition}"

    def document(self) -> dict[str, Any]:
        return asdict(self) | {"lane": self.name, "lag": max(0, self.end - self.next_offset)}


def lane_id(name: str) -> int:
    """`commands/3`, `ingress/2`, or a lane's number. Raises LaneRefused."""
    found = _NAME.match(name)
    if found is None:
        raise LaneRefused(f"{name!r} is no lane; lanes are called {COMMANDS}/N or {INGRESS}/N")
    return int(found[2]) + (INGRESS_BASE if found[1] == INGRESS else 0)


async def standings(settings: Settings) -> list[Standing]:
    """Every lane as it stands."""
    pool = await _pool(settings)
    try:
        rows = await pool.fetch(_ALL)
    finally:
        await pool.close()
    async with TopicReader(settings.required_kafka_bootstrap, settings.topic_prefix) as reader:
        extents = {topic: await reader.extents(topic) for topic in (COMMANDS, INGRESS)}
    return [_standing(row, extents[row["topic"]].get(row["partition"], Extent(0, 0))) for row in rows]


async def adopt(settings: Settings, id: int, where: Where, *, force: bool = False) -> Standing:
    """Let a stopped lane go on from its topic's begin or end, or from where it stands.

    Its epoch rises, so a worker that owns it claims it anew. Raises LaneRefused.
    """
    async with TopicReader(settings.required_kafka_bootstrap, settings.topic_prefix) as reader:
        pool = await _pool(settings)
        try:
            async with pool.acquire() as connection, connection.transaction():
                standing = await _locked(connection, reader, id, force)
                target = {"begin": standing.begin, "end": standing.end, "here": standing.next_offset}[where]
                if not standing.extent.holds(target):
                    held = f"{standing.begin} to {standing.end}"
                    raise LaneRefused(f"{standing.name} stands at {target}, its topic holds {held}")
                await connection.execute(_ADOPT, id, target)
        finally:
            await pool.close()
    return (await _now(settings, [id]))[0]


async def skip(settings: Settings, id: int, *, force: bool = False) -> tuple[Standing, DeadLetter]:
    """Step over the one record that a stopped lane stands at or before; it becomes a dead letter `skipped`.

    Raises LaneRefused.
    """
    pool = await _pool(settings)
    try:
        async with TopicReader(settings.required_kafka_bootstrap, settings.topic_prefix) as reader:
            store = PostgresStore(pool, {})
            async with store.unit() as unit:
                standing = await _locked(unit.connection, reader, id, force)
                record = await _record(reader, standing)
                letter = letter_of(record, id, "skipped", standing.stopped or "skipped by hand", await store.now())
                batch = _as_batch(settings, standing, letter, record)
                await unit.lock([_advance(standing)])
                await unit.save(batch.writes)
                await unit.connection.execute(_RESTART, id)
    finally:
        await pool.close()
    return (await _now(settings, [id]))[0], letter


async def resend(settings: Settings) -> int:
    """Let every lane send its events again from the log's begin, as when topic `events` was lost; says how many.

    Workers send them when they claim their lanes. Raises LaneRefused while one runs: what it sends on its own would
    overtake.
    """
    async with topics.administration(settings) as admin:
        if names := await presence.still_there(lambda: presence.members(admin, settings.topic_prefix)):
            raise LaneRefused(f"these workers still run: {names}; stop all first, as by `ap scale worker=0`")
    pool = await _pool(settings)
    try:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(_RESEND)
            return int(await connection.fetchval("SELECT count(*) FROM event"))
    finally:
        await pool.close()


def _as_batch(settings: Settings, standing: Standing, letter: DeadLetter, record: Incoming) -> Batch:
    """The letter, its record, what tells whoever awaits it, and the step, as the lane itself would write them."""
    claimed = Claimed(
        standing.id, standing.epoch, standing.next_offset, standing.position, standing.sent,
        standing.floor,
    )  # fmt: skip
    lane = Lane(claimed)
    partitions = Partitions(settings.commands_partitions, settings.events_partitions, settings.dead_letters_partitions)
    batch = Batch(partitions, {}, {}, letter.at)
    batch.bury(lane, letter)
    if lane.id < INGRESS_BASE:
        Answers(DOMAINS).buried(batch, lane, record, Answer(code="skipped", detail=letter.detail))
    batch.advance(lane, record.offset)
    batch.finish()
    return batch


def _advance(standing: Standing) -> Advance:
    at = standing.next_offset
    return Advance(standing.id, standing.epoch, at, at, standing.position, standing.sent, standing.floor)


async def _record(reader: TopicReader, standing: Standing) -> Incoming:
    """The first record from where the lane stands on: nothing may exist at that offset itself."""
    at = standing.next_offset
    if not standing.begin <= at < standing.end:
        held = f"{standing.begin} to {standing.end}"
        raise LaneRefused(f"{standing.name} has no record at {at}, its topic holds {held}; adopt the topic instead")
    async for records in reader.read(standing.topic, standing.partition, Extent(at, standing.end)):
        for found in records:
            headers = list(found.headers)
            return Incoming(standing.id, found.offset, found.key, headers, found.value or b"", found.timestamp / 1_000)
    raise LaneRefused(f"{standing.name} has no record from {at} on")


async def _locked(connection: Any, reader: TopicReader, id: int, force: bool) -> Standing:
    row = await connection.fetchrow(_LOCKED, id)
    if row is None:
        raise LaneRefused(f"there is no lane {id}")
    standing = _standing(row, (await reader.extents(row["topic"])).get(row["partition"], Extent(0, 0)))
    if not standing.stopped and not force:
        raise LaneRefused(f"{standing.name} is not stopped")
    return standing


async def _now(settings: Settings, ids: Sequence[int]) -> list[Standing]:
    return [standing for standing in await standings(settings) if standing.id in ids]


def _standing(row: Any, extent: Extent) -> Standing:
    return Standing(**dict(row), begin=extent.begin, end=extent.end, hidden=extent.hidden)


async def _pool(settings: Settings) -> asyncpg.Pool:
    return await postgres.connect(settings, size=2, application="operator")
