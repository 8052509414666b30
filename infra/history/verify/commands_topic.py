"""The consumed topics against what became of their records: I1, I5, I6, I11 and I12."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bus.replay import Extent
from bus.statements import load_headers
from infra.history.verify.log import Causes
from infra.history.verify.system import KEPT_SECONDS, LaneRow, System, known, removed
from infra.history.verify.tenants import check_commands
from schemas import registry
from schemas.envelope import Envelope, Malformed, decode_headers, header
from schemas.messages import derive, natural_id
from schemas.topics import COMMANDS, DEAD_LETTERS, INGRESS

_INBOX = """SELECT i.message_id, i.redrive FROM unnest($1::uuid[], $2::int2[]) AS u(id, redrive)
JOIN inbox i ON i.message_id = u.id AND i.redrive = u.redrive"""
_SETTLED = "SELECT command_id FROM command_outcome WHERE command_id = ANY($1::uuid[])"
_LETTERS = """SELECT "offset" FROM dead_letter WHERE topic = $1 AND partition = $2 AND "offset" = ANY($3::int8[])"""
_INBOX_IDS = "SELECT message_id FROM inbox WHERE message_id = ANY($1::uuid[])"
_LETTER_IDS = "SELECT message_id FROM dead_letter WHERE message_id = ANY(SELECT unnest($1::uuid[])::text)"
_CAUSING = "SELECT DISTINCT causation_id FROM event WHERE causation_id = ANY(SELECT unnest($1::uuid[])::text)"
_NODE_RUNS = "SELECT id FROM node_run WHERE id = ANY($1::uuid[])"
_OUTBOX = "SELECT lane, position, topic, partition, headers FROM outbox ORDER BY lane, position"
_LETTER_ROWS = "SELECT id, at, code FROM dead_letter ORDER BY at"
_LETTER_BY_ID = "SELECT id FROM dead_letter WHERE id = ANY($1::uuid[])"


@dataclass(slots=True)
class Expected:
    """What the topics still have to show: outbox rows, moved ingress records, causes without an inbox row."""

    outbox: dict[tuple[str, int, str, int], tuple[int, int]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    causes: Causes = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    """By partition of `commands`, the time of its first record: what was before is not there to be looked at."""
    caused: dict[str, tuple[str, str]] = field(default_factory=dict)
    """By cause: the aggregate of the first command that names it, and how it is reported."""

    def saw(self, topic: str, partition: int, id: str, redrive: int) -> None:
        self.outbox.pop((topic, partition, id, redrive), None)
        if topic == COMMANDS:
            self.moved.pop(id, None)
            self.causes.pop(id, None)


@dataclass(frozen=True, slots=True)
class Read:
    offset: int
    timestamp: float
    envelope: Envelope | None


def _decoded(record: Any) -> Read:
    try:
        envelope = decode_headers(record.headers)
    except Malformed:
        envelope = None
    return Read(record.offset, record.timestamp / 1_000, envelope)


async def check_consumed(system: System, causes: Causes) -> None:
    expected = Expected(causes=causes)
    async for row in system.stream(_OUTBOX):
        headers = load_headers(row["headers"])
        redrive = int(header(headers, "ce_redrive") or b"0")
        id = (header(headers, "ce_id") or b"").decode()
        expected.outbox[row["topic"], row["partition"], id, redrive] = (row["lane"], row["position"])
    system.report.checked["outbox rows"] = len(expected.outbox)
    for topic, judge in ((INGRESS, _judge_ingress), (COMMANDS, _judge_commands)):
        for partition in system.extents[topic]:
            lane = system.lane_of(topic, partition)
            if lane is None:
                system.report.add("I11", [f"{topic}/{partition} has no lane"])
                continue
            system.report.add("I11", _misplaced(lane, system.extents[topic][partition]))
            async for records in system.records(topic, partition):
                reads = [_decoded(record) for record in records]
                if topic == COMMANDS and reads:
                    expected.since.setdefault(partition, reads[0].timestamp)
                _late(system, topic, partition, lane, reads)
                for read in reads:
                    if read.envelope is not None:
                        expected.saw(topic, partition, read.envelope.id, read.envelope.redrive)
                await judge(system, partition, [read for read in reads if read.offset < lane.next_offset], expected)
    await _check_letters(system, expected)
    await _await(system, expected)
    await _uncaused(system, expected)


def _misplaced(lane: LaneRow, extent: Extent) -> Iterator[str]:
    """The topic was made anew, or the database is another one's."""
    if not extent.holds(lane.next_offset):
        yield f"lane {lane.id} stands at {lane.next_offset}, its topic holds {extent.begin} to {extent.end}"


