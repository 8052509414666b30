"""One kernel with every domain, in memory: it owns all lanes and handles what it is fed, record by record."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bus.kernel import Kernel
from bus.limits import Defences
from bus.records import Partitions
from bus.store import Incoming, Out
from infra.domains import PROJECTIONS, Installation, domains
from schemas.envelope import Envelope
from schemas.messages import Command
from schemas.topics import COMMANDS, partition_of
from tests.simulation.memory import MemoryDatabase, MemoryLog, MemoryProducer, MemoryStore

LANES = 3
TENANT = "t1"
SHARE = 3
"""Node runs a message makes at most."""


def message_id(number: int) -> str:
    return str(uuid.UUID(int=number, version=4))


@dataclass
class Platform:
    """`feed` hands it a record as the next one of its partition; `made` is what it has sent to `commands` itself."""

    at: float = 1_700_000_000.0
    defences: Defences = field(default_factory=Defences)

    def __post_init__(self) -> None:
        self.database = MemoryDatabase(range(LANES), PROJECTIONS, self.now)
        self.log = MemoryLog(self.now)
        self.log.appended = self._appended
        self.made: deque[Out] = deque()
        self.kernel = Kernel(
            MemoryStore(self.database),
            MemoryProducer(self.log),
            domains(Installation(share=SHARE)),
            PROJECTIONS,
            partitions=Partitions(LANES, LANES, 1),
            clock=self,
            owner="worker",
            defences=self.defences,
        )
        self._offsets = [itertools.count() for _ in range(LANES)]

    def now(self) -> float:
        return self.at

    def _appended(self, out: Out) -> None:
        if out.topic == COMMANDS:
            self.made.append(out)

    async def claim(self) -> None:
        """Own every lane, with nothing in memory."""
        await self.kernel.claim(range(LANES))

    async def feed(self, out: Out) -> None:
        offset = next(self._offsets[out.partition])
        await self.kernel.handle([Incoming(out.partition, offset, out.key.encode(), out.headers, out.body, self.at)])
        while any(lane.unacknowledged for lane in self.kernel.lanes.values()):
            await asyncio.sleep(0)
            await self.kernel.drain_failed()

    @property
    def events(self) -> int:
        return len(self.database.events)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {name: dict(rows) for name, rows in self.database.tables.items()}

    def dump(self) -> Mapping[str, Any]:
        """All that is known, without where in its lane it was made."""
        return {
            "events": [
                (*key, logged.recorded._replace(lane=0), logged.body) for key, logged in self.database.events.items()
            ],
            "outcomes": dict(self.database.outcomes),
            "tables": self.rows(),
            "letters": dict(self.database.letters),
        }


def record(command: Command, id: str, tenant_id: str = TENANT, *, reply: bool) -> Out:
    """A command on its way. `reply`: it comes from outside, and its sender waits for an outcome."""
    key = command.aggregate_id(tenant_id, id)
    envelope = Envelope(id, command.type, tenant_id, subject=key, fingerprint=f"f {id}" if reply else "")
    place = partition_of(key, LANES)
    return Out(place, 0, COMMANDS, place, key, envelope.headers(), command.encode(), tenant_id)
