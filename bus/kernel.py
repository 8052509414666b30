"""The kernel: owns lanes, handles their records in batches, and does the duties that lanes bring with them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bus.answers import Answers
from bus.batch import Condemned
from bus.costs import Costs
from bus.deciding import BatchSpent, DecidingTime
from bus.domains import Domains
from bus.lanes import Lane, standing
from bus.limits import Clock, Defences, Limits
from bus.loading import Loader
from bus.preparations import Background, Preparations, Unprepared
from bus.reception import Ingress, Reception, stop
from bus.records import Partitions, event_record
from bus.store import Fenced, Incoming, Log, Out, Poison, Store, Unavailable, Unknown, Writes
from bus.telemetry import SILENT, Telemetry
from bus.transactions import Steps, Transactions
from infra.db import TableSpec
from schemas import outcomes, registry
from schemas.decider import Domain

log = logging.getLogger("agent_platform.kernel")


class Kernel:
    """One call of `handle` or of a duty runs at a time.

    `claimable` maps a row type to the test whether such a row is a step to be claimed now. `background` runs what
    takes long outside of decisions (without one, nothing else happens meanwhile); `deciding` watches how long these
    take.
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
        background: Background | None = None,
        deciding: DecidingTime | None = None,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self.store = store
        self.log = out
        self.owner = owner
        self.lanes: dict[int, Lane] = {}
        self.limits = limits or Limits()
        self._clock = clock
        self._steps = steps
        self._defences = defences or Defences()
        self._partitions = partitions
        self._costs = Costs()
        self.deciding = deciding or DecidingTime(self.limits.deciding_seconds_max)
        by_row = {spec.row: spec for spec in specs}
        answers = Answers(domains)
        commands = registry.by_name((*outcomes.COMMANDS, *(each for domain in domains for each in domain.decide)))
        reception = Reception(commands, partitions, clock, self.limits, self._defences, answers, ingress)
        self.preparations = Preparations(background)
        decided_by = Domains(
            domains, by_row, reception, self._costs, answers, self.deciding, self.preparations.broken, owner
        )
        self._transactions = Transactions(
            store,
            out,
            self.lanes,
            decided_by,
            reception,
            Loader(by_row, decided_by.heads, decided_by.ended, immutable_facts, self.limits),
            answers,
            by_row,
            partitions=partitions,
            clock=clock,
            steps=steps,
            claimable=claimable or {},
            hint=hint,
            defences=self._defences,
            telemetry=telemetry,
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
        lanes = [Lane(each, self.limits) for each in claimed]
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

    # --- batches ---------------------------------------------------------------------------------------------

    async def handle(self, records: Sequence[Incoming]) -> None:
        """Handle a batch in order; returns when it is committed, with its sends under way.

        A lane that is lost, stopped or in doubt is released: its records are dropped and come again from its
        next offset. Those of a lane that waits for a preparation are kept, and handled by a later call. Raises
        Unavailable when the store did not take the batch after several tries.
        """
        mine = [*self.preparations.resumed(self.lanes), *self.preparations.held_back(self._mine(records), self.lanes)]
        try:
            for chunk in self._costs.split(mine, self.limits.rows_max):
                await self._handle(chunk)
        except BaseException as error:
            # What was taken in and not handled must come again: never go on behind it.
            self._give_up({record.lane for record in mine}, f"{type(error).__name__}: {error}")
            raise
        if self.preparations.ready:
            await self.handle(())

    async def _handle(self, records: list[Incoming], *, again: bool = False) -> None:
        """`again`: deciding this one record has taken too long before."""
        pauses = iter((*self.limits.retry_seconds, None))
        while records := self._not_waiting(records):
            try:
                await self._transactions.handle(records)
                return
            except Fenced as fenced:
                self._lose(fenced)
            except Unknown as unknown:
                self._give_up({record.lane for record in records}, f"unknown end of a transaction: {unknown}")
            except Poison as poison:
                log.warning("a batch of %d holds poison: %s", len(records), poison)
                await self._bisect(records)
                return
            except Unprepared as lacking:
                records = self.preparations.hold(records, lacking, self.lanes)
            except BatchSpent as spent:
                await self._in_parts(records, spent, again=again)
                return
            except Unavailable as error:
                pause = next(pauses)
                if pause is None:
                    raise
                log.warning("the store is not available, trying again: %s", error)
                await asyncio.sleep(pause)

    async def _in_parts(self, records: list[Incoming], spent: BatchSpent, *, again: bool) -> None:
        """Deciding took too long: what was decided is a batch of its own; what takes too long alone is alone."""
        index = next(index for index, record in enumerate(records) if record is spent.record)
        if not spent.alone:
            await self._handle(records[: index + 1])
            await self._handle(records[index + 1 :])
        elif len(records) > 1:
            await self._handle(records[:index])
            await self._handle(records[index : index + 1])
            await self._handle(records[index + 1 :])
        elif not again:
            log.warning("lane %d, offset %d: %s; once more", spent.record.lane, spent.record.offset, spent)
            await self._handle(records, again=True)
        else:
            await self._part(records, [Condemned("deciding_too_long", str(spent))])

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

    def _not_waiting(self, records: Iterable[Incoming]) -> list[Incoming]:
        """Those of lanes that are ours; of one that waits since an earlier part of the batch all are kept back."""
        ours = [record for record in records if record.lane in self.lanes]
        return self.preparations.held_back(ours, self.lanes)

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
            await self._part(records, [None, None, Condemned("poison", "")])
            return
        half = len(records) // 2
        for part in (records[:half], records[half:]):
            await self._part(part, [None])

    async def _part(self, part: list[Incoming], tries: Sequence[Condemned | None]) -> None:
        """One part of a bisected batch, without patience: what is not handled is given up with its lanes."""
        refused = ""
        for condemned in tries:
            part = self._not_waiting(part)
            if condemned is not None and not condemned.detail:
                condemned = condemned._replace(detail=refused)
            try:
                await self._transactions.handle(part, condemned)
                return
            except Poison as again:
                refused = str(again)
            except (Unprepared, BatchSpent):
                await self._handle(part)
                return
            except (Fenced, Unknown, Unavailable) as error:
                self._give_up({record.lane for record in part}, str(error))
                return
        if tries[-1] is None:
            await self._bisect(part)
            return
        for record in part:
            stop(self.lanes[record.lane], f"offset {record.offset} cannot even be a dead letter: {refused}")

    # --- duties ----------------------------------------------------------------------------------------------

    async def fire_timers(self) -> None:
        """Move the due timers of our lanes to their outbox and send them. Raises as `handle` does."""
        lanes = {id: lane for id, lane in self.lanes.items() if lane.usable and not lane.ingress}
        due = await self.store.due_lanes(list(lanes))
        if not due:
            return
        batch = self._transactions.empty_batch()
        try:
            async with self.store.unit() as unit:
                await unit.lock([standing(lanes[id]) for id in due])
                for out in await unit.due_timers(due):
                    batch.send(lanes[out.lane], out)
                if batch.made:
                    self._transactions.finish(batch)
                    await unit.save(batch.writes)
                    self._transactions.prepare(batch)
        except Fenced as fenced:
            self._lose(fenced)
        except Unknown as unknown:
            self._give_up(due, str(unknown))
        else:
            self._transactions.committed(batch)

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
        advances = [standing(lane) for lane in idle]
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