def _late(system: System, topic: str, partition: int, lane: LaneRow, reads: Sequence[Read]) -> None:
    """I11: a record that nobody takes up."""
    if lane.stopped:
        return  # Reported once, as a stopped lane.
    for read in reads:
        if read.offset >= lane.next_offset and read.timestamp < system.now - system.stale_seconds:
            age = system.now - read.timestamp
            system.report.add("I11", [f"{topic}/{partition}@{read.offset} waits since {age:.0f} s"])


async def _judge_ingress(system: System, partition: int, reads: Sequence[Read], expected: Expected) -> None:
    """I1: each was moved on under its derived id, or is a dead letter."""
    letters = await _letters(system, INGRESS, partition, reads)
    moved: dict[str, str] = {}
    for read in reads:
        place = f"{INGRESS}/{partition}@{read.offset}"
        if read.offset in letters:
            continue
        if read.envelope is None:
            system.report.add("I12", [f"{place} is malformed, was taken, and is no dead letter"])
            continue
        tenant = read.envelope.tenant_id or "public"
        moved[derive(natural_id(tenant, "command"), read.envelope.id)] = place
    settled = await known(system.database, _SETTLED, moved)
    expected.moved.update({id: place for id, place in moved.items() if id not in settled})


async def _judge_commands(system: System, partition: int, reads: Sequence[Read], expected: Expected) -> None:
    """I1, I5: what was taken left its outcome, its inbox row or a dead letter; I6: and has a cause."""
    letters = await _letters(system, COMMANDS, partition, reads)
    since = system.now - KEPT_SECONDS
    keys = sorted({(r.envelope.id, r.envelope.redrive) for r in reads if r.envelope and _inboxed(r.envelope)})
    rows = await system.database.fetch(_INBOX, [id for id, _ in keys], [redrive for _, redrive in keys])
    inbox = {(str(row[0]), row[1]) for row in rows}
    settled = await known(system.database, _SETTLED, [r.envelope.id for r in reads if r.envelope])
    await check_commands(system, partition, [(read.offset, read.envelope) for read in reads if read.envelope])
    for read in reads:
        place, envelope = f"{COMMANDS}/{partition}@{read.offset}", read.envelope
        if read.offset in letters:
            continue
        if envelope is None:
            system.report.add("I12", [f"{place} is malformed, was taken, and is no dead letter"])
        elif envelope.fingerprint:
            if envelope.id not in settled:
                system.report.add("I1", [f"command {envelope.id} ({envelope.type}) at {place} has no outcome"])
        elif _inboxed(envelope) and (envelope.id, envelope.redrive) not in inbox and read.timestamp > since:
            system.report.add("I5", [f"command {envelope.id} ({envelope.type}) at {place} left no inbox row"])
        if envelope is not None and not envelope.fingerprint:
            named = envelope.subject, f"{envelope.id} ({envelope.type}) at {place}"
            expected.caused.setdefault(envelope.causation_id, named)
    if len(expected.caused) > 10_000:
        await _uncaused(system, expected)


def _inboxed(envelope: Envelope) -> bool:
    kind = registry.COMMANDS.get(envelope.type)
    return kind is not None and not envelope.fingerprint and not kind.compare_and_set


async def _letters(system: System, topic: str, partition: int, reads: Sequence[Read]) -> set[int]:
    rows = await system.database.fetch(_LETTERS, topic, partition, [read.offset for read in reads])
    return {row[0] for row in rows}


