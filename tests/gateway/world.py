"""A gateway over a bus and tables in memory: the deciders are the real ones, one command at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from bus.producer import BusUnavailable
from bus.record_batches import Keyed
from gateway.audit import AuditLog
from gateway.http.app import create_app
from gateway.http.identity import Keys
from gateway.http.in_flight import InFlight
from gateway.http.ports import AuditRecord, Candidate, DatabaseUnavailable, EventReader, Found, Outcome, Page
from gateway.http.routing import Listing, path_names
from gateway.http.state import Gateway
from gateway.http.tail import Tail
from gateway.run_events import LoggedEvent
from gateway.time_travel import of_page
from handlers.steps.check import problems_of
from infra.db import TableSpec
from infra.domains import DOMAINS, PROJECTIONS
from infra.settings import Settings
from outbox.tombstones import TOMBSTONES, Tombstone
from projections.access import ApiKey
from projections.catalog import Version
from projections.runtime import BY_HAND, NodeRun
from schemas.decider import After, Answer, Awaited, Decision, Deferred, Domain, Meta, Missing, Recorded, Settled
from schemas.envelope import AnswerTo, Envelope, Headers, decode_headers
from schemas.messages import Command, Event, Rejected
from schemas.registry import decode_command
from schemas.runtime import StartSingle

ROWS = {**{spec.name: spec.row for spec in PROJECTIONS}, TOMBSTONES.name: Tombstone}
SPECS = {spec.row: spec for spec in PROJECTIONS}


@dataclass
class Tables:
    """All rows by type and id, as `Rows` for one aggregate after the other."""

    rows: dict[tuple[type[Any], str], Any] = field(default_factory=dict)
    aggregate_id: str = ""
    tenant_id: str = ""

    def get(self, kind: type[Any], id: str) -> Any:
        """As the kernel shows rows: another tenant's are not there."""
        row = self.rows.get((kind, id))
        return row if row is not None and row.tenant_id == self.tenant_id else None

    def fact(self, kind: type[Any], id: str) -> Any:
        return self.get(kind, id)

    def want(self, kind: type[Any], ids: Iterable[str]) -> None:
        pass

    def live(self, kind: type[Any]) -> list[Any]:
        spec = SPECS[kind]
        rows = [row for (each, _), row in self.rows.items() if each is kind]
        return [row for row in rows if getattr(row, spec.parent) == self.aggregate_id and spec.live(row)]


