"""Loading: what decisions lack in memory is read, by table, for all aggregates of a batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bus.batch import Accepted, Batch
from bus.limits import Limits
from bus.rows import weight
from bus.store import Store, Unit
from infra.db import TableSpec
from outbox.tombstones import TOMBSTONES
from schemas.decider import Key, Missing
from schemas.messages import Command


class Loader:
    """Reads rows into the aggregates of lanes. `facts`: immutable rows of other aggregates, kept between batches.

    `ended`: by head, whether its aggregate has come to its end. Such a one stays in memory for one batch only, so that
    retention may remove it without asking its lane.
    """

    def __init__(
        self,
        specs: Mapping[type[Any], TableSpec],
        heads: Mapping[type[Command], type[Any]],
        ended: Mapping[type[Any], Callable[[Any], bool]],
        immutable: frozenset[type[Any]],
        limits: Limits,
    ) -> None:
        self.facts: dict[Key, Any] = {}
        self._specs = specs
        self._heads = heads
        self._ended = ended
        self._immutable = immutable
        self._limits = limits
        self._sizes: dict[Key, int] = {}
        self._size = 0

    async def read(self, batch: Batch, store: Store, keys: Iterable[Key]) -> None:
        """Facts that are not in memory, as they are now: one statement for each table."""
        wanted: dict[type[Any], set[str]] = {}
        for kind, id in keys:
            if (kind, id) not in batch.facts:
                wanted.setdefault(kind, set()).add(id)
        for kind, ids in wanted.items():
            self._know(batch, kind, ids, await store.read(self._specs[kind], sorted(ids)))

    def _know(self, batch: Batch, kind: type[Any], ids: Iterable[str], rows: Iterable[Any]) -> None:
        found = {row.id: row for row in rows}
        for id in ids:
            batch.facts[kind, id] = found.get(id)
            if kind in self._immutable and id in found and (kind, id) not in self.facts:
                self._remember(kind, id, found[id])

    async def load(self, batch: Batch, unit: Unit, missing: list[tuple[Accepted, Missing]]) -> None:
        """Read what the decisions lack: by table, all aggregates at once."""
        by_id: dict[type[Any], dict[str, Accepted]] = {}
        by_parent: dict[type[Any], dict[str, Accepted]] = {}
        facts: dict[type[Any], set[str]] = {}
        outcomes: set[str] = set()
        for accepted, lack in missing:
            for kind, id in lack.rows:
                if not id or self._specs[kind].whole:
                    by_parent.setdefault(kind, {})[accepted.aggregate_id] = accepted
                else:
                    by_id.setdefault(kind, {})[id] = accepted
            outcomes.update(lack.outcomes)
            for kind, id in lack.facts:
                facts.setdefault(kind, set()).add(id)
        for kind, wanted in by_id.items():
            for id, row in _by_id(await unit.load(self._specs[kind], list(wanted)), wanted).items():
                self._keep(batch, wanted[id], kind, id, row)
            if kind in self._ended:
                await self._tombstones(batch, unit, kind, wanted)
        for kind, parents in by_parent.items():
            spec = self._specs[kind]
            for row in await unit.load_live(spec, list(parents)):
                self._keep(batch, parents[getattr(row, spec.parent)], kind, row.id, row)
            for id, accepted in parents.items():
                accepted.lane.aggregate(id).groups.add(kind)
        if outcomes:
            batch.outcomes.update(dict.fromkeys(outcomes) | await unit.stored_outcomes(sorted(outcomes)))
        for kind, ids in facts.items():
            self._know(batch, kind, ids, await unit.load(self._specs[kind], sorted(ids)))

    def _keep(self, batch: Batch, accepted: Accepted, kind: type[Any], id: str, row: Any) -> None:
        aggregate = accepted.lane.aggregate(accepted.aggregate_id)
        batch.touched.add((accepted.lane.id, accepted.aggregate_id))
        key = (kind, id)
        if row is not None and getattr(row, self._specs[kind].parent) != accepted.aggregate_id:
            # Named by a command for another aggregate (or tenant): as if it did not exist, and not held.
            aggregate.rows[key] = None
            return
        if key in batch.held and key in aggregate.rows:
            return  # Changed by this very batch: what is in memory is newer.
        aggregate.rows[key] = row
        aggregate.dropped.discard(id)
        if row is not None:
            accepted.lane.grew(accepted.aggregate_id, weight(row, self._specs[kind]))
        batch.held.add(key)
        if kind is self._heads[type(accepted.command)]:
            if row is None:
                aggregate.whole = True
            elif self._ended[kind](row):
                batch.ended_before.append((accepted.lane, accepted.aggregate_id))

    async def _tombstones(self, batch: Batch, unit: Unit, kind: type[Any], wanted: Mapping[str, Accepted]) -> None:
        """Heads that are not there may have been. Asked after them: who removes one commits both together."""
        aggregates = {id: each.lane.aggregate(each.aggregate_id) for id, each in wanted.items()}
        absent = [id for id, aggregate in aggregates.items() if aggregate.rows.get((kind, id)) is None]
        for tombstone in await unit.load(TOMBSTONES, absent) if absent else ():
            aggregates[tombstone.id].gone = tombstone

    def _remember(self, kind: type[Any], id: str, row: Any) -> None:
        size = weight(row, self._specs[kind])
        limits = self._limits
        while self.facts and (len(self.facts) >= limits.facts_max or self._size + size > limits.facts_bytes_max):
            first = next(iter(self.facts))
            del self.facts[first]
            self._size -= self._sizes.pop(first)
        self.facts[kind, id] = row
        self._sizes[kind, id] = size
        self._size += size


def _by_id(rows: list[Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(wanted)
    found.update((row.id, row) for row in rows)
    return found
