"""Deciding is bounded: what takes too long is a dead letter, and what must be made first holds up its lane only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from bus.deciding import DecidingTime
from bus.limits import Limits
from infra.roles.process import interrupting
from schemas.decider import Decision, Meta, Missing, Preparation, Rows
from schemas.topics import partition_of
from tests.kernel.toy import LANES, Counted, Do, Make, Platform, Toys, named


@dataclass
class Cpu:
    """A clock that only deciders move on."""

    seconds: float = 0.0
    spent: list[str] = field(default_factory=list)

    def now(self) -> float:
        return self.seconds


def slow(cpu: Cpu) -> Callable[[Do, Rows, Meta], Iterable[Decision]]:
    def decide(command: Do, rows: Rows, meta: Meta) -> Iterator[Decision]:
        cpu.seconds += float(command.detail)
        cpu.spent.append(command.detail)
        yield Counted()

    return decide


def platform_with(cpu: Cpu) -> Platform:
    watch = DecidingTime(0.1, cpu=cpu.now, wall=cpu.now)
    return Platform(Toys(slow=slow(cpu)), deciding=watch)


async def toys(platform: Platform, *names: str) -> None:
    for name in names:
        await platform.feed(platform.command(Make(toy_id=named(name))))


def of_another_lane(name: str) -> str:
    """A name whose toy lives in another lane than that of `name`."""
    place = partition_of(named(name), LANES)
    return next(f"far {n}" for n in range(100) if partition_of(named(f"far {n}"), LANES) != place)


async def test_a_batch_that_has_taken_too_long_is_closed() -> None:
    cpu = Cpu()
    platform = platform_with(cpu)
    await toys(platform, "a")
    writes = platform.database.transactions
    await platform.feed(*(platform.command(Do(toy_id=named("a"), how="slow", detail="0.06")) for _ in range(6)))
    assert len(platform.notes("a")) == 7
    assert platform.database.transactions - writes == 3  # Two at a time exceed it.


async def test_a_record_that_takes_too_long_is_tried_once_more_alone_and_then_is_a_dead_letter() -> None:
    cpu = Cpu()
    platform = platform_with(cpu)
    await toys(platform, "a", "b")
    outs = [
        platform.command(Do(toy_id=named(name), how="slow", detail=seconds))
        for name, seconds in (("a", "0.01"), ("a", "7"), ("a", "0.02"), ("b", "0.03"))
    ]
    await platform.feed(*outs)
    assert [platform.outcome(out)["status"] for out in outs] == ["succeeded", "failed", "succeeded", "succeeded"]
    assert cpu.spent.count("7") == 3  # In its batch, alone, and once more.
    (letter,) = platform.database.letters.values()
    assert letter.code == "deciding_too_long"


def spin(command: Do, rows: Rows, meta: Meta) -> Iterator[Decision]:
    while command.how == "spin":
        pass
    yield Counted()


def recurse(command: Do, rows: Rows, meta: Meta) -> Iterator[Decision]:
    yield from recurse(command, rows, meta)


@pytest.mark.parametrize("how", ["spin", "recurse", "raise"])
async def test_a_decider_that_does_not_end_harms_nobody_else(how: str) -> None:
    watch = DecidingTime(0.02)
    platform = Platform(Toys(spin=spin, recurse=recurse), deciding=watch)
    await toys(platform, "a", "b")
    outs = [platform.command(Do(toy_id=named(name), how=word)) for name in "ab" for word in ("count", how, "count")]
    with interrupting(watch):
        await platform.feed(*outs)
    assert [platform.outcome(out)["status"] for out in outs] == ["succeeded", "failed", "succeeded"] * 2
    assert (len(platform.notes("a")), len(platform.notes("b"))) == (3, 3)


class Workshop:
    """Makes one thing that a decision needs, when it is told to."""

    def __init__(self) -> None:
        self.made = 0
        self.known: set[str] = set()
        self.go_on = asyncio.Event()
        self.broken = False

    async def background(self, make: Callable[[], Any]) -> Any:
        await self.go_on.wait()
        return make()

    def decide(self, command: Do, rows: Rows, meta: Meta) -> Iterator[Decision]:
        if command.detail not in self.known:
            raise Missing(work=[Preparation(command.detail, self._make, lambda _: self.known.add(command.detail))])
        yield Counted(note=command.detail)

    def _make(self) -> None:
        self.made += 1
        if self.broken:
            raise ZeroDivisionError("a bug")


async def test_only_the_lane_that_needs_something_waits_for_it() -> None:
    workshop = Workshop()
    platform = Platform(Toys(need=workshop.decide), background=workshop.background)
    far = of_another_lane("a")
    await toys(platform, "a", far)
    needs = [platform.command(Do(toy_id=named("a"), how=how, detail="x")) for how in ("need", "count", "need")]
    others = [platform.command(Do(toy_id=named(far))) for _ in range(2)]
    await platform.feed(needs[0], others[0], needs[1])
    await platform.feed(others[1], needs[2])
    assert (len(platform.notes("a")), len(platform.notes(far))) == (1, 3)
    woken = asyncio.Event()
    platform.kernel.preparations.wake = woken.set
    workshop.go_on.set()
    await woken.wait()
    await platform.kernel.handle([])
    assert (platform.notes("a")[1:], workshop.made) == (["x", "x", "x"], 1)


@pytest.mark.parametrize("rows_max", [1, 2, 100])
async def test_what_is_behind_in_its_lane_waits_also_if_it_comes_in_another_part_of_the_batch(rows_max: int) -> None:
    workshop = Workshop()
    platform = Platform(Toys(need=workshop.decide), background=workshop.background, limits=Limits(rows_max=rows_max))
    await toys(platform, "a")
    await platform.feed(*(platform.command(Do(toy_id=named("a"), how=how, detail="x")) for how in ("need", "count")))
    (lane,) = [each for each in platform.kernel.lanes.values() if each.held]
    assert (len(platform.notes("a")), len(lane.held)) == (1, 2)
    woken = asyncio.Event()
    platform.kernel.preparations.wake = woken.set
    workshop.go_on.set()
    await woken.wait()
    await platform.kernel.handle([])
    assert len(platform.notes("a")) == 3


async def test_what_cannot_be_made_is_a_dead_letter_and_its_lane_goes_on() -> None:
    workshop = Workshop()
    workshop.broken = True
    platform = Platform(Toys(need=workshop.decide))
    await toys(platform, "a")
    outs = [platform.command(Do(toy_id=named("a"), how=how, detail="x")) for how in ("need", "count")]
    await platform.feed(*outs)
    assert [platform.outcome(out)["status"] for out in outs] == ["failed", "succeeded"]