class World:
    """The bus and the tables of one test. What happens on `send` can be changed by the attributes."""

    def __init__(self) -> None:
        self.tables = Tables()
        self.events: list[Recorded[Event]] = []
        self.outcomes: dict[str, tuple[str, str, Outcome]] = {}
        self.audits: list[AuditRecord] = []
        self.sent: list[tuple[Envelope, Command, int]] = []
        self.arrivals: asyncio.Queue[tuple[Envelope, Command]] = asyncio.Queue()
        self.bus_up = True
        self.postgres_up = True
        self.replies_lost = False
        self.workers_up = True
        self.now = 1_000.0
        self.resolve: Callable[[Outcome], None] = lambda outcome: None
        self._ticks = itertools.count(1)

    # --- the bus ---------------------------------------------------------------------------------------------

    async def send(self, topic: str, partition: int, key: str | None, headers: Headers, body: bytes) -> None:
        assert topic == "commands"
        if not self.bus_up:
            raise BusUnavailable("down")
        envelope = decode_headers(headers)
        command = decode_command(envelope.type, body)
        assert key == command.aggregate_id(envelope.tenant_id, envelope.id) == envelope.subject
        self.sent.append((envelope, command, partition))
        self.arrivals.put_nowait((envelope, command))
        if self.workers_up:
            outcome = self.handle(envelope, command)
            if not self.replies_lost:
                self.resolve(outcome)

    def handle(self, envelope: Envelope, command: Command) -> Outcome:
        """What a worker does with a command from outside."""
        known = self.outcomes.get(envelope.id)
        if known is not None:
            fingerprint, _, outcome = known
            if fingerprint == envelope.fingerprint:
                return outcome
            problem = Rejected("idempotency_key_reused", "sent with another request before", status=422)
            return Outcome(envelope.id, "rejected", problem.problem())
        try:
            status, body = self.decide(envelope, command)
        except Rejected as refusal:
            status, body = "rejected", refusal.problem()
        outcome = Outcome(envelope.id, status, orjson.loads(orjson.dumps(body)))
        self.outcomes[envelope.id] = (envelope.fingerprint, envelope.tenant_id, outcome)
        return outcome

    def decide(self, envelope: Envelope, command: Command) -> tuple[str, Any]:
        """The outcome of a command; a check that it awaits is done at once."""
        domain = next(each for each in DOMAINS if type(command) in each.decide)
        meta = Meta(
            message_id=envelope.id,
            tenant_id=envelope.tenant_id,
            aggregate_id=envelope.subject,
            at=1_000_000.0 + next(self._ticks),
            actor=envelope.actor,
            correlation_id=envelope.correlation_id,
            traceparent=envelope.traceparent,
        )
        self.tables.aggregate_id, self.tables.tenant_id = meta.aggregate_id, meta.tenant_id
        head = self.tables.rows.get((domain.head, meta.aggregate_id))
        if command.creates and head is not None and head.tenant_id != meta.tenant_id:
            raise Rejected("id_taken", f"{meta.aggregate_id} is taken")
        outcome: tuple[str, Any] | None = None
        awaited: list[Awaited] = []
        for decision in self._decisions(domain, command, meta):
            match decision:
                case Event():
                    self._fold(domain, decision, meta)
                case Awaited():
                    awaited.append(decision)
                case Settled():
                    outcome = decision.status, decision.body
                case _:
                    assert isinstance(decision, After | Command | Deferred)
        for each in awaited:
            outcome = self.decide(envelope, self._checked(domain, each, meta))
        return outcome or ("succeeded", domain.answer(command, self.tables, meta))

    def _decisions(self, domain: Domain, command: Command, meta: Meta) -> Iterator[Decision]:
        """What is decided; programs are compiled on the way."""
        while True:
            try:
                yield from domain.decide[type(command)](command, self.tables, meta)
                return
            except Missing as lack:
                for each in lack.work:
                    each.keep(each.make())

    def _checked(self, domain: Domain, awaited: Awaited, meta: Meta) -> Command:
        assert isinstance(awaited.command, StartSingle)
        version = self.tables.rows[Version, awaited.command.inputs["version_id"]]
        answer = Answer({"output": {"problems": problems_of(version.spec)}})
        told = domain.answered(AnswerTo(domain.name, meta.aggregate_id, awaited.subject, awaited.wait_id), answer)
        assert told is not None
        return told

    def _fold(self, domain: Domain, event: Event, meta: Meta) -> None:
        head = self.tables.get(domain.head, meta.aggregate_id)
        recorded = Recorded(
            event=event,
            aggregate_id=meta.aggregate_id,
            seq=head.seq + 1 if head else 1,
            at=meta.at,
            tenant_id=meta.tenant_id,
            lane=0,
            actor=meta.actor,
            correlation_id=meta.correlation_id,
            traceparent=meta.traceparent,
        )
        self.events.append(recorded)
        for row in domain.evolve(self.tables, recorded):
            self.tables.rows[type(row), row.id] = row

    # --- the tables ------------------------------------------------------------------------------------------

    def _answering(self) -> None:
        if not self.postgres_up:
            raise DatabaseUnavailable("down")

    async def one(self, tenant_id: str, spec: TableSpec, id: str) -> Any | None:
        self._answering()
        row = self.tables.rows.get((spec.row, id))
        return row if row is not None and row.tenant_id == tenant_id else None

    async def page(self, tenant_id: str, page: Page) -> Found:
        self._answering()
        kind = page.spec.row
        rows: Iterable[Any] = [row for row in self.tables.rows.values() if type(row) is kind]
        if kind is AuditRecord:
            rows = self.audits
        elif kind is LoggedEvent:
            rows = map(_logged, self.events)
        return of_page((row for row in rows if row.tenant_id == tenant_id), page)

    async def history(self, tenant_id: str, aggregate_id: str, seq_max: int | None) -> AsyncIterator[Recorded[Event]]:
        self._answering()
        for recorded in self.events:
            ours = recorded.aggregate_id == aggregate_id and recorded.tenant_id == tenant_id
            if ours and (seq_max is None or recorded.seq <= seq_max):
                yield recorded

    async def outcome(self, tenant_id: str, command_id: str) -> Outcome | None:
        self._answering()
        known = self.outcomes.get(command_id)
        return known[2] if known and known[1] == tenant_id else None

    async def step_in_flight(self, tenant_id: str, run_id: str) -> bool:
        self._answering()
        return any(isinstance(row, NodeRun) and row.run_id == run_id and row.ready for row in self.tables.rows.values())

    async def candidates(self, tenant_id: str | None, limit: int) -> Sequence[Candidate]:
        self._answering()
        nodes = [row for row in self.tables.rows.values() if isinstance(row, NodeRun) and row.listed == BY_HAND]
        waiting = [row for row in nodes if tenant_id in (None, row.tenant_id)]
        waiting.sort(key=lambda row: (row.created_at, row.seq, row.id))
        return [Candidate(row.id, row.run_id, row.tenant_id) for row in waiting[:limit]]

    async def tenant_of(self, table: str, id: str) -> str | None:
        self._answering()
        if table == "command_outcome":
            known = self.outcomes.get(id)
            return known[1] if known else None
        return next(
            (
                str(row.tenant_id)
                for (kind, each), row in self.tables.rows.items()
                if each == id and kind is ROWS[table]
            ),
            None,
        )

    async def api_key(self, id: str) -> ApiKey | None:
        self._answering()
        key: ApiKey | None = self.tables.rows.get((ApiKey, id))
        return key

    async def any_api_key(self) -> bool:
        self._answering()
        return any(kind is ApiKey for kind, _ in self.tables.rows)

    async def write_audit(self, records: Sequence[AuditRecord]) -> None:
        self._answering()
        self.audits.extend(records)

    async def audit_stats(self, tenant_id: str, since: float) -> Mapping[str, Any]:
        self._answering()
        return {"requests": sum(each.tenant_id == tenant_id for each in self.audits)}

    async def ping(self) -> None:
        self._answering()

    async def kafka_answers(self) -> None:
        if not self.bus_up:
            raise ConnectionError("down")


