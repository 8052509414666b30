"""The `events` topic against the event log: I4 and I6, partition by partition."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import asyncpg

from bus.lanes import INGRESS_BASE
from bus.replay import Extent
from infra.history.verify.system import System, removed
from schemas.envelope import Malformed, decode_headers
from schemas.messages import UUID_PATTERN
from schemas.topics import EVENTS, partition_of

_LOGGED = """SELECT e.aggregate_id, e.seq, e.type, e.tenant_id, e.causation_id, e.data
FROM unnest($1::uuid[], $2::int4[]) AS u(aggregate_id, seq) JOIN event e USING (aggregate_id, seq)"""
_BY_AGGREGATE = """SELECT e.aggregate_id, max(e.seq) AS last, max(e.seq) FILTER (WHERE e.position <= l.sent) AS sent,
max(e.at) AS at FROM event e JOIN lane l ON l.id = e.lane WHERE e.lane = ANY($1::int2[]) GROUP BY e.aggregate_id"""

Place = tuple[str, int]


class Topic:
    """One partition's records as they are read: which event comes next of each aggregate."""

    def __init__(self, system: System, partition: int) -> None:
        self.system = system
        self.partition = partition
        self.whole = system.extents[EVENTS][partition].begin == 0
        self.last: dict[str, int] = {}
        self.since = math.inf

    async def take(self, records: Sequence[Any], connection: asyncpg.Connection) -> list[tuple[Place, Any]]:
        """Judge records in order. Those that the log does not have, as this connection sees it, come back."""
        places: list[tuple[Place, Any]] = []
        for record in records:
            self.since = min(self.since, record.timestamp / 1_000)
            place = self._place(record)
            if place is not None:
                places.append((place, record))
        return await compare(self.system, connection, places)

    def _place(self, record: Any) -> Place | None:
        where = f"{EVENTS}/{self.partition}@{record.offset}"
        add = self.system.report.add
        try:
            envelope = decode_headers(record.headers)
        except Malformed as error:
            add("I6", [f"{where} is no event: {error}"])
            return None
        id, seq = envelope.subject, envelope.sequence
        if not UUID_PATTERN.match(id) or seq < 1:
            add("I6", [f"{where} is no event: subject {id!r}, sequence {seq}"])
            return None
        if record.key != id.encode() or partition_of(id, len(self.system.extents[EVENTS])) != self.partition:
            add("I4", [f"{id}/{seq} has the wrong key or partition at {where}"])
        last = self.last.get(id)
        if last is None and not self.whole:
            last = seq - 1
        last = last or 0
        if seq > last + 1:
            add("I4", [f"{id}/{seq} came at {where} where seq {last + 1} was due"])
        self.last[id] = max(last, seq)
        return id, seq


async def compare(
    system: System, connection: asyncpg.Connection, places: Sequence[tuple[Place, Any]]
) -> list[tuple[Place, Any]]:
    """I9 on the topic: each record is the event that the log has, or had. What the log lacks comes back."""
    wanted = sorted({place for place, _ in places})
    rows = await connection.fetch(_LOGGED, [id for id, _ in wanted], [seq for _, seq in wanted])
    logged = {(str(row["aggregate_id"]), row["seq"]): row for row in rows}
    gone = await removed(connection, {id for id, seq in wanted if (id, seq) not in logged})
    lacking = []
    for place, record in places:
        row = logged.get(place)
        if row is None:
            last_seq, _ = gone.get(place[0], (0, ""))
            if place[1] > last_seq:
                lacking.append((place, record))
            continue
        envelope = decode_headers(record.headers)
        seen = (envelope.type, envelope.tenant_id, envelope.causation_id, record.value)
        if seen != (row["type"], row["tenant_id"], row["causation_id"], row["data"]):
            system.report.add("I9", [f"{place[0]}/{place[1]} is not on the topic as it is in the log"])
    return lacking


async def check_events_topic(system: System) -> None:
    extents = system.extents[EVENTS]
    newer: list[tuple[Place, Any]] = []
    for partition in extents:
        topic = Topic(system, partition)
        async for records in system.records(EVENTS, partition):
            newer += await topic.take(records, system.database)
        if extents[partition].hidden:
            continue  # What is not seen may be behind an open transaction; a note says so.
        waiting = await _missing(system, topic)
        if waiting:
            await _await(system, topic, waiting)
    for place, _ in await compare(system, system.fresh, newer):
        system.report.add("I6", [f"{place[0]}/{place[1]} is on the topic and not in the log"])


async def _missing(system: System, topic: Topic) -> dict[str, tuple[int, int]]:
    """Report events that were sent and are not there; those on their way come back as (id -> first, last)."""
    partitions = len(system.extents[EVENTS])
    common = math.gcd(partitions, system.commands_partitions)
    # The same hash chose both partitions: only these lanes can have made this partition's events.
    lanes = [id for id in system.lanes if id < INGRESS_BASE and id % common == topic.partition % common]
    waiting: dict[str, tuple[int, int]] = {}
    async for row in system.stream(_BY_AGGREGATE, lanes):
        id = str(row["aggregate_id"])
        if partition_of(id, partitions) != topic.partition:
            continue
        there = topic.last.get(id, 0)
        if not topic.whole and not there and row["at"] < topic.since:
            continue  # Retention took it.
        if there < (row["sent"] or 0):
            problem = f"{id}/{there + 1} to {row['sent']}: sent, says the lane, and not on the topic"
            system.report.add("I6", [problem])
        elif there < row["last"]:
            waiting[id] = (there + 1, row["last"])
    return waiting


async def _await(system: System, topic: Topic, waiting: dict[str, tuple[int, int]]) -> None:
    """Give what is recorded but not acknowledged the time to arrive."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + system.patience_seconds
    begin = system.extents[EVENTS][topic.partition].end
    while True:
        now = (await system.reader.extents(EVENTS))[topic.partition]
        async for records in system.reader.read(EVENTS, topic.partition, Extent(begin, now.end)):
            for place, _ in await topic.take(records, system.fresh):
                system.report.add("I6", [f"{place[0]}/{place[1]} is on the topic and not in the log"])
        begin = now.end
        late = {id: span for id, span in waiting.items() if topic.last.get(id, 0) < span[1]}
        if not late or loop.time() > deadline:
            break
        await asyncio.sleep(0.25)
    if late and now.hidden:
        system.report.notes.append(f"not checked: {len(late)} aggregates behind an open transaction on {EVENTS}")
        return
    for id, (first, last) in late.items():
        system.report.add("I6", [f"{id}/{max(first, topic.last.get(id, 0) + 1)} to {last} never reached the topic"])
