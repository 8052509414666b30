"""A domain that does whatever a test needs, and a kernel in memory that owns it."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import orjson
import sqlalchemy as sa

from bus.deciding import DecidingTime
from bus.kernel import Kernel
from bus.limits import Defences, Limits
from bus.preparations import Background
from bus.records import Partitions
from bus.store import Incoming, Out
from infra.db import Uuid, table
from schemas.decider import Answer, Awaited, Decision, Deferred, Domain, Meta, Recorded, Reply, Rows, Settled
from schemas.envelope import AnswerTo, Envelope, decode_headers
from schemas.messages import Command, Event, Id, JsonObject, Rejected, derive
from schemas.topics import COMMANDS, partition_of
from tests.simulation.memory import MemoryDatabase, MemoryLog, MemoryProducer, MemoryStore

LANES = 3
TENANT = "t1"
ROOT = "5b1c1f7e-3f0b-4a53-9a52-0d4f7a3c2b1e"


def named(name: str) -> str:
    """The id of the toy of this name."""
    return derive(ROOT, name)


@dataclass(frozen=True)
class Toy:
    """`taken`: answers that came, by wait; `started`: commands whose outcome comes later."""

    id: Uuid
    tenant_id: str
    seq: int
    count: int


TOYS = table(Toy, "toy", within=sa.MetaData())


class Make(Command):
    """A new toy that counts once for each event, and has `other` count with it."""

    type: Literal["toy.make"] = "toy.make"
    toy_id: Id
    times: int = 1
    other: Id | None = None
    creates = True

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.toy_id


class Do(Command):
    """Whatever `how` says."""

    type: Literal["toy.do"] = "toy.do"
    toy_id: Id
    how: str = "count"
    other: Id | None = None
    command_id: Id | None = None
    detail: str = ""

    def aggregate_id(self, tenant_id: str, command_id: str) -> str:
        return self.toy_id


class Counted(Event):
    type: Literal["toy.counted"] = "toy.counted"
    other: str | None = None
    note: str = ""


def make(command: Make, rows: Rows, meta: Meta) -> Iterator[Decision]:
    for _ in range(command.times):
        yield Counted(other=command.other)


def evolve(rows: Rows, recorded: Recorded[Event]) -> Iterable[Any]:
    before = rows.get(Toy, recorded.aggregate_id)
    return [Toy(recorded.aggregate_id, recorded.tenant_id, recorded.seq, (before.count if before else 0) + 1)]


def count_too(event: Counted, head: Toy, meta: Meta) -> Iterator[Command]:
    """The other toy counts whenever this one does; what it is told includes how far this one is."""
    if event.other:
        yield Do(toy_id=event.other, detail=f"at {head.count}")


def answered(answer_to: AnswerTo, answer: Answer) -> Command:
    detail = answer.code or str(answer.result)
    return Do(toy_id=answer_to.aggregate_id, how="take", detail=f"{answer_to.subject}/{answer_to.wait_id}: {detail}")


class Toys:
    """The deciders. `ways`: what further words of `Do.how` do."""

    def __init__(self, **ways: Callable[[Do, Rows, Meta], Iterable[Decision]]) -> None:
        self.ways = ways

    def domain(self) -> Domain:
        return Domain(
            name="toy",
            head=Toy,
            decide={Make: make, Do: self.do},
            evolve=evolve,
            events=(Counted,),
            tables=(TOYS,),
            answer=lambda command, rows, meta: {"count": cast(Toy, rows.get(Toy, meta.aggregate_id)).count},
            react={Counted: (count_too,)},
            answered=answered,
        )

    def do(self, command: Do, rows: Rows, meta: Meta) -> Iterator[Decision]:
        if rows.get(Toy, meta.aggregate_id) is None:
            raise Rejected("toy_not_found", "no such toy", status=404)
        match command.how:
            case "refuse":
                raise Rejected("refused", "no")
            case "raise":
                raise ZeroDivisionError("a bug")
            case "answer":
                yield Counted()
                yield Reply(meta.answer_to, Answer(result="done"))
            case "ask":
                yield Counted()
                work = Do(toy_id=cast(str, command.other), how=command.detail)
                yield Awaited(work, subject="s", wait_id="w")
            case "begin":
                yield Counted(note="begin")
                yield Deferred(30.0)
            case "end":
                yield Counted(note="end")
                yield Settled(cast(str, command.command_id), "succeeded", {"made": "later"})
            case "count" | "take":
                yield Counted(note=command.detail)
            case _:
                yield from self.ways[command.how](command, rows, meta)


@dataclass
class Platform:
    """One kernel that owns all lanes. Commands that it makes come back when `settle` is awaited."""

    toys: Toys = field(default_factory=Toys)
    defences: Defences = field(default_factory=Defences)
    limits: Limits = field(default_factory=Limits)
    deciding: DecidingTime | None = None
    background: Background | None = None
    at: float = 1_700_000_000.0

    def __post_init__(self) -> None:
        self.database = MemoryDatabase(range(LANES), [TOYS], self.now)
        self.log = MemoryLog(self.now)
        self.log.appended = self._appended
        self.made: deque[Out] = deque()
        self.sent: list[Out] = []
        self.kernel = Kernel(
            MemoryStore(self.database),
            MemoryProducer(self.log),
            [self.toys.domain()],
            [TOYS],
            partitions=Partitions(LANES, LANES, 1),
            clock=self,
            owner="worker",
            defences=self.defences,
            limits=self.limits,
            deciding=self.deciding,
            background=self.background,
        )
        self._ids = itertools.count()
        self._offsets = [itertools.count() for _ in range(LANES)]

    def now(self) -> float:
        return self.at

    def _appended(self, out: Out) -> None:
        self.sent.append(out)
        if out.topic == COMMANDS:
            self.made.append(out)

    def command(self, command: Command, *, tenant_id: str = TENANT, external: bool = True, answer_to: str = "") -> Out:
        """Its record, as a gateway or a lane would send it."""
        id = derive(ROOT, f"message {next(self._ids)}")
        key = command.aggregate_id(tenant_id, id)
        envelope = Envelope(
            id, command.type, tenant_id, key, fingerprint=f"f {id}" if external else "", reply_partition=0,
            answer_to=answer_to,
        )  # fmt: skip
        place = partition_of(key, LANES)
        return Out(place, 0, COMMANDS, place, key, envelope.headers(), command.encode(), tenant_id)

    async def feed(self, *outs: Out) -> None:
        """Handle these as one batch, the next of their partitions, and all that follows from them."""
        if not self.kernel.lanes:
            await self.kernel.claim(range(LANES))
        await self.kernel.handle([self.incoming(out) for out in outs])
        await self.settle()

    def incoming(self, out: Out) -> Incoming:
        offset = next(self._offsets[out.partition])
        return Incoming(out.partition, offset, out.key.encode(), out.headers, out.body, self.at)

    async def settle(self) -> None:
        """Until nothing is on its way any more; each record that came is a batch."""
        await self._sent()
        while self.made:
            await self.kernel.handle([self.incoming(self.made.popleft())])
            await self._sent()

    async def _sent(self) -> None:
        while any(lane.unacknowledged for lane in self.kernel.lanes.values()):
            await asyncio.sleep(0)
            await self.kernel.drain_failed()
        for _ in range(3):
            await asyncio.sleep(0)  # Replies, for which no lane waits.

    async def do(self, name: str, how: str = "count", **more: Any) -> JsonObject:
        """Send a command from outside; its outcome as it is then: status and body."""
        out = self.command(Do(toy_id=named(name), how=how, **more))
        await self.feed(out)
        return self.outcome(out)

    def outcome(self, out: Out) -> JsonObject:
        stored = self.database.outcomes[decode_headers(out.headers).id]
        return {"status": stored.status, "body": orjson.loads(stored.body) if stored.body else None}

    def toy(self, name: str) -> Toy | None:
        return cast("Toy | None", self.database.tables["toy"].get(named(name)))

    def notes(self, name: str) -> list[str]:
        """What the toy was told, in order."""
        events = sorted(
            (e.recorded for e in self.database.events.values() if e.recorded.aggregate_id == named(name)),
            key=lambda recorded: recorded.seq,
        )
        return [cast(Counted, recorded.event).note for recorded in events]

    def of(self, topic: str) -> list[Out]:
        return [out for out in self.sent if out.topic == topic]
