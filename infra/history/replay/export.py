"""Events from the log in Postgres as CloudEvents, aggregate by aggregate, each in its order."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from bus.records import rfc3339
from infra.db import session
from infra.history.replay.cloud_events import cloud_event
from infra.history.replay.places import ReplayRefused, instant_of
from infra.history.replay.selection import Selection, types_of
from schemas.envelope import Envelope
from schemas.messages import UUID_PATTERN, JsonObject
from schemas.topics import EVENTS

EVENTS_PER_PAGE = 5_000
_SEQ = re.compile(r"\d{1,9}\Z")
_PAGE = """SELECT e.aggregate_id::text, e.seq, e.type, e.tenant_id, e.at, e.actor, e.correlation_id, e.causation_id,
e.traceparent, e.data FROM event e WHERE (e.aggregate_id, e.seq) > ($1::uuid, $2::int4)"""
_REMOVED = """SELECT id::text, last_seq, removed_at FROM tombstone
WHERE id = ANY($1::uuid[]) AND ($2 = '' OR tenant_id = $2) ORDER BY id"""
_REMOVED_COUNT = "SELECT count(*) FROM tombstone WHERE $1 = '' OR tenant_id = $1"
SESSION = {"application_name": "agent-platform export", "enable_sort": "off"}


@dataclass(frozen=True, slots=True)
class ExportRange:
    """Bounds that are both included: seqs of each aggregate, or times."""

    seq_min: int | None = None
    seq_max: int | None = None
    at_min: float | None = None
    at_max: float | None = None

    @classmethod
    def parse(cls, since: str, until: str) -> ExportRange:
        """Each a seq or an RFC 3339 time. Raises ReplayRefused."""
        bounds: dict[str, Any] = {}
        for option, text, which in (("--from", since, "min"), ("--to", until, "max")):
            if _SEQ.match(text):
                bounds[f"seq_{which}"] = int(text)
            elif text:
                bounds[f"at_{which}"] = instant_of(option, text)
        return cls(**bounds)


async def removed(database_url: str, selection: Selection) -> list[str]:
    """What is said of the aggregates named whose events retention has removed; of all, how many there are."""
    connection = await asyncpg.connect(database_url, server_settings=SESSION)
    try:
        if not selection.aggregates:
            count = await connection.fetchval(_REMOVED_COUNT, selection.tenant)
            return [f"retention has removed {count} ended aggregates: their events are gone"] if count else []
        rows = await connection.fetch(_REMOVED, [_id(each) for each in selection.aggregates], selection.tenant)
        return [f"{id}: its {last_seq} events were removed by retention at {rfc3339(at)}" for id, last_seq, at in rows]
    finally:
        await connection.close()


async def export(database_url: str, selection: Selection, bounds: ExportRange) -> AsyncIterator[JsonObject]:
    """The events, each as the topic bears it. Events never change, so no snapshot is held. Raises ReplayRefused."""
    conditions, values = _conditions(selection, bounds)
    sql = _PAGE + "".join(conditions) + f" ORDER BY e.aggregate_id, e.seq LIMIT {EVENTS_PER_PAGE}"
    connection = await asyncpg.connect(database_url, server_settings=session(database_url, settings=SESSION))
    try:
        at: tuple[str, int] = ("00000000-0000-0000-0000-000000000000", 0)
        while True:
            rows = await connection.fetch(sql, *at, *values)
            for row in rows:
                yield event_of(*row)
            if len(rows) < EVENTS_PER_PAGE:
                return
            at = rows[-1][0], rows[-1][1]
    finally:
        await connection.close()


def event_of(
    id: str,
    seq: int,
    type: str,
    tenant_id: str,
    at: float | None,
    actor: str,
    correlation_id: str,
    causation_id: str,
    traceparent: str,
    data: bytes,
) -> JsonObject:
    envelope = Envelope(
        f"{id}/{seq}", type, tenant_id, subject=id, time=rfc3339(at or 0.0), correlation_id=correlation_id,
        causation_id=causation_id, actor=actor, traceparent=traceparent, sequence=seq,
    )  # fmt: skip
    return cloud_event(envelope.headers(), data, envelope.id)


def _conditions(selection: Selection, bounds: ExportRange) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []

    def where(condition: str, value: Any) -> None:
        values.append(value)
        conditions.append(f" AND {condition.format(len(values) + 2)}")

    if selection.types:
        where("e.type = ANY(${}::text[])", types_of(EVENTS, selection.types))
    if selection.aggregates:
        where("e.aggregate_id = ANY(${}::uuid[])", [_id(each) for each in selection.aggregates])
    if selection.tenant:
        where("e.tenant_id = ${}", selection.tenant)
    for condition, value in (
        ("e.seq >= ${}", bounds.seq_min), ("e.seq <= ${}", bounds.seq_max),
        ("e.at >= ${}", bounds.at_min), ("e.at <= ${}", bounds.at_max),
    ):  # fmt: skip
        if value is not None:
            where(condition, value)
    return conditions, values


def _id(text: str) -> str:
    if not UUID_PATTERN.match(text.lower()):
        raise ReplayRefused(f"--aggregate {text!r} is no uuid")
    return text.lower()
