"""The kernel: a batch of records becomes one transaction over the lanes it touches; what it made is sent after."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, cast

from bus.admission import admit, must_admit
from bus.batch import Batch, Partitions, event_record
from bus.costs import Costs
from bus.domains import Domains
from bus.lanes import Lane
from bus.limits import Clock, Defences, Limits
from bus.loading import Loader
from bus.reception import Ingress, Reception, stop
from bus.store import (
    Advance,
    Fenced,
    Incoming,
    Log,
    Out,
    Poison,
    Store,
    Unavailable,
    Unknown,
    Writes,
)
from bus.telemetry import INGRESS_TYPE, SILENT, BatchReport, Telemetry
from infra.db import TableSpec
from schemas.decider import Domain, Missing

log = logging.getLogger("agent_platform.kernel")

CROWD = 16
"""A batch of so many commands is worth a round of sending of its own."""
PATIENCE_SECONDS = 0.008
"""A request to Kafka costs far more than a record: what nobody waits for waits so long for company."""


class Steps(Protocol):
    """Who executes steps in this process."""

    def lease(self, row: Any, at: float, *, new: bool) -> Any | None:
        """The claimable row leased to this process, or None if there is no room for it.

        A `new` one need not be listed for the sweepers of leases: the kernel has it listed if it lasts.
        """

    def prepare(self, row: Any, lane: Lane) -> Any:
        """What `start` takes for a leased row: whatever can be done before its lease is committed."""

    def start(self, prepared: Any) -> None:
        """Execute a step whose lease is committed."""

    def give_back(self, row: Any) -> None:
        """A leased step whose lease was not committed."""

    async def list_leased(self, ids: Sequence[str]) -> None:
        """List those of these steps that are leased. Raises Unavailable."""

    async def list_made(self, floors: Mapping[int, int]) -> None:
        """The same for all that these lanes made behind these positions. Raises Unavailable."""


class Kernel:
    """Owns lanes and handles their records. One call of `handle` or of a duty runs at a time.

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
        telemetry: Telemetry = SILENT,
    ) -> None:
        self.store = store
        self.log = out
        self.owner = owner
        self.lanes: dict[int, Lane] = {}
        self.limits = limits or Limits()
        self._specs = {spec.row: spec for spec in specs}
        self._partitions = partitions
        self._clock = clock
        self._steps = steps
        self._claimable = claimable or {}
        self._hint = hint
        self._defences = defences or Defences()
        self._reception = Reception(partitions, clock, self.limits, self._defences, ingress)
        self._costs = Costs()
        self._domains = Domains(domains, self._specs, self._reception, self._costs, owner)
        self._loader = Loader(
            self._specs, self._domains.heads, self._domains.ended, immutable_facts, self.limits.facts_max
        )
        self._telemetry = telemetry

    # --- lanes -----------------------------------------------------------------------------------------------

    async def claim(self, lane_ids: Sequence[int]) -> list[Lane]:
        """Own these lanes under a new epoch; what their former owner left unsent is sent before this returns.

        Raises Unavailable, Unknown or SendFailed; then none of them is owned.
        """
        for id in lane_ids:
            self.release(id)
        if not lane_ids:
            return []
        began = time.perf_counter()
        claimed = await self.store.claim(lane_ids, self.owner)
        lanes = [Lane(each, self.limits.aggregates_max) for each in claimed]
        if self._steps:
            if self._defences.left_leases:
                await self._steps.list_made({each.lane: each.floor for each in claimed})
            for lane in lanes:
                lane.all_listed()
        if self._defences.drain:
            for lane in lanes:
                await self.drain(lane)
        for lane in lanes:
            self.lanes[lane.id] = lane
        self._telemetry.claimed(len(lanes), time.perf_counter() - began)
        return lanes

    def release(self, lane_id: int) -> None:
        """Forget a lane: another owner may have it. What it sends from now on is only a late duplicate."""
        lane = self.lanes.pop(lane_id, None)
        if lane is not None:
            lane.lost = True

    async def drain(self, lane: Lane) -> None:
        """Send what the lane made and nobody acknowledged, in order. Raises SendFailed."""
        position = lane.position
        events, outs = await self.store.unsent(lane.id, lane.sent)
        records = [event_record(logged, self._partitions) for logged in events] + list(outs)
        records.sort(key=lambda record: record.position)
        if records:
            await self.log.publish(records)
        lane.sent = max(lane.sent, position)  # Also if the last of it was an outbox row that is trimmed already.
        lane.forget_sending()

    # --- one batch -------------------------------------------------------------------------------------------

    async def handle(self, records: Sequence[Incoming]) -> None:
        """Handle a batch in order; returns when it is committed, with its sends under way.

        A lane that is lost, stopped or in doubt is released: its records are dropped and come again from its
        next offset. Raises Unavailable when the store did not take the batch after several tries.
        """
        records = self._mine(records)
        try:
            for chunk in self._costs.split(records, self.limits.rows_max):
                await self._handle(chunk)
        except BaseException as error:
            # What was taken in and not handled must come again: never go on behind it.
            self._give_up({record.lane for record in records}, f"{type(error).__name__}: {error}")
            raise

    async def _handle(self, records: list[Incoming]) -> None:
        for pause in (*self.limits.retry_seconds, None):
            records = [record for record in records if record.lane in self.lanes]
            if not records:
                return
            try:
                await self._transact(records)
                return
            except Fenced as fenced:
                self._lose(fenced)
            except Unknown as unknown:
                self._give_up({record.lane for record in records}, f"unknown end of a transaction: {unknown}")
            except Poison as poison:
                log.warning("a batch of %d holds poison: %s", len(records), poison)
                await self._bisect(records)
                return
            except Unavailable as error:
                if pause is None:
                    raise
                log.warning("the store is not available, trying again: %s", error)
                await asyncio.sleep(pause)
        self._give_up({record.lane for record in records}, "too many tries")

    def _mine(self, records: Sequence[Incoming]) -> list[Incoming]:
        """Those records that their lanes expect next; others are late, or come again."""
        mine = []
        for record in records:
            lane = self.lanes.get(record.lane)
            if lane is None or not lane.usable:
                continue
            if record.offset >= 0 and not lane.takes(record.offset, record.follows):
                continue
            mine.append(record)
        return mine

    def _give_up(self, lanes: Iterable[int], why: str) -> None:
        for id in lanes:
            if id in self.lanes:
                log.info("lane %d is released: %s", id, why)
                self.release(id)

    def _lose(self, fenced: Fenced) -> None:
        self._telemetry.fenced(len(fenced.lanes))
        self._give_up(fenced.lanes, "fenced")

    async def _bisect(self, records: list[Incoming]) -> None:
        """Find the records Postgres refuses; one that fails alone, twice, is a dead letter."""
        if len(records) == 1:
            await self._part(records, (None, None, "poison"))
            return
        half = len(records) // 2
        for part in (records[:half], records[half:]):
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
            stop(self.lanes[record.lane], f"offset {record.offset} cannot even be a dead letter: {refused}")

    async def _transact(self, records: list[Incoming], poison: str | None = None) -> None:
        """Handle a batch in one transaction: at once if memory suffices and nothing is a repeat, else step by step."""
        if poison is None:
            batch = self._new_batch(records, None)
            batch.optimistic = self._defences.inbox
            try:
                if await self._at_once(batch, records):
                    self._committed(batch)
                    self._tell(batch, at_once=True)
                    return
            except Poison as refused:
                self._undo(batch)
                if not batch.writes.inbox and not batch.writes.new_outcomes:
                    raise
                log.debug("handled step by step, since something is there already: %s", refused)
            except BaseException:
                self._undo(batch)
                raise
            else:
                self._undo(batch)
        batch = self._new_batch(records, poison)
        try:
            await self._step_by_step(batch, records)
        except BaseException:
            self._undo(batch)
            raise
        self._committed(batch)
        self._tell(batch, at_once=False)

    def _new_batch(self, records: list[Incoming], poison: str | None) -> Batch:
        batch = Batch(self._partitions, self._specs, self._domains.reactions, self._clock.now())
        batch.facts = dict(self._loader.facts)
        batch.poison = poison
        # Held here: a lane may be released at any await; its fence then decides whether this is written.
        batch.lanes = {id: self.lanes[id] for id in {record.lane for record in records} if id in self.lanes}
        return batch

    def _undo(self, batch: Batch) -> None:
        for row, _ in batch.started:
            cast(Steps, self._steps).give_back(row)
        for lane_id, aggregate_id in batch.touched:
            batch.lanes[lane_id].forget(aggregate_id)

    async def _at_once(self, batch: Batch, records: list[Incoming]) -> bool:
        """One statement: decide from memory, taking what is not a repeat and does not exist for granted.

        False if memory does not suffice. The inbox, the outcomes and the primary keys refuse what was taken for
        granted wrongly: then Poison is raised and nothing is written.
        """
        accepted = self._reception.accept(batch, records)
        keys = [(each.envelope.id, each.envelope.redrive) for each in accepted if must_admit(each)]
        if len(set(keys)) < len(keys) or any(redrive for _, redrive in keys):
            return False
        if keys and not batch.optimistic:
            return False
        try:
            for each in accepted:
                self._domains.decide(batch, each)
        except Missing:
            return False
        batch.writes.inbox = [
            (each.envelope.id, 0, batch.at) for each in accepted if must_admit(each) and not each.external
        ]
        batch.accepted = accepted
        if batch.made:
            self._finish(batch)
            batch.decided = time.perf_counter()
            await self._write(batch)
        return True

    async def _write(self, batch: Batch) -> None:
        """Write a batch; what follows its commit is made ready while Postgres works."""
        writing = asyncio.ensure_future(self.store.write(batch.writes))
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # The statement is made in the first turn of the loop, and sent at its end.
            self._prepare(batch)
            await writing
        finally:
            if not writing.done():
                writing.cancel()
                await asyncio.wait({writing})

    async def _step_by_step(self, batch: Batch, records: list[Incoming]) -> None:
        """Lock the lanes, drop repeats, load what decisions lack, decide again, save."""
        pending = self._reception.accept(batch, records)
        if not pending and not batch.made:
            return
        async with self.store.unit() as unit:
            await unit.lock([_standing(lane) for lane in batch.lanes.values()])
            pending = await admit(batch, unit, pending, self._clock.now(), inbox_on=self._defences.inbox)
            batch.accepted = pending
            while pending:
                pending, missing = self._domains.fold(batch, pending)
                if missing:
                    await self._loader.load(batch, unit, missing)
            self._finish(batch)
            batch.decided = time.perf_counter()
            await unit.save(batch.writes)
            self._prepare(batch)

    # --- writing and sending ---------------------------------------------------------------------------------

    def _finish(self, batch: Batch) -> None:
        at = self._clock.now()
        for key, row in batch.rows:
            kind, id = key
            test = self._claimable.get(kind)
            if test is None or not test(row):
                continue
            lane = batch.lanes[row.lane]
            new = batch.is_new(key)
            leased = self._steps.lease(row, at, new=new) if self._steps else None
            if leased is not None:
                if new:
                    batch.unlisted.append((lane, id))
                batch.replace(lane, getattr(row, self._specs[kind].parent), leased)
                batch.started.append((leased, lane))
            elif self._hint is not None:
                hint = self._hint(row)
                if hint is not None:
                    batch.hints.append(hint)
        batch.finish()

    def _prepare(self, batch: Batch) -> None:
        """Make ready what is sent and started once the batch is committed."""
        batch.sends = batch.records()
        if _is_crowd(batch):
            batch.sends = self.log.encoded(batch.sends)
        if self._steps:
            batch.ready = [self._steps.prepare(row, lane) for row, lane in batch.started]

    def _committed(self, batch: Batch) -> None:
        self._reception.count(batch)
        for lane, aggregate_id in batch.ended_before:
            lane.forget(aggregate_id)  # Whatever has ended may be removed behind our back.
        if not batch.writes.advances:
            return
        for (kind, id), row in batch.changed:
            if kind in self._claimable and row.leased_by is None:
                batch.lanes[row.lane].unlisted.pop(id, None)
        for lane, id in batch.unlisted:
            lane.unlisted[id] = lane.position, batch.at
        batch.committed()
        lanes = {made.lane.id: made.lane for made in batch.made.values()}
        # Behind a send that failed nothing may go out: it would overtake what the drain sends first.
        sending = {id: lane for id, lane in lanes.items() if lane.acknowledge() or not self._defences.order}
        sends = batch.sends
        if len(sending) < len(lanes):  # Else they stay as they were encoded.
            sends = [out for out in sends if out.lane in sending]
        if sends:
            # Somebody waits for the end of a run. A crowd's leave while we decide and Postgres has nothing to do.
            at_once = batch.writes.outbox or batch.finished or _is_crowd(batch)
            future = self.log.enqueue(sends, patience=0.0 if at_once else PATIENCE_SECONDS)
            future.add_done_callback(_retrieved)
            for lane in sending.values():
                lane.sending(lane.position, future)
        if batch.replies or batch.hints:
            best_effort = self.log.enqueue([*batch.replies, *batch.hints])
            best_effort.add_done_callback(_retrieved)
        if self._steps:
            for step in batch.ready:
                self._steps.start(step)
        for lane, aggregate_id in batch.finished:
            lane.forget(aggregate_id)
        for made in batch.made.values():
            made.lane.shrink()

    def _tell(self, batch: Batch, *, at_once: bool) -> None:
        """Telemetry of a committed batch: one call, however many records it held."""
        if self._telemetry is SILENT or not batch.decided:
            return
        now, writes = time.perf_counter(), batch.writes
        records = Counter(accepted.command.type for accepted in batch.accepted)
        moved_on = sum(count for id, count in batch.handled.items() if batch.lanes[id].ingress)
        if moved_on:
            records[INGRESS_TYPE] = moved_on
        self._telemetry.batch(
            BatchReport(
                records=records,
                rows=sum(len(rows) for made in (writes.inserts, writes.updates) for rows in made.values()),
                events=len(writes.events),
                outs=len(writes.outbox),
                steps=len(batch.started),
                ended=len(batch.finished),
                dead_letters=len(writes.dead_letters),
                deciding_seconds=batch.decided - batch.began,
                committing_seconds=now - batch.decided,
                at_once=at_once,
            )
        )
        if self._telemetry.traces and batch.accepted:
            self._telemetry.handled([each.envelope for each in batch.accepted], batch.at, self._clock.now())

    async def fire_timers(self) -> None:
        """Move the due timers of our lanes to their outbox and send them. Raises as `handle` does."""
        lanes = {id: lane for id, lane in self.lanes.items() if lane.usable and not lane.ingress}
        due = await self.store.due_lanes(list(lanes))
        if not due:
            return
        batch = Batch(self._partitions, self._specs, self._domains.reactions, self._clock.now())
        try:
            async with self.store.unit() as unit:
                await unit.lock([_standing(lanes[id]) for id in due])
                for out in await unit.due_timers(due):
                    batch.send(lanes[out.lane], out)
                if batch.made:
                    self._finish(batch)
                    await unit.save(batch.writes)
                    self._prepare(batch)
        except Fenced as fenced:
            self._lose(fenced)
        except Unknown as unknown:
            self._give_up(due, str(unknown))
        else:
            self._committed(batch)

    async def list_leases(self) -> None:
        """List the leases of steps that have lasted for a while. Raises Unavailable."""
        if not self._steps or not self._defences.lasting_leases:
            return
        before = self._clock.now() - self.limits.unlisted_seconds
        lasting = {lane: ids for lane in self.lanes.values() if (ids := lane.long_unlisted(before))}
        if not lasting:
            return
        await self._steps.list_leased([id for ids in lasting.values() for id in ids])
        for lane, ids in lasting.items():
            for id in ids:
                lane.unlisted.pop(id, None)

    async def trim(self) -> None:
        """Store how far idle lanes are: their next transaction may be long in coming. Raises Unavailable.

        A lane is idle if it made nothing since the former call.
        """
        idle = []
        for lane in self.lanes.values():
            behind = lane.sent > lane.trimmed or lane.dealt > lane.next_offset
            if lane.usable and lane.acknowledge() and behind and lane.position == lane.position_swept:
                idle.append(lane)
            lane.position_swept = lane.position
        if not idle:
            return
        advances = [_standing(lane) for lane in idle]
        try:
            await self.store.write(Writes(advances=advances, trim=True))
        except Fenced as fenced:
            self._lose(fenced)
        except Unknown as unknown:
            self._give_up([lane.id for lane in idle], str(unknown))
        else:
            for lane, advance in zip(idle, advances, strict=True):
                lane.trimmed = advance.sent
                lane.next_offset = advance.next

    async def drain_failed(self) -> None:
        """Wait for what is being sent, and drain the lanes whose sends failed. Raises SendFailed if that fails too."""
        for lane in list(self.lanes.values()):
            if not lane.acknowledge():
                await self.drain(lane)

    @property
    def failed_lanes(self) -> list[Lane]:
        """Lanes with a failed send: they must be drained before they go on."""
        return [lane for lane in self.lanes.values() if not lane.acknowledge()]


def _is_crowd(batch: Batch) -> bool:
    return len(batch.accepted) >= CROWD


def _standing(lane: Lane) -> Advance:
    return Advance(lane.id, lane.epoch, lane.next_offset, lane.dealt, lane.position, lane.sent, lane.floor)


def _retrieved(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        log.warning("a send failed: %s", future.exception())