def _logged(recorded: Recorded[Event]) -> LoggedEvent:
    return LoggedEvent(
        recorded.aggregate_id,
        recorded.seq,
        recorded.event.type,
        recorded.tenant_id,
        recorded.at,
        recorded.actor,
        recorded.correlation_id,
        recorded.causation_id,
        recorded.event.encode(),
    )


class Unreachable:
    """A reader of events while Kafka is down."""

    async def to_end(self) -> None:
        raise ConnectionError("down")

    async def read(self, keys: Container[bytes]) -> list[Keyed]:
        raise ConnectionError("down")

    async def close(self) -> None:
        pass


def gateway_over(world: World, settings: Settings, reader: EventReader | None = None) -> Gateway:
    in_flight = InFlight(settings.commands_in_flight_max, lambda: world.now)
    world.resolve = in_flight.resolve
    return Gateway(
        settings=settings,
        bus=world,
        reads=world,
        keys=Keys(world, lambda: world.now, settings.requests_per_second_max),
        in_flight=in_flight,
        audit=AuditLog(world, open_access=not settings.auth_required),
        tail=Tail(reader or Unreachable()),
        kafka_answers=world.kafka_answers,
    )


@asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(gateway))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


def shown_at(route: Listing, run_id: str) -> str:
    """The address of a list that shows something if there is a run."""
    needs = route.rows.needs if not path_names(route.path) else None
    return route.path.replace("{run_id}", run_id) + (f"?{needs}={run_id}" if needs else "")
