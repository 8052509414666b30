"""Both stores behind one face: what a contract test may ask beyond the port."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import asyncpg

from bus.postgres import PostgresStore, connect
from bus.store import Advance, Claimed, DeadLetter, Logged, Out, Store, Timer, Writes
from infra.database.migrate import migrate
from infra.db import TableSpec
from infra.domains import PROJECTIONS
from infra.local.embedded import EmbeddedStack
from infra.settings import Settings
from outbox.tombstones import TOMBSTONES, Tombstone
from schemas.access import ApiKeyStatusChanged
from schemas.decider import Recorded
from schemas.messages import Event
from tests.simulation.memory import MemoryDatabase, MemoryStore

LANES = 120
SPECS: dict[str, TableSpec] = {spec.name: spec for spec in PROJECTIONS}


class Backend(Protocol):
    """`store`: what is tested. The rest looks at what it has written."""

    @property
    def store(self) -> Store: ...

    async def lane(self, lane: int) -> tuple[int, int, int, int, str]:
        """epoch, next offset, position, sent, stopped."""

    async def died(self, letter_id: str) -> tuple[int, float]:
        """How often a dead letter has died again, and when it did last."""

    async def bury(self, tombstone: Tombstone) -> None:
        """As retention leaves it."""


@dataclass
class Memory:
    database: MemoryDatabase
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.database)

    async def lane(self, lane: int) -> tuple[int, int, int, int, str]:
        row = self.database.lanes[lane]
        return row.epoch, row.next_offset, row.position, row.sent, row.stopped

    async def died(self, letter_id: str) -> tuple[int, float]:
        return self.database.redrives[letter_id], self.database.letters[letter_id].at

    async def bury(self, tombstone: Tombstone) -> None:
        self.database.tables[TOMBSTONES.name][tombstone.id] = tombstone


@dataclass
class Postgres:
    store: PostgresStore

    async def lane(self, lane: int) -> tuple[int, int, int, int, str]:
        query = "SELECT epoch, next_offset, position, sent, stopped FROM lane WHERE id = $1"
        row = await self.store.pool.fetchrow(query, lane)
        assert row is not None
        return row[0], row[1], row[2], row[3], row[4]

    async def died(self, letter_id: str) -> tuple[int, float]:
        row = await self.store.pool.fetchrow("SELECT redrives, at FROM dead_letter WHERE id = $1", letter_id)
        assert row is not None
        return row[0], row[1]

    async def bury(self, tombstone: Tombstone) -> None:
        values = [getattr(tombstone, column.name) for column in TOMBSTONES.columns]
        await self.store.pool.execute("INSERT INTO tombstone VALUES ($1, $2, $3, $4, $5, $6, $7)", *values)


@asynccontextmanager
async def memory() -> AsyncIterator[Memory]:
    yield Memory(MemoryDatabase(range(LANES), PROJECTIONS, time.time))


@asynccontextmanager
async def postgres(services: EmbeddedStack) -> AsyncIterator[Postgres]:
    """A migrated database of its own, dropped at the end."""
    name = f"contract_{uuid.uuid4().hex}"
    url = await services.new_database(name)
    pool = None
    try:
        await migrate(url, LANES, 0)
        pool = await connect(Settings(database_url=url))
        yield Postgres(PostgresStore(pool, SPECS))
    finally:
        if pool is not None:
            await pool.close()
        connection = await asyncpg.connect(services.database_url)
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await connection.close()


_lanes = itertools.cycle(range(LANES))


def new_lane() -> int:
    """A lane that no other test has touched."""
    return next(_lanes)


def new_id() -> str:
    return str(uuid.uuid4())


def standing(claimed: Claimed, *, to: int = 0, made: int = 0, sent: int = 0) -> Advance:
    """How a transaction moves a lane on: `to` further offsets, `made` further positions, all `sent` up to there."""
    return Advance(
        claimed.lane, claimed.epoch, claimed.next_offset, claimed.next_offset + to, claimed.position + made, sent, 0
    )


def event(lane: int, position: int, aggregate_id: str, seq: int, happened: Event | None = None) -> Logged:
    recorded = Recorded(
        happened or ApiKeyStatusChanged(status="disabled"),
        aggregate_id,
        seq,
        1_700_000_000.123456,
        "tenant-é",
        lane,
        actor="客",
        correlation_id="request",
        causation_id=new_id(),
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )
    return Logged(position, recorded, recorded.event.encode())


def out(lane: int, position: int, *, key: str = "", body: bytes = b'{"a":"\xc3\xa9"}') -> Out:
    headers = [("ce_id", new_id().encode()), ("ce_actor", "客".encode())]
    return Out(lane, position, "commands", lane, key or new_id(), headers, body, "tenant-é")


def timer(lane: int, seconds: float) -> Timer:
    return Timer(new_id(), seconds, out(lane, 0))


def letter(lane: int) -> DeadLetter:
    return DeadLetter(
        id=new_id(),
        tenant_id="t",
        topic="commands",
        partition=lane,
        offset=7,
        type="x",
        key="k",
        message_id="",
        code="invalid_json",
        detail="é",
        headers=b"[]",
        body=b"\x00\xff",
        body_bytes=2,
        body_sha256="0" * 64,
        at=1_700_000_000.5,
    )


async def save(store: Store, writes: Writes) -> None:
    async with store.unit() as unit:
        await unit.lock(writes.advances)
        await unit.save(writes)


SAMPLES: dict[str, Any] = {
    "bytea": b"\x00\x01\xff",
    "bool": True,
    "int2": 7,
    "int4": 70_000,
    "int8": 7_000_000_000,
    "float8": 1_700_000_000.123456,
    "text": "é客😀 \n\t'\"\\",
}


def sample(spec: TableSpec, *, empty: bool = False) -> Any:
    """A row with an awkward value in every column, or with as little as it may hold."""
    values: dict[str, Any] = {}
    for column in spec.columns:
        known = spec.table.columns[column.name]
        if column.name == "status":
            values[column.name] = "queued"
        elif column.pg_type == "uuid":
            values[column.name] = None if empty and known.nullable else new_id()
        elif empty and column.pg_type == "float8":
            values[column.name] = 0.0
        elif empty and known.nullable:
            values[column.name] = None
        elif column.pg_type == "bytea" and column.dump is not None:
            values[column.name] = {"客": [1, 1.5, None, True, {"": []}], "text": "é\u2028"}
        else:
            values[column.name] = SAMPLES[column.pg_type]
    return spec.row(**values)
