"""Reception: records become commands of their lanes, or dead letters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from bus.answers import Answers
from bus.batch import Accepted, Batch
from bus.dead_letters import letter_of
from bus.lanes import Lane
from bus.limits import Clock, Defences, Limits
from bus.records import Partitions
from bus.store import Incoming, Out
from schemas import registry
from schemas.decider import Answer
from schemas.envelope import Envelope, Malformed, decode_headers
from schemas.messages import SCHEMA_VERSION, UUID_PATTERN, Command
from schemas.topics import COMMANDS, MESSAGE_BYTES_MAX, partition_of

log = logging.getLogger("agent_platform.kernel")

REDRIVE_MAX = 32_767
"""What the inbox can hold."""


class Ingress(Protocol):
    """Who may publish to `ingress`, and what becomes of a record there."""

    def __call__(self, envelope: Envelope, body: bytes) -> tuple[Envelope, Command]:
        """The command to move on. Raises Malformed with the reason of refusal."""


class Reception:
    """Decodes what comes in: checks who may send it, whom it is for, and whether this release knows it.

    `commands`: those that are decided here, by their names.
    """

    def __init__(
        self,
        commands: Mapping[str, type[Command]],
        partitions: Partitions,
        clock: Clock,
        limits: Limits,
        defences: Defences,
        answers: Answers,
        ingress: Ingress | None,
    ) -> None:
        self._commands = commands
        self._partitions = partitions
        self._clock = clock
        self._limits = limits
        self._defences = defences
        self._answers = answers
        self._ingress = ingress

    def accept(self, batch: Batch, records: Sequence[Incoming]) -> list[Accepted]:
        """The commands of a batch; what is not one becomes a dead letter, or stops its lane."""
        accepted = []
        for record in records:
            lane = batch.lanes.get(record.lane)
            if lane is None or not lane.usable:
                continue
            if record.offset >= 0 and lane.handed and lane.was_handed(record.headers):
                batch.skip(lane, record.offset)
                continue
            if record.decoded is not None:
                lane.handed[record.decoded[0].id] = None
                envelope, command = record.decoded
                accepted.append(Accepted(lane, -1, command, envelope, record.key_text, record))
                batch.advance(lane, -1)
                continue
            try:
                envelope = decode_headers(record.headers)
                if batch.condemned is not None and lane.ingress:
                    raise Malformed(*batch.condemned)
                if len(record.body or b"") > MESSAGE_BYTES_MAX:
                    raise Malformed("message_too_large", f"a message is at most {MESSAGE_BYTES_MAX} bytes")
                if lane.ingress:
                    self._forward(batch, lane, record, envelope)
                else:
                    accepted.append(self._decode(lane, record, envelope))
            except Malformed as error:
                if error.code in ("unknown_type", "unknown_schema_version") and not lane.ingress:
                    stop(lane, f"{error} at offset {record.offset}; a newer release may know it")
                    continue
                self.bury(batch, lane, record, error.code, error.detail)
            batch.advance(lane, record.offset)
            batch.handled[lane.id] = batch.handled.get(lane.id, 0) + 1
        return accepted

    def _decode(self, lane: Lane, record: Incoming, envelope: Envelope) -> Accepted:
        if envelope.schema_version > SCHEMA_VERSION:
            raise Malformed("unknown_schema_version", f"schema version {envelope.schema_version} of {envelope.type}")
        if not UUID_PATTERN.match(envelope.id):
            raise Malformed("malformed_header", "ce_id of a command must be a lower-case uuid")
        if not envelope.tenant_id:
            raise Malformed("missing_header", "ce_tenantid is required")
        if not 0 <= envelope.redrive <= REDRIVE_MAX:
            raise Malformed("malformed_header", f"ce_redrive must be from 0 to {REDRIVE_MAX}")
        command = registry.decode_command(
            envelope.type, record.body, trusted=not envelope.fingerprint, commands=self._commands
        )
        aggregate_id = command.aggregate_id(envelope.tenant_id, envelope.id)
        if record.offset >= 0:
            if record.key != aggregate_id.encode():
                raise Malformed("misrouted", f"the key of {envelope.type} must be {aggregate_id}")
            known = aggregate_id in lane.aggregates  # Then it has been checked before.
            if not known and partition_of(aggregate_id, self._partitions.commands) != lane.id:
                raise Malformed("misrouted", f"{aggregate_id} does not belong to partition {lane.id}")
            age = self._clock.now() - record.timestamp if record.timestamp else 0.0
            if age > self._limits.record_age_seconds_max:
                raise Malformed("expired", f"the record is {age:.0f} s old")
        if envelope.fingerprint and envelope.answer_to:
            envelope = envelope._replace(answer_to="")  # Only our lanes may say whom to tell.
        if not -1 <= envelope.reply_partition < self._partitions.replies:
            envelope = envelope._replace(reply_partition=-1)  # It would fail the sends of all lanes.
        return Accepted(lane, record.offset, command, envelope, aggregate_id, record)

    def _forward(self, batch: Batch, lane: Lane, record: Incoming, envelope: Envelope) -> None:
        if self._ingress is None:
            raise Malformed("unauthenticated", "nothing is accepted on ingress here")
        envelope, command = self._ingress(envelope, record.body)
        key = command.aggregate_id(envelope.tenant_id, envelope.id)
        partition = partition_of(key, self._partitions.commands)
        batch.send(
            lane,
            Out(lane.id, 0, COMMANDS, partition, key, envelope.headers(), command.encode(), envelope.tenant_id),
        )

    def bury(self, batch: Batch, lane: Lane, record: Incoming, code: str, detail: str) -> None:
        """A record is refused for good: a dead letter with its reason; whoever awaits it is told."""
        letter = letter_of(record, lane.id, code, detail, batch.at)
        if self._defences.dead_letters:
            batch.bury(lane, letter)
        if self._defences.answers and not lane.ingress:
            self._answers.buried(batch, lane, record, Answer(code=code, detail=detail))
        if not any(name == "ce_fingerprint" for name, _ in record.headers):
            batch.died[lane.id] = batch.died.get(lane.id, 0) + 1  # What strangers send says nothing about us.
        log.warning("dead letter %s/%d@%d: %s: %s", letter.topic, letter.partition, record.offset, code, detail[:200])

    def count(self, batch: Batch) -> None:
        """A lane of commands on which too many records die has met something that needs a person."""
        for lane_id, handled in batch.handled.items():
            batch.lanes[lane_id].handled += handled
        for lane_id, died in batch.died.items():
            lane = batch.lanes[lane_id]
            lane.died += died
            enough = lane.handled >= self._limits.dead_window_records
            if not lane.ingress and enough and lane.died > self._limits.dead_ratio * lane.handled:
                stop(lane, f"{lane.died} of {lane.handled} records died")


def stop(lane: Lane, reason: str) -> None:
    """A lane stands still from here on: an operator must act."""
    lane.stopped = reason
    log.error("lane %d stops: %s", lane.id, reason)
