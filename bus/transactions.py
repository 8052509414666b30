"""One batch of records as one transaction: decided at once from memory if that suffices, else step by step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from bus.admission import admit, must_admit
from bus.answers import Answers
from bus.batch import Batch, Condemned
from bus.domains import Domains
from bus.lanes import Lane, standing
from bus.limits import Clock, Defences
from bus.loading import Loader
from bus.reception import Reception
from bus.records import Partitions
from bus.store import Incoming, Log, Out, Poison, Store
from bus.telemetry import INGRESS_TYPE, SILENT, BatchReport, Telemetry
from infra.db import TableSpec
from schemas.decider import Missing

log = logging.getLogger("agent_platform.kernel")

CROWD = 16
"""A batch of so many commands is worth a round of sending of its own."""
PATIENCE_SECONDS = 0.008
"""A request to Kafka costs far more than a record: what nobody waits for waits so long for company."""


class Steps(Protocol):
    """Who executes steps in this process."""

    def lease(self, row: Any, lane: Lane, at: float, *, new: bool) -> Any | None:
        """The claimable row of an aggregate in `lane` leased to this process, or None if it has no room for it.

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


class Transactions:
    """Turns batches into transactions over `lanes`, which others claim and release meanwhile.

    `claimable` maps a row type to the test whether such a row is a step to be claimed now.
    """

    def __init__(
        self,
        store: Store,
        out: Log,
        lanes: Mapping[int, Lane],
        domains: Domains,
        reception: Reception,
        loader: Loader,
        answers: Answers,
        specs: Mapping[type[Any], TableSpec],
        *,
        partitions: Partitions,
        clock: Clock,
        steps: Steps | None,
        claimable: Mapping[type[Any], Callable[[Any], bool]],
        hint: Callable[[Any], Out | None] | None,
        defences: Defences,
        telemetry: Telemetry,
    ) -> None:
        self._store = store
        self._log = out
        self._lanes = lanes
        self._domains = domains
        self._reception = reception
        self._loader = loader
        self._answers = answers
        self._specs = specs
        self._partitions = partitions
        self._clock = clock
        self._steps = steps
        self._claimable = claimable
        self._hint = hint
        self._defences = defences
        self._telemetry = telemetry

    async def handle(self, records: list[Incoming], condemned: Condemned | None = None) -> None:
        """Handle a batch in one transaction: at once if memory suffices and nothing is a repeat, else step by step."""
        if condemned is None:
            batch = self._new_batch(records, None)
            batch.optimistic = self._defences.inbox
            try:
                if await self._at_once(batch, records):
                    self.committed(batch)
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
        batch = self._new_batch(records, condemned)
        try:
            await self._step_by_step(batch, records)
        except BaseException:
            self._undo(batch)
            raise
        self.committed(batch)
        self._tell(batch, at_once=False)

    def _new_batch(self, records: list[Incoming], condemned: Condemned | None) -> Batch:
        batch = self.empty_batch()
        batch.facts = dict(self._loader.facts)
        batch.condemned = condemned
        # Held here: a lane may be released at any await; its fence then decides whether this is written.
        batch.lanes = {id: self._lanes[id] for id in {record.lane for record in records} if id in self._lanes}
        return batch

    def empty_batch(self) -> Batch:
        """One decided now."""
        return Batch(self._partitions, self._specs, self._domains.reactions, self._clock.now(), self._answers.command)

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
        facts = self._domains.facts_of(accepted)
        if facts:
            await self._loader.read(batch, self._store, facts)
        try:
            self._domains.decide_all(batch, accepted)
        except Missing:
            return False
        batch.writes.inbox = [
            (each.envelope.id, 0, batch.at) for each in accepted if must_admit(each) and not each.external
        ]
        batch.accepted = accepted
        if batch.made:
            self.finish(batch)
            batch.decided = time.perf_counter()
            await self._write(batch)
        return True

    async def _write(self, batch: Batch) -> None:
        """Write a batch; what follows its commit is made ready while Postgres works."""
        writing = asyncio.ensure_future(self._store.write(batch.writes))
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # The statement is made in the first turn of the loop, and sent at its end.
            self.prepare(batch)
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
        async with self._store.unit() as unit:
            await unit.lock([standing(lane) for lane in batch.lanes.values()])
            pending = await admit(batch, unit, pending, self._clock.now(), inbox_on=self._defences.inbox)
            batch.accepted = pending
            while pending:
                pending, missing = self._domains.fold(batch, pending)
                if missing:
                    await self._loader.load(batch, unit, missing)
            self.finish(batch)
            batch.decided = time.perf_counter()
            await unit.save(batch.writes)
            self.prepare(batch)

    # --- writing and sending ---------------------------------------------------------------------------------

    def finish(self, batch: Batch) -> None:
        """Lease the steps it made, and lay it out for the store."""
        at = self._clock.now()
        for key, row in batch.rows:
            kind, id = key
            test = self._claimable.get(kind)
            if test is None or not test(row):
                continue
            lane = batch.lanes[row.lane]
            new = batch.is_new(key)
            leased = self._steps.lease(row, lane, at, new=new) if self._steps else None
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

    def prepare(self, batch: Batch) -> None:
        """Make ready what is sent and started once the batch is committed."""
        batch.sends = batch.records()
        if _is_crowd(batch):
            batch.sends = self._log.encoded(batch.sends)
        if self._steps:
            batch.ready = [self._steps.prepare(row, lane) for row, lane in batch.started]

    def committed(self, batch: Batch) -> None:
        """It is written: move its lanes on, send what it made, start its steps."""
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
            future = self._log.enqueue(sends, patience=0.0 if at_once else PATIENCE_SECONDS)
            future.add_done_callback(_retrieved)
            for lane in sending.values():
                lane.sending(lane.position, future)
        if batch.replies or batch.hints:
            best_effort = self._log.enqueue([*batch.replies, *batch.hints])
            best_effort.add_done_callback(_retrieved)
        if self._steps:
            for step in batch.ready:
                self._steps.start(step)
        for lane, aggregate_id in batch.finished:
            lane.forget(aggregate_id)
        for made in batch.made.values():
            made.lane.shrink(self._specs)

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


def _is_crowd(batch: Batch) -> bool:
    return len(batch.accepted) >= CROWD


def _retrieved(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        log.warning("a send failed: %s", future.exception())
