"""What one batch decided: folded in memory record by record, written in one transaction, sent after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from bus.folding import Folded
from bus.lanes import Lane
from bus.records import Partitions, event_record, rfc3339
from bus.rows import View
from bus.store import Advance, DeadLetter, Incoming, Logged, Out, Outcome, Timer, Writes
from infra.db import TableSpec
from outbox.tombstones import refusal
from schemas.decider import (
    After,
    Answer,
    Awaited,
    Deferred,
    Domain,
    Key,
    Meta,
    Missing,
    React,
    Recorded,
    Settled,
)
from schemas.envelope import AnswerTo, Envelope
from schemas.messages import Command, Event, Rejected, derive
from schemas.outcomes import ExpireOutcome
from schemas.topics import COMMANDS, DEAD_LETTERS, REPLIES, partition_of


class Condemned(NamedTuple):
    """Why the one record of a batch is to be a dead letter, whatever its decision would be."""

    code: str
    detail: str


class Accepted(NamedTuple):
    """A record that is a command for an aggregate of its lane."""

    lane: Lane
    offset: int
    command: Command
    envelope: Envelope
    aggregate_id: str
    incoming: Incoming | None = None

    @property
    def external(self) -> bool:
        return bool(self.envelope.fingerprint)

    @property
    def source(self) -> Incoming:
        """The record it came as."""
        assert self.incoming is not None  # Only a test makes one without.
        return self.incoming

    @property
    def record(self) -> Incoming:
        """It as the topic bears it."""
        if self.incoming is not None and self.incoming.decoded is None:
            return self.incoming
        key = self.aggregate_id.encode()
        return Incoming(self.lane.id, -1, key, self.envelope.headers(), self.command.encode())


@dataclass(slots=True)
class _Made:
    """What one lane made in this batch, in order: events and records with an outbox row."""

    lane: Lane
    next_offset: int
    items: list[Recorded[Event] | Out] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


class Batch:
    """Collects a batch decided at database time `at`. Nothing in it has happened before `Kernel` has committed it."""

    def __init__(
        self,
        partitions: Partitions,
        specs: Mapping[type[Any], TableSpec],
        reactions: Mapping[type[Event], Sequence[tuple[str, React]]],
        at: float,
        answered: Callable[[str, Answer], Command | None] = lambda answer_to, answer: None,
    ) -> None:
        self._partitions = partitions
        self._specs = specs
        self._reactions = reactions
        self._answered = answered
        self.at = at
        self.optimistic = False
        self.handled: dict[int, int] = {}
        self.died: dict[int, int] = {}
        self.writes = Writes()
        self.replies: list[Out] = []
        self.lanes: dict[int, Lane] = {}
        self.condemned: Condemned | None = None
        self.made: dict[int, _Made] = {}
        self.held: set[Key] = set()
        self.touched: set[tuple[int, str]] = set()
        self.facts: dict[Key, Any] = {}
        self.outcomes: dict[str, Outcome | None] = {}
        self._new: dict[Key, Any] = {}
        self._changed: dict[Key, Any] = {}
        self._numbered: list[Logged | Out] = []
        self.sends: Sequence[Out] = []
        self.events: list[Recorded[Event]] = []
        self.finished: list[tuple[Lane, str]] = []
        self.ended_before: list[tuple[Lane, str]] = []
        self.started: list[tuple[Any, Lane]] = []
        self.unlisted: list[tuple[Lane, str]] = []
        self.ready: list[Any] = []
        self.accepted: list[Accepted] = []
        self.began = time.perf_counter()
        self.decided = 0.0
        self.hints: list[Out] = []

    def lane(self, lane: Lane) -> _Made:
        made = self.made.get(lane.id)
        if made is None:
            made = self.made[lane.id] = _Made(lane, lane.dealt)
        return made

    def advance(self, lane: Lane, offset: int) -> None:
        """The record at `offset` is dealt with (-1: it was handed over in memory and has no offset)."""
        made = self.lane(lane)
        if offset >= made.next_offset:
            made.next_offset = offset + 1

    def skip(self, lane: Lane, offset: int) -> None:
        """The record at `offset` came true already. Alone it is worth no transaction: the next one tells."""
        if lane.id in self.made:
            self.advance(lane, offset)
        elif offset >= lane.dealt:
            lane.dealt = offset + 1

    def decide(self, accepted: Accepted, domain: Domain, meta: Meta, view: View) -> int:
        """Fold one command; how many rows that writes at most, events among them.

        Raises Missing or Rejected, or whatever a defect raises, with nothing collected.
        """
        lane, command = accepted.lane, accepted.command
        head = self._head(accepted, domain, meta, view)
        folded = Folded(head.seq if head is not None else 0)
        folded.fold(domain, command, view, meta, self._reactions, self._answered)
        unknown = [each.command_id for each in folded.settled if each.command_id not in self.outcomes]
        if unknown:
            raise Missing(outcomes=unknown)
        deferred = folded.deferred
        answer = domain.answer(command, view, meta) if accepted.external and deferred is None else None
        made = self.lane(lane)
        made.items.extend(folded.recorded)
        made.bodies.extend(folded.bodies)
        self.events.extend(folded.recorded)
        for name, out in folded.commands:
            self._follow_up(accepted, meta, domain, name, out)
        self._keep(accepted, view, sum(map(len, folded.bodies)))
        if folded.recorded and domain.ended(view.get(domain.head, accepted.aggregate_id)):
            self.finished.append((lane, accepted.aggregate_id))
        if accepted.external and deferred is not None:
            self._defer(accepted, meta, deferred)
        elif accepted.external:
            self.conclude(accepted, "succeeded", orjson.dumps(answer), meta.at)
        for each in folded.settled:
            self.settle(accepted, each, meta.at)
        return len(view.changed) + len(folded.recorded)

    def _head(self, accepted: Accepted, domain: Domain, meta: Meta, view: View) -> Any:
        """The header as this command may see it: another tenant's aggregate is not there, one that was removed neither.

        Raises Rejected for a command that would make what is there, or was.
        """
        head = view.get(domain.head, accepted.aggregate_id)
        if head is not None and head.tenant_id != meta.tenant_id:
            if accepted.command.creates:
                raise Rejected("id_taken", f"{accepted.aggregate_id} is taken")
            view.hide()
            head = None
        if head is None and (gone := accepted.lane.aggregate(accepted.aggregate_id).gone) is not None:
            raise refusal(gone, accepted.command, meta.tenant_id)
        return head

    def _keep(self, accepted: Accepted, view: View, size: int) -> None:
        if not view.changed:
            return
        accepted.lane.grew(accepted.aggregate_id, size)
        aggregate = accepted.lane.aggregate(accepted.aggregate_id)
        self.touched.add((accepted.lane.id, accepted.aggregate_id))
        for key, row in view.changed.items():
            if key in self._new or (aggregate.rows.get(key) is None):
                self._new[key] = row
            else:
                self._changed[key] = row
            aggregate.rows[key] = row
            self.held.add(key)

    def replace(self, lane: Lane, aggregate_id: str, row: Any) -> None:
        """Change a row that this batch touches anyway (a lease): it is written with the rest."""
        key = (type(row), row.id)
        if key in self._new:
            self._new[key] = row
        else:
            self._changed[key] = row
        lane.aggregate(aggregate_id).rows[key] = row

    @property
    def rows(self) -> list[tuple[Key, Any]]:
        """The rows this batch changes, as they stand."""
        return [*self._new.items(), *self._changed.items()]

    def is_new(self, key: Key) -> bool:
        return key in self._new

    @property
    def changed(self) -> Iterable[tuple[Key, Any]]:
        """The rows that were there before."""
        return self._changed.items()

    def _follow_up(
        self, accepted: Accepted, meta: Meta, domain: Domain, name: str, item: Command | After | Awaited
    ) -> None:
        answer_to = ""
        if isinstance(item, Awaited):
            answer_to = str(AnswerTo(domain.name, meta.aggregate_id, item.subject, item.wait_id))
        command = item.command if isinstance(item, After | Awaited) else item
        message_id = derive(meta.message_id, f"{name}:{command.type}")
        out = self.command_record(accepted.lane, message_id, command, meta, answer_to)
        if isinstance(item, After):
            self.writes.timers.append(Timer(message_id, item.seconds, out))
        else:
            self.send(accepted.lane, out)

    def command_record(self, lane: Lane, message_id: str, command: Command, meta: Meta, answer_to: str = "") -> Out:
        key = command.aggregate_id(meta.tenant_id, message_id)
        envelope = Envelope(
            id=message_id,
            type=command.type,
            tenant_id=meta.tenant_id,
            subject=key,
            time=rfc3339(meta.at),
            correlation_id=meta.correlation_id,
            causation_id=meta.message_id,
            actor=meta.actor,
            traceparent=meta.traceparent,
            answer_to=answer_to,
        )
        partition = lane.id if key == meta.aggregate_id else partition_of(key, self._partitions.commands)
        return Out(lane.id, 0, COMMANDS, partition, key, envelope.headers(), command.encode(), meta.tenant_id)

    def send(self, lane: Lane, out: Out) -> None:
        """A record that must reach Kafka if this batch commits: it gets an outbox row."""
        made = self.lane(lane)
        made.items.append(out)
        made.bodies.append(out.body)

    def conclude(self, accepted: Accepted, status: str, body: bytes, at: float) -> None:
        """The outcome of a command from outside: stored with the batch, and told to who waits."""
        self._store(accepted.envelope, status, body, at)
        self.reply(accepted, status, body)

    def _store(self, envelope: Envelope, status: str, body: bytes, at: float, *, deferred: bool = False) -> None:
        outcome = Outcome(
            envelope.id, envelope.tenant_id, envelope.type, envelope.fingerprint, status, body, at,
            envelope.reply_partition, deferred,
        )  # fmt: skip
        (self.writes.new_outcomes if self.optimistic else self.writes.outcomes).append(outcome)

    def _defer(self, accepted: Accepted, meta: Meta, deferred: Deferred) -> None:
        """The outcome comes later: until then it is pending, and a timer ends the wait for it."""
        self._store(accepted.envelope, "pending", b"", meta.at, deferred=True)
        command = ExpireOutcome(target_id=accepted.aggregate_id, command_id=accepted.envelope.id)
        message_id = derive(meta.message_id, "expire")
        out = self.command_record(accepted.lane, message_id, command, meta)
        self.writes.timers.append(Timer(message_id, deferred.seconds, out))

    def settle(self, accepted: Accepted, settled: Settled, at: float) -> None:
        """The outcome of an earlier command, unless it has one. Raises Missing if what is stored is not known."""
        if settled.command_id not in self.outcomes:
            raise Missing(outcomes=(settled.command_id,))
        pending = self.outcomes[settled.command_id]
        if pending is None or pending.status != "pending":
            return
        body = orjson.dumps(settled.body)
        outcome = pending._replace(status=settled.status, body=body, at=at)
        self.outcomes[settled.command_id] = outcome
        self.writes.outcomes.append(outcome)
        self.writes.ended_timers.append(derive(settled.command_id, "expire"))
        envelope = Envelope(
            outcome.command_id, outcome.type, outcome.tenant_id, reply_partition=outcome.reply_partition
        )
        self.reply(accepted._replace(envelope=envelope), settled.status, body)

    def reply(self, accepted: Accepted, status: str, body: bytes) -> None:
        envelope = accepted.envelope
        if envelope.reply_partition < 0:
            return
        told = Envelope(
            id=derive(envelope.id, "outcome"),
            type="outcome",
            tenant_id=envelope.tenant_id,
            subject=accepted.aggregate_id,
            correlation_id=envelope.id,
            traceparent=envelope.traceparent,
        )
        text = b'{"command_id":"%b","status":"%b","body":%b}' % (
            envelope.id.encode(),
            status.encode(),
            body or b"null",
        )
        self.replies.append(
            Out(
                -1,
                0,
                REPLIES,
                envelope.reply_partition,
                envelope.id,
                told.headers(),
                text,
                envelope.tenant_id,
            )
        )

    def bury(self, lane: Lane, letter: DeadLetter) -> None:
        """A dead letter: its row, and its record on the topic of dead letters."""
        self.writes.dead_letters.append(letter)
        envelope = Envelope(
            id=letter.id,
            type="dead_letter",
            tenant_id=letter.tenant_id,
            subject=letter.key,
            time=rfc3339(letter.at),
        )
        headers = [
            *envelope.headers(),
            ("x-code", letter.code.encode()),
            ("x-detail", letter.detail.encode()),
            ("x-topic", letter.topic.encode()),
            ("x-partition", b"%d" % letter.partition),
            ("x-offset", b"%d" % letter.offset),
            ("x-type", letter.type.encode()),
            ("x-body-bytes", b"%d" % letter.body_bytes),
            ("x-body-sha256", letter.body_sha256.encode()),
        ]
        partition = partition_of(letter.key, self._partitions.dead_letters)
        self.send(lane, Out(lane.id, 0, DEAD_LETTERS, partition, letter.key, headers, letter.body, letter.tenant_id))

    def finish(self) -> None:
        """Number what was made, and lay the rows out for the store."""
        for lane_id in sorted(self.made):
            made = self.made[lane_id]
            lane, position = made.lane, made.lane.position
            for item, body in zip(made.items, made.bodies, strict=True):
                position += 1
                if isinstance(item, Recorded):
                    logged = Logged(position, item, body)
                    self.writes.events.append(logged)
                    self._numbered.append(logged)
                else:
                    out = Out(
                        lane_id,
                        position,
                        item.topic,
                        item.partition,
                        item.key,
                        item.headers,
                        body,
                        item.tenant_id,
                    )
                    self.writes.outbox.append(out)
                    self._numbered.append(out)
            lane.acknowledge()
            self.writes.advances.append(
                Advance(lane_id, lane.epoch, lane.next_offset, made.next_offset, position, lane.sent, lane.floor)
            )
            self.writes.trim = self.writes.trim or lane.sent > lane.trimmed
        for rows, target in ((self._new, self.writes.inserts), (self._changed, self.writes.updates)):
            for (kind, _), row in rows.items():
                target.setdefault(self._specs[kind].name, []).append(row)

    def records(self) -> list[Out]:
        """What was made, in order, as records to produce."""
        return [event_record(each, self._partitions) if isinstance(each, Logged) else each for each in self._numbered]

    def committed(self) -> None:
        for made, advance in zip((self.made[id] for id in sorted(self.made)), self.writes.advances, strict=True):
            made.lane.next_offset = made.lane.dealt = advance.next
            made.lane.position = advance.position
            made.lane.trimmed = advance.sent
