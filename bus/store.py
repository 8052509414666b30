"""The ports of the kernel: what a store and a log must do, and the rows that pass between them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from infra.db import TableSpec
from schemas.decider import Recorded
from schemas.envelope import Envelope, Headers
from schemas.messages import Command, Event


class Fenced(Exception):
    """Nothing was written: these lanes have another owner or stand at another offset."""

    def __init__(self, lanes: Iterable[int]) -> None:
        self.lanes = frozenset(lanes)
        super().__init__(f"lanes {sorted(self.lanes)} are no longer ours")


class Poison(Exception):
    """Nothing was written: Postgres refused the data itself (SQLSTATE class 22 or 23)."""


class Unavailable(Exception):
    """Nothing was written and the store may take it later: deadlock, time-out, disk full, no connection."""


class Unknown(Exception):
    """The connection broke while committing: it may be written or not."""


class SendFailed(Exception):
    """A record was not acknowledged in time; it may be on the topic or not."""


class Incoming(NamedTuple):
    """A consumed record. `offset` -1: handed over inside the process, its copy on Kafka follows.

    `decoded`: its headers and body, which are empty here then. `follows`: if it is 0 or more, no
    record exists from there up to `offset`.
    """

    lane: int
    offset: int
    key: bytes | None
    headers: Sequence[tuple[str, bytes]]
    body: bytes
    timestamp: float = 0.0
    decoded: tuple[Envelope, Command] | None = None
    follows: int = -1

    @property
    def key_text(self) -> str:
        return (self.key or b"").decode()


class Out(NamedTuple):
    """A record to produce. `position`: its place in its lane; 0 for those that need no outbox row."""

    lane: int
    position: int
    topic: str
    partition: int
    key: str
    headers: Headers
    body: bytes
    tenant_id: str


class Logged(NamedTuple):
    """An event with its place in its lane, and its body."""

    position: int
    recorded: Recorded[Event]
    body: bytes


class Timer(NamedTuple):
    """A command to send when `seconds` have passed; `out` is its record."""

    id: str
    seconds: float
    out: Out


class Outcome(NamedTuple):
    """What became of a command from outside. `status`: succeeded, rejected, failed; pending if that comes later.

    `reply_partition`: where whoever waits for it listens; -1 if nobody does. `deferred`: it came, or comes, later than
    the decision of its command.
    """

    command_id: str
    tenant_id: str
    type: str
    fingerprint: str
    status: str
    body: bytes
    at: float
    reply_partition: int = -1
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record refused for good, cut to 64 KiB, with where it came from and why."""

    id: str
    tenant_id: str
    topic: str
    partition: int
    offset: int
    type: str
    key: str
    message_id: str
    code: str
    detail: str
    headers: bytes
    body: bytes
    body_bytes: int
    body_sha256: str
    at: float


class Advance(NamedTuple):
    """How one transaction moves a lane on. It is fenced by `epoch` and `expected`.

    `floor`: rows that the lane made up to this position and that somebody must find are listed.
    """

    lane: int
    epoch: int
    expected: int
    next: int
    position: int
    sent: int
    floor: int


@dataclass(slots=True)
class Writes:
    """What one transaction writes. Rows are sorted by id when written, so that no two deadlock.

    `outcomes` were reserved by `admit` in the same transaction, or earlier if they were deferred; `inbox` and
    `new_outcomes` were not: one that is there already makes the store refuse everything (Poison). `ended_timers` need
    not fire any more; those that have are gone already.
    """

    advances: list[Advance] = field(default_factory=list)
    inserts: dict[str, list[Any]] = field(default_factory=dict)
    updates: dict[str, list[Any]] = field(default_factory=dict)
    events: list[Logged] = field(default_factory=list)
    outbox: list[Out] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)
    ended_timers: list[str] = field(default_factory=list)
    inbox: list[tuple[str, int, float]] = field(default_factory=list)
    new_outcomes: list[Outcome] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    trim: bool = False
    """Whether any of these lanes may have outbox rows to remove."""


@dataclass(frozen=True, slots=True)
class Claimed:
    lane: int
    epoch: int
    next_offset: int
    position: int
    sent: int
    floor: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """Which messages were handled before: inbox keys, and stored outcomes by command id."""

    repeats: frozenset[tuple[str, int]]
    outcomes: dict[str, Outcome]


class Unit(Protocol):
    """One transaction. Leaving it without an exception commits."""

    async def lock(self, advances: Sequence[Advance]) -> None:
        """Lock the lanes in order. Raises Fenced."""

    async def admit(self, inbox: Sequence[tuple[str, int, float]], outcomes: Sequence[Outcome]) -> Admitted:
        """Reserve these ids; those that were there before come back."""

    async def load(self, spec: TableSpec, ids: Sequence[str]) -> list[Any]:
        """The rows there are; volatile tables are read with their row locks."""

    async def load_live(self, spec: TableSpec, parents: Sequence[str]) -> list[Any]:
        """All live rows of these aggregates, likewise."""

    async def stored_outcomes(self, ids: Sequence[str]) -> dict[str, Outcome]:
        """The stored outcomes there are, by command id."""

    async def due_timers(self, lanes: Sequence[int]) -> list[Out]:
        """Take away the due timers of these lanes, the longest due first, at most 300."""

    async def save(self, writes: Writes) -> None:
        """Write everything. Raises Fenced."""


class Store(Protocol):
    def unit(self) -> AbstractAsyncContextManager[Unit]:
        """A transaction. Raises Poison, Unavailable or Unknown on leaving or from any call inside."""

    async def write(self, writes: Writes) -> None:
        """`lock` and `save` in one statement that is its own transaction. Raises as `unit` does, and Fenced."""

    async def read(self, spec: TableSpec, ids: Sequence[str]) -> list[Any]:
        """The rows there are, as they are committed now. Raises Unavailable."""

    async def claim(self, lanes: Sequence[int], owner: str) -> list[Claimed]:
        """Raise the lanes' epochs, waiting for transactions of their former owner."""

    async def unsent(self, lane: int, sent: int) -> tuple[list[Logged], list[Out]]:
        """What the lane made and has not been told is on Kafka, in order of position."""

    async def due_lanes(self, lanes: Sequence[int]) -> list[int]:
        """Those of these lanes that have a timer due."""

    async def restarted(self, lanes: Sequence[int], epochs: Sequence[int]) -> list[int]:
        """Those whose epoch an operator has raised since."""

    async def stop(self, lane: int, epoch: int, reason: str) -> None:
        """Note why a lane stands still."""

    async def now(self) -> float:
        """Database time, seconds since 1970."""


class Log(Protocol):
    def enqueue(self, records: Sequence[Out], *, patience: float = 0.0) -> asyncio.Future[None]:
        """`publish` without waiting: queued when this returns, behind all that was queued before.

        `patience`: so many seconds they may wait for company, if nobody's progress depends on them.

        What waits behind a record that fails must fail with it, at the same moment: else it would overtake
        what is sent again.
        """

    def encoded(self, records: Sequence[Out]) -> Sequence[Out]:
        """The same records, made as ready as can be to be enqueued soon, or never. Does not fail."""

    async def publish(self, records: Sequence[Out]) -> None:
        """Produce in order per partition; returns when all are acknowledged. Raises SendFailed."""
