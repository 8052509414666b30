"""What the kernel relies on in a store, shown on the one in memory and on Postgres."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from bus.statements import PATIENCE_BATCHES
from bus.store import Fenced, Outcome, Poison, Store, Unavailable, Unit, Unknown, Writes
from infra.db import TableSpec
from infra.domains import PROJECTIONS
from outbox.tombstones import TOMBSTONES, Tombstone
from projections.access import API_KEYS
from projections.runtime import MARKS, NODE_RUNS, RUNS
from tests.contract.stores import (
    Backend,
    event,
    letter,
    new_id,
    new_lane,
    out,
    sample,
    save,
    standing,
    timer,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def load(store: Store, spec: TableSpec, *ids: str) -> list[object]:
    async with store.unit() as unit:
        return await unit.load(spec, ids)


@asynccontextmanager
async def abandoned(store: Store) -> AsyncIterator[Unit]:
    """A transaction that an error ends."""
    with contextlib.suppress(LookupError):
        async with store.unit() as unit:
            yield unit
            raise LookupError


# Lanes.


async def test_a_claim_raises_the_epoch_and_tells_where_the_lane_stands(backend: Backend) -> None:
    lane = new_lane()
    (first,) = await backend.store.claim([lane], "a")
    await backend.store.write(Writes([standing(first, to=3, made=2, sent=1)]))
    (second,) = await backend.store.claim([lane], "b")
    assert (second.epoch, second.next_offset, second.position, second.sent) == (first.epoch + 1, 3, 2, 1)


async def test_a_former_owner_writes_nothing(backend: Backend) -> None:
    lane, row = new_lane(), sample(API_KEYS)
    (former,) = await backend.store.claim([lane], "a")
    await backend.store.claim([lane], "b")
    for write in (backend.store.write, lambda writes: save(backend.store, writes)):
        writes = Writes([standing(former, to=1)], inserts={"api_key": [row]}, outbox=[out(lane, 1)])
        with pytest.raises(Fenced) as fenced:
            await write(writes)
        assert fenced.value.lanes == {lane}
    assert await load(backend.store, API_KEYS, row.id) == []
    assert await backend.store.unsent(lane, 0) == ([], [])


async def test_an_owner_at_another_offset_writes_nothing(backend: Backend) -> None:
    lane = new_lane()
    (claimed,) = await backend.store.claim([lane], "a")
    await backend.store.write(Writes([standing(claimed, to=2)]))
    with pytest.raises(Fenced):
        await backend.store.write(Writes([standing(claimed, to=1)]))
    assert (await backend.lane(lane))[1] == 2


async def test_the_fence_names_the_lanes_that_are_lost(backend: Backend) -> None:
    kept, lost = new_lane(), new_lane()
    claimed = await backend.store.claim([kept, lost], "a")
    await backend.store.claim([lost], "b")
    with pytest.raises(Fenced) as fenced:
        await backend.store.write(Writes([standing(each, to=1) for each in claimed]))
    assert fenced.value.lanes == {lost}
    assert (await backend.lane(kept))[1] == 0


async def test_a_claim_waits_for_the_former_owners_transaction(backend: Backend) -> None:
    lane = new_lane()
    (former,) = await backend.store.claim([lane], "a")
    async with backend.store.unit() as unit:
        await unit.lock([standing(former)])
        claim = asyncio.ensure_future(backend.store.claim([lane], "b"))
        await asyncio.sleep(0.05)
        assert not claim.done()
        await unit.save(Writes([standing(former, to=5)]))
    (claimed,) = await claim
    assert claimed.next_offset == 5


async def test_an_idle_transaction_is_ended_and_leaves_nothing(backend: Backend) -> None:
    """Else a stopped worker would keep its lanes for ever."""
    lane, row = new_lane(), sample(API_KEYS)
    (former,) = await backend.store.claim([lane], "a")

    async def stopped_owner() -> None:
        async with backend.store.unit() as unit:
            await unit.lock([standing(former)])
            await backend.store.claim([lane], "b")
            await unit.save(Writes([standing(former, to=1)], inserts={"api_key": [row]}))

    with pytest.raises((Unavailable, Unknown)):
        await stopped_owner()
    assert await load(backend.store, API_KEYS, row.id) == []


async def test_a_stopped_lane_says_why_until_it_is_claimed(backend: Backend) -> None:
    lane = new_lane()
    (claimed,) = await backend.store.claim([lane], "a")
    await backend.store.stop(lane, claimed.epoch - 1, "not mine")
    assert (await backend.lane(lane))[4] == ""
    await backend.store.stop(lane, claimed.epoch, "unknown type")
    assert (await backend.lane(lane))[4] == "unknown type"
    assert await backend.store.restarted([lane], [claimed.epoch]) == []
    await backend.store.claim([lane], "a")
    assert (await backend.lane(lane))[4] == ""
    assert await backend.store.restarted([lane], [claimed.epoch]) == [lane]


# Rows.


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("spec", PROJECTIONS, ids=lambda spec: spec.name)
async def test_every_row_comes_back_as_it_was(backend: Backend, spec: TableSpec, empty: bool) -> None:
    lane, row = new_lane(), sample(spec, empty=empty)
    (claimed,) = await backend.store.claim([lane], "a")
    await backend.store.write(Writes([standing(claimed)], inserts={spec.name: [row]}))
    assert await load(backend.store, spec, row.id, new_id()) == [row]


@pytest.mark.parametrize("spec", PROJECTIONS, ids=lambda spec: spec.name)
async def test_an_update_writes_what_may_change_and_nothing_else(backend: Backend, spec: TableSpec) -> None:
    lane, row, other = new_lane(), sample(spec), sample(spec, empty=True)
    (claimed,) = await backend.store.claim([lane], "a")
    await backend.store.write(Writes([standing(claimed)], inserts={spec.name: [row]}))
    changed = replace(other, id=row.id)
    await backend.store.write(Writes([standing(claimed)], updates={spec.name: [changed, other]}))
    mutable = {column.name: getattr(changed, column.name) for column in spec.mutable}
    assert await load(backend.store, spec, row.id) == [replace(row, **mutable)]
    assert await load(backend.store, spec, other.id) == []


async def test_live_rows_are_found_by_their_aggregate(backend: Backend) -> None:
    lane, run_id = new_lane(), new_id()
    (claimed,) = await backend.store.claim([lane], "a")
    rows = [
        replace(sample(NODE_RUNS), run_id=run_id, status=status)
        for status in ("queued", "running", "pending", "completed", "failed", "skipped", "cancelled")
    ]
    stranger, mark = sample(NODE_RUNS), replace(sample(MARKS), run_id=run_id)
    inserts = {"node_run": [*rows, stranger], "run_mark": [mark]}
    await backend.store.write(Writes([standing(claimed)], inserts=inserts))
    async with backend.store.unit() as unit:
        found = await unit.load_live(NODE_RUNS, [run_id])
        assert {row.id for row in found} == {row.id for row in rows[:3]}
        assert await unit.load_live(MARKS, [run_id, new_id()]) == [mark]


# All or nothing.


async def test_a_transaction_that_is_left_by_an_error_writes_nothing(backend: Backend) -> None:
    lane, row = new_lane(), sample(API_KEYS)
    (claimed,) = await backend.store.claim([lane], "a")
    async with abandoned(backend.store) as unit:
        await unit.lock([standing(claimed)])
        await unit.admit([(new_id(), 0, 1.0)], [])
        await unit.save(Writes([standing(claimed, to=1)], inserts={"api_key": [row]}))
    assert await load(backend.store, API_KEYS, row.id) == []
    assert (await backend.lane(lane))[1] == 0


async def test_what_is_there_already_refuses_everything(backend: Backend) -> None:
    lane, row, aggregate_id = new_lane(), sample(API_KEYS), new_id()
    (claimed,) = await backend.store.claim([lane], "a")
    repeat, stored = (new_id(), 0, 1.0), outcome("succeeded")
    kept = Writes(
        [standing(claimed, made=2)],
        inserts={"api_key": [row]},
        events=[event(lane, 1, aggregate_id, 1)],
        outbox=[out(lane, 2)],
        inbox=[repeat],
        new_outcomes=[stored],
    )
    await backend.store.write(kept)
    for twice in (
        Writes(inserts={"api_key": [row]}),
        Writes(events=[event(lane, 3, aggregate_id, 1)]),
        Writes(outbox=[out(lane, 2)]),
        Writes(inbox=[repeat]),
        Writes(new_outcomes=[stored]),
    ):
        other = sample(API_KEYS)
        twice.advances = [standing(claimed, to=1)]
        twice.inserts.setdefault("api_key", []).append(other)
        with pytest.raises(Poison):
            await backend.store.write(twice)
        assert await load(backend.store, API_KEYS, other.id) == []
    assert (await backend.lane(lane))[1] == 0


async def test_an_aggregate_that_was_removed_is_not_made_again(backend: Backend) -> None:
    gone, other = sample(RUNS), sample(RUNS)
    tombstone = Tombstone(gone.id, "t1", "run", "completed", 7, 1_700_000_000.5, 1_700_000_001.5)
    await backend.bury(tombstone)
    assert await load(backend.store, TOMBSTONES, gone.id, other.id) == [tombstone]
    lane = new_lane()
    (claimed,) = await backend.store.claim([lane], "a")
    with pytest.raises(Poison):
        await backend.store.write(Writes([standing(claimed)], inserts={"run": [other, gone]}))
    assert await load(backend.store, RUNS, gone.id, other.id) == []
    await backend.store.write(Writes([standing(claimed)], inserts={"run": [other]}))
    assert await load(backend.store, RUNS, other.id) == [other]


async def test_a_value_that_cannot_be_stored_is_poison(backend: Backend) -> None:
    lane = new_lane()
    (claimed,) = await backend.store.claim([lane], "a")
    with pytest.raises(Poison):
        await backend.store.write(
            Writes([standing(claimed)], inserts={"api_key": [replace(sample(API_KEYS), name="a\x00b")]})
        )


# What is to be sent.


async def test_unsent_is_what_was_made_after_sent_in_order(backend: Backend) -> None:
    lane, aggregate_id = new_lane(), new_id()
    (claimed,) = await backend.store.claim([lane], "a")
    events = [event(lane, position, aggregate_id, seq) for position, seq in ((1, 1), (3, 2), (4, 3))]
    outs = [out(lane, 2), out(lane, 5, body=b"")]
    await backend.store.write(Writes([standing(claimed, made=5)], events=[*events], outbox=[*outs]))
    assert await backend.store.unsent(lane, 0) == (events, outs)
    assert await backend.store.unsent(lane, 3) == (events[2:], outs[1:])
    assert await backend.store.unsent(new_lane(), 0) == ([], [])


async def test_what_is_sent_is_trimmed_with_the_next_transaction(backend: Backend) -> None:
    lane, other = new_lane(), new_lane()
    mine, others = await backend.store.claim([lane, other], "a")
    outs = [out(lane, 1), out(lane, 2), out(other, 1)]
    await backend.store.write(Writes([standing(mine, made=2), standing(others, made=1)], outbox=[*outs]))
    await backend.store.write(Writes([standing(mine, made=2, sent=1)], trim=True))
    assert await backend.store.unsent(lane, 0) == ([], outs[1:2])
    assert await backend.store.unsent(other, 0) == ([], outs[2:])
    await backend.store.write(Writes([standing(mine, made=2, sent=0)]))
    assert (await backend.lane(lane))[3] == 1


# Messages that come again.


def outcome(status: str, command_id: str = "") -> Outcome:
    body = b"" if status == "pending" else '{"é":1}'.encode()
    return Outcome(command_id or new_id(), "t", "access.create_api_key", "f" * 64, status, body, 1_700_000_000.5)


async def test_a_message_is_new_once(backend: Backend) -> None:
    lane, message = new_lane(), (new_id(), 0, 1.0)
    (claimed,) = await backend.store.claim([lane], "a")
    again = (message[0], 1, 1.0)
    for expected in (frozenset(), frozenset({message[:2]})):
        async with backend.store.unit() as unit:
            await unit.lock([standing(claimed)])
            assert (await unit.admit([message], [])).repeats == expected
            await unit.save(Writes([standing(claimed)]))
    async with backend.store.unit() as unit:
        assert (await unit.admit([message, again], [])).repeats == {message[:2]}


async def test_a_message_of_a_transaction_that_failed_is_still_new(backend: Backend) -> None:
    message, asked = (new_id(), 0, 1.0), outcome("pending")
    async with abandoned(backend.store) as unit:
        await unit.admit([message], [asked])
    async with backend.store.unit() as unit:
        admitted = await unit.admit([message], [asked])
        assert (admitted.repeats, admitted.outcomes) == (frozenset(), {})


async def test_a_deferred_outcome_keeps_where_whoever_waits_listens(backend: Backend) -> None:
    lane = new_lane()
    (claimed,) = await backend.store.claim([lane], "a")
    reserved = outcome("pending")._replace(reply_partition=7)
    pending = outcome("pending")._replace(reply_partition=3, deferred=True)
    async with backend.store.unit() as unit:
        await unit.lock([standing(claimed)])
        await unit.admit([], [reserved])
        writes = Writes([standing(claimed)], new_outcomes=[pending], outcomes=[reserved._replace(deferred=True)])
        await unit.save(writes)
    async with backend.store.unit() as unit:
        assert await unit.stored_outcomes([pending.command_id, reserved.command_id, new_id()]) == {
            pending.command_id: pending,
            reserved.command_id: reserved._replace(deferred=True),
        }


async def test_the_outcome_of_a_command_is_told_again(backend: Backend) -> None:
    lane, asked = new_lane(), outcome("pending")
    (claimed,) = await backend.store.claim([lane], "a")
    settled = outcome("rejected", asked.command_id)
    async with backend.store.unit() as unit:
        await unit.lock([standing(claimed)])
        assert (await unit.admit([], [asked])).outcomes == {}
        await unit.save(Writes([standing(claimed)], outcomes=[settled]))
    fresh = outcome("pending")
    async with backend.store.unit() as unit:
        admitted = await unit.admit([], [asked, fresh])
        assert admitted.outcomes == {asked.command_id: settled}


# Timers and dead letters.


async def test_due_timers_are_taken_once(backend: Backend) -> None:
    lane, other = new_lane(), new_lane()
    mine, others = await backend.store.claim([lane, other], "a")
    late, later, never, foreign = timer(lane, -2), timer(lane, -1), timer(lane, 3_600), timer(other, -1)
    writes = Writes([standing(mine), standing(others)], timers=[later, late, never, foreign])
    await backend.store.write(writes)
    await backend.store.write(Writes([standing(mine)], timers=[late._replace(seconds=3_600)]))
    assert await backend.store.due_lanes([lane, other, new_lane()]) == [lane, other]
    async with abandoned(backend.store) as unit:
        assert await unit.due_timers([lane]) == [late.out, later.out]
    async with backend.store.unit() as unit:
        await unit.lock([standing(mine)])
        assert await unit.due_timers([lane]) == [late.out, later.out]
        await unit.save(Writes([standing(mine)]))
    assert await backend.store.due_lanes([lane, other]) == [other]


async def test_a_letter_that_dies_again_is_the_same_letter(backend: Backend) -> None:
    lane, dead = new_lane(), letter(new_lane())
    (claimed,) = await backend.store.claim([lane], "a")
    for redrives in range(3):
        dead = replace(dead, at=dead.at + redrives)
        await backend.store.write(Writes([standing(claimed)], dead_letters=[dead]))
        assert await backend.died(dead.id) == (redrives, dead.at)


async def test_time_goes_on(backend: Backend) -> None:
    assert 1_700_000_000 < await backend.store.now() <= await backend.store.now()


@pytest.mark.parametrize("spec", PROJECTIONS, ids=lambda spec: spec.name)
async def test_a_column_that_always_had_one_value_may_have_others(backend: Backend, spec: TableSpec) -> None:
    """The statement takes such a column for constant: that must never show."""
    (claimed,) = await backend.store.claim([new_lane()], "a")
    same = sample(spec)
    alike = [[replace(same, id=new_id()) for _ in range(3)] for _ in range(PATIENCE_BATCHES + 2)]
    for rows in alike:
        await backend.store.write(Writes([standing(claimed)], inserts={spec.name: rows}))
    odd = replace(sample(spec, empty=True), id=new_id())
    one, true = ({"n": 1}, {"n": True})  # Equal to Python, not to JSON.
    json = [column.name for column in spec.columns if column.load is not None and column.pg_type == "bytea"]
    ones, trues = (replace(same, id=new_id(), **dict.fromkeys(json, value)) for value in (one, true))
    for rows in ([*alike[0][:1], odd], [ones, trues]):
        fresh = [replace(row, id=new_id()) for row in rows]
        await backend.store.write(Writes([standing(claimed)], inserts={spec.name: fresh}))
        stored = await load(backend.store, spec, *(row.id for row in fresh))
        assert sorted(map(repr, stored)) == sorted(map(repr, fresh))
    changed = [replace(same, id=row.id) for rows in alike for row in rows]
    for start in range(0, len(changed), 3):
        await backend.store.write(Writes([standing(claimed)], updates={spec.name: changed[start : start + 3]}))
    values = {column.name: getattr(odd, column.name) for column in spec.mutable}
    other = replace(changed[0], **values)
    await backend.store.write(Writes([standing(claimed)], updates={spec.name: [other, changed[1]]}))
    stored = await load(backend.store, spec, other.id, changed[1].id)
    assert sorted(map(repr, stored)) == sorted(map(repr, (other, changed[1])))
