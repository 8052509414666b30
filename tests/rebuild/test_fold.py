"""The log of any simulated history, read back from its bytes, folds to what the tables held at every commit."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import orjson
import pytest

from bus.store import Logged, Writes
from infra.history.rebuild.folding import Folder
from projections.fold import FoldRows
from tests.simulation.world import World, simulate

SEEDS = range(40, 52)
pytestmark = pytest.mark.simulation


class Recording(World):
    """Keeps the rows of each aggregate as they stood behind each commit, by its id and last seq."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.states: dict[tuple[str, int], bytes] = {}

    def _on_commit(self, writes: Writes) -> None:
        super()._on_commit(writes)
        last = {each.recorded.aggregate_id: each.recorded.seq for each in writes.events}
        for id, seq in last.items():
            rows = [
                (spec, row)
                for spec in self.specs
                for row in self.database.tables[spec.name].values()
                if getattr(row, spec.parent) == id
            ]
            self.states[id, seq] = canonical(rows)

    def histories(self) -> dict[str, list[Logged]]:
        found: dict[str, list[Logged]] = defaultdict(list)
        for (id, _), logged in sorted(self.database.events.items()):
            found[id].append(logged)
        return found


def canonical(rows: Any) -> bytes:
    """Every column that is folded, in an order of its own."""
    values = [
        [spec.name, [getattr(row, c.name) for c in spec.columns if c.name not in spec.operational]]
        for spec, row in rows
    ]
    return orjson.dumps(sorted(values, key=orjson.dumps), option=orjson.OPT_SORT_KEYS)


def stored(logged: Logged) -> tuple[Any, ...]:
    """An event as the log's reader gets it."""
    r = logged.recorded
    return (
        r.aggregate_id, r.seq, r.event.type, logged.body, r.at, r.tenant_id, r.lane, r.actor, r.correlation_id,
        r.traceparent,
    )  # fmt: skip


def state_of(world: World, rows: FoldRows) -> bytes:
    specs = {spec.row: spec for spec in world.specs}
    return canonical([(specs[kind], row) for (kind, _), row in rows.rows.items()])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fold_up_to_each_seq_is_the_state_recorded_then(seed: int) -> None:
    world = Recording(seed)
    simulate(world)
    compared = 0
    for id, history in world.histories().items():
        folder = Folder()
        for logged in history:
            folder.take([stored(logged)])
            expected = world.states.get((id, logged.recorded.seq))
            if expected is not None:
                assert folder.current is not None, folder.unfoldable
                assert state_of(world, folder.current) == expected, f"{id} at seq {logged.recorded.seq}"
                compared += 1
    assert compared == len(world.states) > 0


def test_a_history_with_a_hole_is_given_up_and_the_next_one_folded() -> None:
    world = Recording(SEEDS[0])
    simulate(world)
    (first, broken), (second, whole), *_ = [
        (id, history) for id, history in world.histories().items() if len(history) > 2
    ]
    folder = Folder()
    folder.take([stored(each) for each in (*broken[:1], *broken[2:], *whole)])
    folded = folder.take_whole("g")
    assert folded[first] is None
    (unfoldable,) = folder.unfoldable
    assert (unfoldable.aggregate_id, "seq 3 stands where 2 was due" in unfoldable.reason) == (first, True)
    found = folded[second]
    assert found is not None
    assert state_of(world, found) == world.states[second, whole[-1].recorded.seq]
