"""The kernel: a batch of records becomes one transaction over the lanes it touches; what it made is sent after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import orjson

from bus.dead_letters import letter_of, text
from bus.decider import Domain, Key, Meta, Missing, React, Recorded
from bus.lanes import Lane
from bus.plan import Accepted, Partitions, Plan, event_record
from bus.rows import View
from bus.store import (
    Advance,
    Fenced,
    Incoming,
    Log,
    Out,
    Outcome,
    Poison,
    SendFailed,
    Store,
    Unavailable,
    Unknown,
    Writes,
)
from infra.db import TableSpec
from schemas import registry
from schemas.envelope import Envelope, Malformed, decode_headers
from schemas.messages import SCHEMA_VERSION, UUID_PATTERN, Command, Event, Rejected, derive
from schemas.topics import (
    COMMANDS,
    MESSAGE_BYTES_MAX,
    partition_of,
)

log = logging.getLogger("agent_platform.kernel")


class Clock(Protocol):
    def now(self) -> float:
        """Database time as far as this process knows it, seconds since 1970."""


class Steps(Protocol):
    """Who executes steps in this process."""

    def lease(self, row: Any, at: float) -> Any | None:
        """The claimable row leased to this process, or None if there is no room for it."""

    def start(self, row: Any, lane: Lane) -> None:
        """Execute a leased step whose lease is committed."""

    def give_back(self, row: Any) -> None:
        """A leased step whose lease was not committed."""


class Ingress(Protocol):
    """Who may publish to `ingress`, and what becomes of a record there."""

    def __call__(self, envelope: Envelope, body: bytes) -> tuple[Envelope, Command]:
        """The command to move on. Raises Malformed with the reason of refusal."""


@dataclass(frozen=True, slots=True)
class Limits:
    decide_records_max: int = 300
    rows_max: int = 4_096
    aggregates_max: int = 400
    facts_max: int = 256
    dead_ratio: float = 0.01
    dead_window_records: int = 1_000
    record_age_seconds_max: float = 7 * 86_400
    retry_seconds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Defences:
    """Switches for tests only: each turns one defence off, to show that its test notices."""

    inbox: bool = True
    fence: bool = True
    drain: bool = True
    lease_token: bool = True
    order: bool = True
    dead_letters: bool = True


class Kernel:
    """Owns lanes and handles their records. Calls of `handle` may overlap if they share no lane; nothing else may.

    `claimable` maps a row type to the test whether such a row is a step to be claimed now.
    """

    def __init__(
        self,
        store: Store,
        out: Log,
        domains: Sequence[Domain],
        specs: Iterable[TableSpec],
        *,
        partitions: Partitions,
        clock: Clock,
        owner: str,
        steps: Steps | None = None,
        claimable: Mapping[type[Any], Callable[[Any], bool]] | None = None,
        hint: Callable[[Any], Out | None] | None = None,
        ingress: Ingress | None = None,
        limits: Limits | None = None,
        defences: Defences | None = None,
        immutable_facts: frozenset[type[Any]] = frozenset(),
    ) -> None:
        self.store = store
        self.log = out
        self.owner = owner
        self.lanes: dict[int, Lane] = {}
        self.limits = limits or Limits()
        self._domains = {command: domain for domain in domains for command in domain.decide}
        self._specs = {spec.row: spec for spec in specs}
        reactions: dict[type[Event], tuple[React, ...]] = {}
        for domain in domains:
            for event, found in domain.react.items():
                reactions[event] = (*reactions.get(event, ()), *found)
        self._reactions = reactions
        self._partitions = partitions
        self._clock = clock
        self._steps = steps
        self._claimable = claimable or {}
        self._hint = hint
        self._ingress = ingress
        self._defences = defences or Defences()
        self._immutable = immutable_facts
        self._facts: dict[Key, Any] = {}
        self._rows_per: dict[str, float] = {}
        self._rows_most = 1.0

    # --- lanes -----------------------------------------------------------------------------------------------

    async def claim(self, lane_ids: Sequence[int]) -> list[Lane]:
        """Own these lanes under a new epoch; what their former owner left unsent is sent before this returns.

        Raises Unavailable, Unknown or SendFailed; then none of them is owned.
        """
        for id in lane_ids:
            self.release(id)
        if not lane_ids:
            return []
        claimed = await self.store.claim(lane_ids, self.owner)
        lanes = [Lane(each, self.limits.aggregates_max) for each in claimed]
        if self._defences.drain:
            for lane in lanes:
                await self.drain(lane)
        for lane in lanes:
            self.lanes[lane.id] = lane
        return lanes

    def release(self, lane_id: int) -> None:
        """Forget a lane: another owner may have it. What it sends from now on is only a late duplicate."""
        lane = self.lanes.pop(lane_id, None)
        if lane is not None:
            lane.lost = True

    async def drain(self, lane: Lane) -> None:
        """Send what the lane made and nobody acknowledged, in order. Raises SendFailed."""
        events, outs = await self.store.unsent(lane.id, lane.sent)
        records = [event_record(logged, self._partitions) for logged in events] + list(outs)
        records.sort(key=lambda record: record.position)
        if records:
            await self.log.publish(records)
            lane.sent = max(lane.sent, records[-1].position)
        lane.forget_sending()

    # --- one batch -------------------------------------------------------------------------------------------

    async def handle(self, records: Sequence[Incoming]) -> None:
        """Handle a batch in order; returns when it is committed, with its sends under way.

        A lane that is lost, stopped or in doubt is released: its records are dropped and come again from its
        next offset. Raises Unavailable when the store did not take the batch after several tries.
        """
        batch = self._mine(records)
        try:
            for chunk in self._chunks(batch):
                await self._handle(chunk)
        except BaseException as error:
            # What was taken in and not handled must come again: never go on behind it.
            self._give_up({record.lane for record in batch}, f"{type(error).__name__}: {error}")
            raise

    def _chunks(self, batch: list[Incoming]) -> Iterable[list[Incoming]]:
        """Split a batch so that each part writes about `rows_max` rows at most, by what such commands wrote lately."""
        if len(batch) * self._rows_most <= self.limits.rows_max:
            yield batch
            return
        start, rows = 0, 0.0
        for index, record in enumerate(batch):
            rows += self._rows_per.get(_type_of(record), 1.0)
            if rows > self.limits.rows_max and index > start:
                yield batch[start:index]
                start, rows = index, 0.0
        if start < len(batch):
            yield batch[start:]

    def _learn(self, type: str, rows: int) -> None:
        known = self._rows_per.get(type, 1.0)
        self._rows_per[type] = learned = max(known * 0.9 + rows * 0.1, 1.0) if rows < known else float(rows)
        if learned != known:
            self._rows_most = max(self._rows_per.values())

    async def _handle(self, batch: list[Incoming]) -> None:
        for pause in (*self.limits.retry_seconds, None):
            batch = [record for record in batch if record.lane in self.lanes]
            if not batch:
                return
            try:
                await self._transact(batch)
                return
            except Fenced as fenced:
                self._give_up(fenced.lanes, "fenced")
            except Unknown as unknown:
                self._give_up({record.lane for record in batch}, f"unknown end of a transaction: {unknown}")
            except Poison as poison:
                log.warning("a batch of %d holds poison: %s", len(batch), poison)
                await self._bisect(batch)
                return
            except Unavailable as error:
                if pause is None:
                    raise
                log.warning("the store is not available, trying again: %s", error)
                await asyncio.sleep(pause)
        self._give_up({record.lane for record in batch}, "too many tries")

    def _mine(self, records: Sequence[Incoming]) -> list[Incoming]:
        """Those records that their lanes expect next; others are late, or come again."""
        batch = []
        for record in records:
            lane = self.lanes.get(record.lane)
            if lane is None or not lane.usable:
                continue
            if record.offset >= 0 and not lane.takes(record.offset, record.follows):
                continue
            batch.append(record)
        return batch

    def _give_up(self, lanes: Iterable[int], why: str) -> None:
        for id in lanes:
            if id in self.lanes:
                log.info("lane %d is released: %s", id, why)
                self.release(id)

    async def _bisect(self, batch: list[Incoming]) -> None:
        """Find the records Postgres refuses; one that fails alone, twice, is a dead letter."""
        if len(batch) == 1:
            await self._part(batch, (None, None, "poison"))
            return
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            await self._part(part, (None,))

    async def _part(self, part: list[Incoming], tries: Sequence[str | None]) -> None:
        """One part of a bisected batch, without patience: what is not handled is given up with its lanes."""
        refused = ""
        for poison in tries:
            part = [record for record in part if record.lane in self.lanes]
            try:
                await self._transact(part, poison and f"{poison}: {refused}")
                return
            except Poison as again:
                refused = str(again)
            except (Fenced, Unknown, Unavailable) as error:
                self._give_up({record.lane for record in part}, str(error))
                return
        if len(tries) == 1:
            await self._bisect(part)
            return
        for record in part:
            self._stop(self.lanes[record.lane], f"offset {record.offset} cannot even be a dead letter: {refused}")

    async def _transact(self, batch: list[Incoming], poison: str | None = None) -> None:
        """Handle a batch in one transaction: at once if memory suffices and nothing is a repeat, else step by step."""
        if poison is None:
            plan = self._plan(batch, None)
            plan.optimistic = self._defences.inbox
            try:
                if await self._at_once(plan, batch):
                    self._committed(plan)
                    return
            except Poison as refused:
                self._undo(plan)
                if not plan.writes.inbox and not plan.writes.new_outcomes:
                    raise
                log.debug("handled step by step, since something is there already: %s", refused)
            except BaseException:
                self._undo(plan)
                raise
            else:
                self._undo(plan)
        plan = self._plan(batch, poison)
        try:
            await self._step_by_step(plan, batch)
        except BaseException:
            self._undo(plan)
            raise
        self._committed(plan)

    def _plan(self, batch: list[Incoming], poison: str | None) -> Plan:
        plan = Plan(self._partitions, self._specs, self._reactions, self._clock.now())
        plan.facts = dict(self._facts)
        plan.poison = poison
        # Held here: a lane may be released at any await; its fence then decides whether this is written.
        plan.lanes = {id: self.lanes[id] for id in {record.lane for record in batch} if id in self.lanes}
        return plan

    def _undo(self, plan: Plan) -> None:
        for row, _ in plan.started:
            cast(Steps, self._steps).give_back(row)
        for lane_id, aggregate_id in plan.touched:
            plan.lanes[lane_id].forget(aggregate_id)

    async def _at_once(self, plan: Plan, batch: list[Incoming]) -> bool:
        """One statement: decide from memory, taking what is not a repeat and does not exist for granted.

        False if memory does not suffice. The inbox, the outcomes and the primary keys refuse what was taken for
        granted wrongly: then Poison is raised and nothing is written.
        """
        accepted = self._accept(plan, batch)
        keys = [(each.envelope.id, each.envelope.redrive) for each in accepted if self._must_admit(each)]
        if len(set(keys)) < len(keys) or any(redrive for _, redrive in keys):
            return False
        if keys and not plan.optimistic:
            return False
        try:
            for each in accepted:
                self._decide(plan, each)
        except Missing:
            return False
        plan.writes.inbox = [
            (each.envelope.id, 0, plan.at) for each in accepted if self._must_admit(each) and not each.external
        ]
        if plan.made:
            self._finish(plan)
            await self.store.write(plan.writes)
        return True

    async def _step_by_step(self, plan: Plan, batch: list[Incoming]) -> None:
        """Lock the lanes, drop repeats, load what decisions lack, decide again, save."""
        pending = self._accept(plan, batch)
        admitting = [each for each in pending if self._must_admit(each)]
        if not pending and not plan.made:
            return
        async with self.store.unit() as unit:
            await unit.lock([_standing(lane) for lane in plan.lanes.values()])
            if admitting:
                pending = await self._admit(plan, unit, pending, admitting)
            while pending:
                pending, missing = self._fold(plan, pending)
                if missing:
                    await self._load(plan, unit, missing)
            self._finish(plan)
            await unit.save(plan.writes)

    # --- decoding --------------------------------------------------------------------------------------------

    def _accept(self, plan: Plan, batch: Sequence[Incoming]) -> list[Accepted]:
        """The commands of a batch; what is not one becomes a dead letter, or stops its lane."""
        accepted = []
        for record in batch:
            lane = plan.lanes.get(record.lane)
            if lane is None or not lane.usable:
                continue
            if record.offset >= 0 and lane.handed and lane.was_handed(record.headers):
                plan.skip(lane, record.offset)
                continue
            if record.decoded is not None:
                lane.handed[record.decoded[0].id] = None
                envelope, command = record.decoded
                accepted.append(Accepted(lane, -1, command, envelope, record.key_text, record))
                plan.advance(lane, -1)
                continue
            try:
                envelope = decode_headers(record.headers)
                if plan.poison is not None and lane.ingress:
                    raise Malformed("poison", plan.poison)
                if len(record.body or b"") > MESSAGE_BYTES_MAX:
                    raise Malformed("message_too_large", f"a message is at most {MESSAGE_BYTES_MAX} bytes")
                if lane.ingress:
                    self._forward(plan, lane, record, envelope)
                else:
                    accepted.append(self._decode(lane, record, envelope))
            except Malformed as error:
                if error.code in ("unknown_type", "unknown_schema_version") and not lane.ingress:
                    self._stop(lane, f"{error} at offset {record.offset}; a newer release may know it")
                    continue
                self._bury(plan, lane, record, error.code, error.detail)
            plan.advance(lane, record.offset)
            plan.handled[lane.id] = plan.handled.get(lane.id, 0) + 1
        return accepted

    def _decode(self, lane: Lane, record: Incoming, envelope: Envelope) -> Accepted:
        if envelope.schema_version > SCHEMA_VERSION:
            raise Malformed("unknown_schema_version", f"schema version {envelope.schema_version} of {envelope.type}")
        if not UUID_PATTERN.match(envelope.id):
            raise Malformed("malformed_header", "ce_id of a command must be a lower-case uuid")
        if not envelope.tenant_id:
            raise Malformed("missing_header", "ce_tenantid is required")
        command = registry.decode_command(envelope.type, record.body, trusted=not envelope.fingerprint)
        aggregate_id = command.aggregate_id(envelope.tenant_id, envelope.id)
        if record.offset >= 0:
            if record.key != aggregate_id.encode():
                raise Malformed("misrouted", f"the key of {envelope.type} must be {aggregate_id}")
            known = aggregate_id in lane.aggregates  # Then it has been checked before.
            if not known and partition_of(aggregate_id, self._partitions.commands) != lane.id:
                raise Malformed("misrouted", f"{aggregate_id} does not belong to partition {lane.id}")
            age = self._clock.now() - record.timestamp if record.timestamp else 0.0
            if age > self.limits.record_age_seconds_max:
                raise Malformed("expired", f"the record is {age:.0f} s old")
        return Accepted(lane, record.offset, command, envelope, aggregate_id, record)

    def _forward(self, plan: Plan, lane: Lane, record: Incoming, envelope: Envelope) -> None:
        if self._ingress is None:
            raise Malformed("unauthenticated", "nothing is accepted on ingress here")
        envelope, command = self._ingress(envelope, record.body)
        key = command.aggregate_id(envelope.tenant_id, envelope.id)
        partition = partition_of(key, self._partitions.commands)
        plan.send(
            lane,
            Out(lane.id, 0, COMMANDS, partition, key, envelope.headers(), command.encode(), envelope.tenant_id),
        )

    def _stop(self, lane: Lane, reason: str) -> None:
        lane.stopped = reason
        log.error("lane %d stops: %s", lane.id, reason)

    def _bury(self, plan: Plan, lane: Lane, record: Incoming, code: str, detail: str) -> None:
        """A record is refused for good: a dead letter with its reason, a failed outcome, and its run is told."""
        letter = letter_of(record, lane.id, code, detail, plan.at)
        if self._defences.dead_letters:
            plan.bury(lane, letter)
        if not any(name == "ce_fingerprint" for name, _ in record.headers):
            plan.died[lane.id] = plan.died.get(lane.id, 0) + 1  # What strangers send says nothing about us.
        log.warning("dead letter %s/%d@%d: %s: %s", letter.topic, letter.partition, record.offset, code, detail[:200])

    def _count(self, plan: Plan) -> None:
        """A lane of commands on which too many records die has met something that needs a person."""
        for lane_id, handled in plan.handled.items():
            plan.lanes[lane_id].handled += handled
        for lane_id, died in plan.died.items():
            lane = plan.lanes[lane_id]
            lane.died += died
            enough = lane.handled >= self.limits.dead_window_records
            if not lane.ingress and enough and lane.died > self.limits.dead_ratio * lane.handled:
                self._stop(lane, f"{lane.died} of {lane.handled} records died")

    # --- deciding --------------------------------------------------------------------------------------------

    def _must_admit(self, accepted: Accepted) -> bool:
        return accepted.external or not accepted.command.compare_and_set

    async def _admit(self, plan: Plan, unit: Any, pending: list[Accepted], admitting: list[Accepted]) -> list[Accepted]:
        """Drop what was handled before; who sent it from outside is told the stored outcome again."""
        at = self._clock.now()
        outcomes = [
            Outcome(
                e.envelope.id,
                e.envelope.tenant_id,
                e.envelope.type,
                e.envelope.fingerprint,
                "pending",
                b"",
                at,
            )
            for e in _first(admitting, external=True)
        ]
        # A re-driven command from outside has an outcome already: the inbox tells the repeats of the re-drive.
        redriven = [e for e in _first(admitting, external=True) if e.envelope.redrive]
        first = [*_first(admitting, external=False), *redriven]
        inbox = [(e.envelope.id, e.envelope.redrive, at) for e in first]
        admitted = await unit.admit(inbox, outcomes)
        if not self._defences.inbox:
            return pending
        seen: dict[tuple[str, int], Accepted] = {}
        fresh = []
        for each in pending:
            key = (each.envelope.id, each.envelope.redrive)
            stored = admitted.outcomes.get(each.envelope.id) if each.external else None
            repeat = key in admitted.repeats
            if self._must_admit(each) and key in seen:
                continue  # The same record twice in this batch: the first one answers.
            if stored is not None and (repeat or not each.envelope.redrive or stored.status != "failed"):
                self._answer_again(plan, each, stored)
            elif not repeat:
                seen[key] = each
                fresh.append(each)
        return fresh

    def _answer_again(self, plan: Plan, accepted: Accepted, stored: Outcome) -> None:
        if stored.fingerprint == accepted.envelope.fingerprint:
            plan.reply(accepted, stored.status, stored.body)
            return
        refusal = Rejected("idempotency_key_reused", "this key was used for another request", status=422)
        plan.reply(accepted, "rejected", orjson.dumps(refusal.problem()))

    def _fold(self, plan: Plan, pending: list[Accepted]) -> tuple[list[Accepted], list[tuple[Accepted, Missing]]]:
        """Decide in order. What lacks rows waits, and everything after it of the same aggregate."""
        waiting: list[Accepted] = []
        missing: list[tuple[Accepted, Missing]] = []
        blocked: set[str] = set()
        for accepted in pending:
            if accepted.aggregate_id in blocked:
                waiting.append(accepted)
                continue
            try:
                self._decide(plan, accepted)
            except Missing as lack:
                blocked.add(accepted.aggregate_id)
                waiting.append(accepted)
                missing.append((accepted, lack))
        return waiting, missing

    def _decide(self, plan: Plan, accepted: Accepted) -> None:
        envelope, command = accepted.envelope, accepted.command
        domain = self._domains[type(command)]
        meta = Meta(
            envelope.id,
            envelope.tenant_id,
            accepted.aggregate_id,
            plan.at,
            envelope.actor,
            envelope.correlation_id,
            envelope.traceparent,
            accepted.lane.id,
        )
        aggregate = accepted.lane.aggregate(accepted.aggregate_id)
        if plan.optimistic and command.creates and not aggregate.rows:
            aggregate.whole = True  # Taken for granted: its first row is inserted, or refused.
            plan.touched.add((accepted.lane.id, accepted.aggregate_id))
        view = View(aggregate, plan.facts, self._specs, plan.held, self.owner)
        if plan.poison is not None:
            self._defect(plan, accepted, domain, meta, "poison", plan.poison)
            return
        before = plan.rows_made
        try:
            plan.decide(accepted, domain, meta, view)
            self._learn(command.type, plan.rows_made - before)
        except Missing:
            raise
        except Rejected as refusal:
            if accepted.external:
                plan.settle(accepted, "rejected", orjson.dumps(refusal.problem()), meta.at)
            else:
                log.info("%s was refused: %s", command.type, refusal)
        except Exception as defect:
            log.exception("deciding %s failed", command.type)
            self._defect(plan, accepted, domain, meta, "internal_error", f"{type(defect).__name__}: {defect}")

    def _defect(self, plan: Plan, accepted: Accepted, domain: Domain, meta: Meta, code: str, detail: str) -> None:
        """A bug met this command, or Postgres refuses it: a dead letter, and nobody waits for it for ever."""
        record = accepted.incoming or Incoming(accepted.lane.id, -1, None, (), accepted.command.encode())
        self._bury(plan, accepted.lane, record, code, detail)
        if accepted.external:
            problem = Rejected("internal_error", "the command could not be handled", status=500).problem()
            plan.settle(accepted, "failed", orjson.dumps(problem), meta.at)
            return
        told = domain.failed(accepted.command, "internal_error", detail)
        if told is not None:
            message_id = derive(meta.message_id, f"failed:{told.type}:0")
            plan.send(accepted.lane, plan.command_record(accepted.lane, message_id, told, meta))

    async def _load(self, plan: Plan, unit: Any, missing: list[tuple[Accepted, Missing]]) -> None:
        """Read what the decisions lack: by table, all aggregates at once."""
        by_id: dict[type[Any], dict[str, Accepted]] = {}
        by_parent: dict[type[Any], dict[str, Accepted]] = {}
        facts: dict[type[Any], set[str]] = {}
        for accepted, lack in missing:
            for kind, id in lack.rows:
                if not id or self._specs[kind].whole:
                    by_parent.setdefault(kind, {})[accepted.aggregate_id] = accepted
                else:
                    by_id.setdefault(kind, {})[id] = accepted
            for kind, id in lack.facts:
                facts.setdefault(kind, set()).add(id)
        for kind, wanted in by_id.items():
            for id, row in _by_id(await unit.load(self._specs[kind], list(wanted)), wanted).items():
                self._keep(plan, wanted[id], kind, id, row)
        for kind, parents in by_parent.items():
            spec = self._specs[kind]
            for row in await unit.load_live(spec, list(parents)):
                self._keep(plan, parents[getattr(row, spec.parent)], kind, row.id, row)
            for id, accepted in parents.items():
                accepted.lane.aggregate(id).groups.add(kind)
        for kind, ids in facts.items():
            found = {row.id: row for row in await unit.load(self._specs[kind], list(ids))}
            for id in ids:
                plan.facts[kind, id] = found.get(id)
                if kind in self._immutable and found.get(id) is not None:
                    self._remember(kind, id, found[id])

    def _keep(self, plan: Plan, accepted: Accepted, kind: type[Any], id: str, row: Any) -> None:
        aggregate = accepted.lane.aggregate(accepted.aggregate_id)
        plan.touched.add((accepted.lane.id, accepted.aggregate_id))
        key = (kind, id)
        if row is not None and getattr(row, self._specs[kind].parent) != accepted.aggregate_id:
            # Named by a command for another aggregate (or tenant): as if it did not exist, and not held.
            aggregate.rows[key] = None
            return
        if key in plan.held and key in aggregate.rows:
            return  # Changed by this very batch: what is in memory is newer.
        aggregate.rows[key] = row
        plan.held.add(key)
        if row is None and kind is self._head(accepted):
            aggregate.whole = True

    def _head(self, accepted: Accepted) -> type[Any]:
        return self._domains[type(accepted.command)].head

    def _remember(self, kind: type[Any], id: str, row: Any) -> None:
        if len(self._facts) >= self.limits.facts_max:
            self._facts.pop(next(iter(self._facts)))
        self._facts[kind, id] = row

    # --- writing and sending ---------------------------------------------------------------------------------

    def _finish(self, plan: Plan) -> None:
        at = self._clock.now()
        for (kind, _), row in plan.rows:
            test = self._claimable.get(kind)
            if test is None or not test(row):
                continue
            lane = plan.lanes[row.lane]
            leased = self._steps.lease(row, at) if self._steps else None
            if leased is not None:
                plan.replace(lane, getattr(row, self._specs[kind].parent), leased)
                plan.started.append((leased, lane))
            elif self._hint is not None:
                hint = self._hint(row)
                if hint is not None:
                    plan.hints.append(hint)
        plan.finish()

    def _committed(self, plan: Plan) -> None:
        self._count(plan)
        if not plan.writes.advances:
            return
        plan.committed()
        lanes = {made.lane.id: made.lane for made in plan.made.values()}
        # Behind a send that failed nothing may go out: it would overtake what the drain sends first.
        sending = {id: lane for id, lane in lanes.items() if lane.settle() or not self._defences.order}
        sends = [out for out in plan.sends if out.lane in sending]
        if sends:
            future = self.log.enqueue(sends, urgent=bool(plan.writes.outbox or plan.finished))
            future.add_done_callback(_retrieved)
            for lane in sending.values():
                lane.sending(lane.position, future)
        if plan.replies or plan.hints:
            best_effort = self.log.enqueue([*plan.replies, *plan.hints])
            best_effort.add_done_callback(_retrieved)
        if self._steps:
            for row, lane in plan.started:
                self._steps.start(row, lane)
        for lane, aggregate_id in plan.finished:
            lane.forget(aggregate_id)
        for made in plan.made.values():
            made.lane.shrink()

    async def fire_timers(self) -> None:
        """Move the due timers of our lanes to their outbox and send them. Raises as `handle` does."""
        lanes = {id: lane for id, lane in self.lanes.items() if lane.usable and not lane.ingress}
        due = await self.store.due_lanes(list(lanes))
        if not due:
            return
        plan = Plan(self._partitions, self._specs, self._reactions, self._clock.now())
        try:
            async with self.store.unit() as unit:
                await unit.lock([_standing(lanes[id]) for id in due])
                for out in await unit.due_timers(due):
                    plan.send(lanes[out.lane], out)
                if plan.made:
                    self._finish(plan)
                    await unit.save(plan.writes)
        except Fenced as fenced:
            self._give_up(fenced.lanes, "fenced")
        except Unknown as unknown:
            self._give_up(due, str(unknown))
        else:
            self._committed(plan)

    async def trim(self) -> None:
        """Store how far idle lanes are: their next transaction may be long in coming. Raises Unavailable.

        A lane is idle if it made nothing since the former call.
        """
        idle = []
        for lane in self.lanes.values():
            behind = lane.sent > lane.trimmed or lane.dealt > lane.next_offset
            if lane.usable and lane.settle() and behind and lane.position == lane.position_swept:
                idle.append(lane)
            lane.position_swept = lane.position
        if not idle:
            return
        advances = [_standing(lane) for lane in idle]
        try:
            await self.store.write(Writes(advances=advances, trim=True))
        except Fenced as fenced:
            self._give_up(fenced.lanes, "fenced")
        except Unknown as unknown:
            self._give_up([lane.id for lane in idle], str(unknown))
        else:
            for lane, advance in zip(idle, advances, strict=True):
                lane.trimmed = advance.sent
                lane.next_offset = advance.next

    async def settle(self) -> None:
        """Wait for what is being sent, and drain the lanes whose sends failed. Raises SendFailed if that fails too."""
        for lane in list(self.lanes.values()):
            if not lane.settle():
                await self.drain(lane)

    @property
    def failed_lanes(self) -> list[Lane]:
        """Lanes with a failed send: they must be drained before they go on."""
        return [lane for lane in self.lanes.values() if not lane.settle()]


def _standing(lane: Lane) -> Advance:
    return Advance(lane.id, lane.epoch, lane.next_offset, lane.dealt, lane.position, lane.sent)


def _type_of(record: Incoming) -> str:
    if record.decoded is not None:
        return record.decoded[1].type
    return text(next((value for name, value in record.headers if name == "ce_type"), b""))[:64]


def _by_id(rows: list[Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(wanted)
    found.update((row.id, row) for row in rows)
    return found


def _first(admitting: Sequence[Accepted], *, external: bool) -> list[Accepted]:
    """One record per id: the same id twice in one statement is an error in Postgres."""
    return list(
        {(e.envelope.id, e.envelope.redrive): e for e in reversed(admitting) if e.external is external}.values()
    )


def _retrieved(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        log.warning("a send failed: %s", future.exception())


__all__ = ["Clock", "Defences", "Ingress", "Kernel", "Limits", "Recorded", "SendFailed", "Steps"]
