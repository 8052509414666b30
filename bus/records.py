"""What lanes make as records of their topics."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime

from bus.store import Logged, Out
from schemas.envelope import Headers
from schemas.topics import EVENTS, partition_of


@dataclass(frozen=True, slots=True)
class Partitions:
    """How many partitions each topic has, as recorded in Postgres."""

    commands: int
    events: int
    dead_letters: int
    steps: int = 12
    replies: int = 32


def event_record(logged: Logged, partitions: Partitions) -> Out:
    """An event as its record on the `events` topic."""
    r = logged.recorded
    headers: Headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", f"{r.aggregate_id}/{r.seq}".encode()),
        ("ce_source", b"agent-platform"),
        ("ce_type", r.event.type.encode()),
        ("ce_tenantid", r.tenant_id.encode()),
        ("ce_subject", r.aggregate_id.encode()),
        ("ce_time", rfc3339(r.at).encode()),
        ("ce_correlationid", r.correlation_id.encode()),
        ("ce_causationid", r.causation_id.encode()),
        ("ce_sequence", b"%d" % r.seq),
    ]
    if r.actor:
        headers.append(("ce_actor", r.actor.encode()))
    if r.traceparent:
        headers.append(("traceparent", r.traceparent.encode()))
    same = partitions.events == partitions.commands  # Then a lane's number is its keys' partition on both.
    partition = r.lane if same else partition_of(r.aggregate_id, partitions.events)
    return Out(
        r.lane,
        logged.position,
        EVENTS,
        partition,
        r.aggregate_id,
        headers,
        logged.body,
        r.tenant_id,
    )


@functools.lru_cache(maxsize=64)
def rfc3339(seconds: float) -> str:
    """A moment in seconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