async def _uncaused(system: System, expected: Expected) -> None:
    """I6: an internal command names as its cause a message that was handled, or the step it answers for.

    What retention has removed has taken its steps along.
    """
    caused, expected.caused = expected.caused, {}
    left = set(caused)
    for sql in (_INBOX_IDS, _SETTLED, _NODE_RUNS, _LETTER_IDS, _CAUSING):
        left -= await known(system.fresh, sql, left)
    gone = await removed(system.fresh, {caused[cause][0] for cause in left})
    for cause in sorted(cause for cause in left if caused[cause][0] not in gone):
        system.report.add("I6", [f"command {caused[cause][1]} names cause {cause or 'none'}, which was not handled"])


async def _await(system: System, expected: Expected) -> None:
    """Give what is recorded but not acknowledged the time to arrive, then report what has not."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + system.patience_seconds
    begins = {topic: dict(system.extents[topic]) for topic in (COMMANDS, DEAD_LETTERS)}
    while (expected.outbox or expected.moved or expected.causes) and loop.time() < deadline:
        for topic, extents in begins.items():
            if not extents:
                continue
            for partition, now in (await system.reader.extents(topic)).items():
                begin = extents[partition].end
                extents[partition] = now
                async for records in system.reader.read(topic, partition, Extent(begin, now.end)):
                    for read in map(_decoded, records):
                        if read.envelope is not None:
                            expected.saw(topic, partition, read.envelope.id, read.envelope.redrive)
        await asyncio.sleep(0.25)
    add = system.report.add
    for (topic, partition, id, _), (lane, position) in expected.outbox.items():
        if topic in begins and partition in begins[topic] and begins[topic][partition].hidden:
            continue  # Behind an open transaction; so may be the next ones.
        add("I6", [f"outbox row {lane}/{position} ({id} for {topic}/{partition}) never reached its topic"])
    if any(extent.hidden for extent in begins[COMMANDS].values()):
        system.report.notes.append(f"not checked: what an open transaction hides on {COMMANDS}")
        return
    for id, place in expected.moved.items():
        add("I1", [f"{place} was taken and command {id} is nowhere"])
    gone = {id for id, (lane, at) in expected.causes.items() if at < expected.since.get(lane, math.inf)}
    if gone:
        system.report.notes.append(f"not checked: {len(gone)} causes from before topic {COMMANDS} begins")
    for id in sorted(expected.causes.keys() - gone):
        add("I5", [f"events name cause {id}, which left no inbox row, outcome or record"])


async def _check_letters(system: System, expected: Expected) -> None:
    """I12: every dead letter has a reason and its record, and every record its row."""
    there: set[str] = set()
    since: float | None = None
    for partition, extent in system.extents[DEAD_LETTERS].items():
        async for records in system.records(DEAD_LETTERS, partition):
            found = {}
            for record in records:
                read = _decoded(record)
                if extent.begin:
                    since = min(since if since is not None else read.timestamp, read.timestamp)
                place = f"{DEAD_LETTERS}/{partition}@{record.offset}"
                if read.envelope is None or not header(record.headers, "x-code"):
                    system.report.add("I12", [f"{place} has no envelope or no reason"])
                    continue
                expected.saw(DEAD_LETTERS, partition, read.envelope.id, read.envelope.redrive)
                found[read.envelope.id] = place
            for id in sorted(set(found) - await known(system.fresh, _LETTER_BY_ID, found)):
                system.report.add("I6", [f"{found[id]}: dead letter {id} is on the topic and not in the table"])
            there |= set(found)
    if not system.extents[DEAD_LETTERS] or system.hides(DEAD_LETTERS):
        return
    waiting = {id for topic, _, id, _ in expected.outbox if topic == DEAD_LETTERS}
    async for row in system.stream(_LETTER_ROWS):
        id = str(row["id"])
        system.report.checked["dead letters"] += 1
        if not row["code"]:
            system.report.add("I12", [f"dead letter {id} has no reason"])
        if id not in there and id not in waiting and not (since is not None and row["at"] < since):
            system.report.add("I12", [f"dead letter {id} is in the table and not on the topic"])
