"""The system under examination: one snapshot of Postgres, and the topics as they stood right after it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from bus.lanes import INGRESS_BASE
from bus.replay import Extent, TopicMissing, TopicReader
from infra.db import session
from infra.history.verify.report import Report
from schemas.messages import UUID_PATTERN
from schemas.topics import COMMANDS, DEAD_LETTERS, EVENTS, INGRESS

_SESSION = {"application_name": "agent-platform verify", "default_transaction_read_only": "on"}
KEPT_SECONDS = 7 * 86_400
"""Inbox rows of older messages may have been forgotten."""
_TOMBSTONES = "SELECT id, last_seq, tenant_id FROM tombstone WHERE id = ANY($1::uuid[])"
TOPICS = (COMMANDS, INGRESS, EVENTS, DEAD_LETTERS)


@dataclass(frozen=True, slots=True)
class LaneRow:
    id: int
    epoch: int
    next_offset: int
    position: int
    sent: int
    stopped: str


@dataclass(slots=True)
class System:
    """`database` holds a read-only transaction with one snapshot; `fresh` sees what was committed since.

    `extents`: what the topics held right after the snapshot; a topic that is missing holds nothing.
    """

    database: asyncpg.Connection
    fresh: asyncpg.Connection
    reader: TopicReader
    report: Report
    lease_seconds: float
    patience_seconds: float
    now: float = 0.0
    lanes: dict[int, LaneRow] = field(default_factory=dict)
    extents: dict[str, dict[int, Extent]] = field(default_factory=dict)

    @property
    def commands_partitions(self) -> int:
        return sum(1 for id in self.lanes if id < INGRESS_BASE)

    @property
    def stale_seconds(self) -> float:
        """Work in flight that is older than this is stuck."""
        return 2 * self.lease_seconds

    def lane_of(self, topic: str, partition: int) -> LaneRow | None:
        return self.lanes.get(partition + (INGRESS_BASE if topic == INGRESS else 0))

    def hides(self, topic: str) -> bool:
        """Whether an open transaction holds records of a topic back: what is not seen there may be there."""
        return any(extent.hidden for extent in self.extents[topic].values())

    async def records(self, topic: str, partition: int) -> AsyncIterator[list[Any]]:
        async for chunk in self.reader.read(topic, partition, self.extents[topic][partition]):
            self.report.checked[f"{topic} records"] += len(chunk)
            yield chunk

    async def stream(self, sql: str, *arguments: Any) -> AsyncIterator[Any]:
        """The rows of a query on the snapshot, some thousand at a time."""
        async for row in self.database.cursor(sql, *arguments, prefetch=2_000):
            yield row


@contextlib.asynccontextmanager
async def examined(
    database_url: str, kafka_bootstrap: str, prefix: str, *, lease_seconds: float, patience_seconds: float
) -> AsyncIterator[System]:
    async with contextlib.AsyncExitStack() as stack:
        reader = await stack.enter_async_context(TopicReader(kafka_bootstrap, prefix))
        settings = session(database_url, settings=_SESSION)
        database = await asyncpg.connect(database_url, server_settings=settings)
        stack.push_async_callback(database.close)
        fresh = await asyncpg.connect(database_url, server_settings=settings)
        stack.push_async_callback(fresh.close)
        await stack.enter_async_context(database.transaction(isolation="repeatable_read", readonly=True))
        system = System(database, fresh, reader, Report(), lease_seconds, patience_seconds)
        rows = await database.fetch("SELECT id, epoch, next_offset, position, sent, stopped FROM lane ORDER BY id")
        system.lanes = {row["id"]: LaneRow(*row) for row in rows}
        system.now = float(await database.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8"))
        for topic in TOPICS:
            try:
                system.extents[topic] = await reader.extents(topic)
            except TopicMissing as missing:
                system.extents[topic] = {}
                system.report.notes.append(f"not checked: {missing}")
            for partition, extent in system.extents[topic].items():
                if held := await reader.held(topic, partition, extent):
                    system.report.notes.append(f"not checked: {topic}/{partition} from {extent.end} on, behind {held}")
        yield system


async def known(connection: asyncpg.Connection, sql: str, ids: Iterable[str]) -> set[str]:
    """Those of `ids` that a query with one uuid[] parameter returns as its first column; no uuid, no match."""
    wanted = sorted({id for id in ids if UUID_PATTERN.match(id)})
    if not wanted:
        return set()
    return {str(row[0]) for row in await connection.fetch(sql, wanted)}


async def removed(connection: asyncpg.Connection, ids: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Those of these aggregates that retention has removed: how many events they had, and their tenant."""
    wanted = sorted({id for id in ids if UUID_PATTERN.match(id)})
    if not wanted:
        return {}
    rows = await connection.fetch(_TOMBSTONES, wanted)
    return {str(row[0]): (row[1], row[2]) for row in rows}


def chunks(items: Sequence[Any], size: int = 1_000) -> Iterable[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
