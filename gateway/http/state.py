"""What the routes of one gateway share."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gateway.audit import AuditLog
from gateway.http.identity import Keys
from gateway.http.in_flight import InFlight
from gateway.http.ports import CommandBus, Reads
from gateway.http.tail import Tail
from infra.settings import Settings


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class Gateway:
    """Ports and what is kept in memory. `kafka_answers` raises when the bus cannot be reached."""

    settings: Settings
    bus: CommandBus
    reads: Reads
    keys: Keys
    in_flight: InFlight
    audit: AuditLog
    tail: Tail
    kafka_answers: Callable[[], Awaitable[None]]
    claiming: set[str] = field(default_factory=set)
    """Node runs that a worker's call of this process is about to take."""
