"""Waiting for events: nothing is missed, nobody looks without a reason, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from dataclasses import dataclass, field, replace

import pytest

from bus.record_batches import Keyed
from gateway.http.ports import DatabaseUnavailable
from gateway.http.tail import Heard, Pace, Tail, Watch
from tests.patience import patient

RUN, OTHER = "6f1c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e", "0b0c3d0e-3a53-4a0b-9a51-0d4f7a3c2b1e"
ENDED = frozenset({"run_completed"})


def record(type: str, seq: int, key: str = RUN) -> Keyed:
    return Keyed(key.encode(), [("ce_type", type.encode()), ("ce_sequence", str(seq).encode())])


class Script:
    """A reader that does what the test gives it to do: to stand at the end, to read records, to fail."""

    def __init__(self) -> None:
        self.ends: asyncio.Queue[Exception | None] = asyncio.Queue()
        self.given: asyncio.Queue[list[Keyed] | Exception] = asyncio.Queue()
        self.calls: list[str] = []

    async def to_end(self) -> None:
        self.calls.append("to end")
        found = await self.ends.get()
        if found is not None:
            raise found

    async def read(self, keys: Container[bytes]) -> list[Keyed]:
        self.calls.append("read")
        found = await self.given.get()
        if isinstance(found, Exception):
            raise found
        return [each for each in found if each.key in keys]

    async def close(self) -> None:
        self.calls.append("close")


@dataclass
class Looks:
    """What somebody sees who looks: nothing, until it is `there`. Counts."""

    there: str | None = None
    count: int = 0
    failures: list[Exception] = field(default_factory=list)

    async def __call__(self) -> str | None:
        self.count += 1
        if self.failures:
            raise self.failures.pop()
        return self.there


@pytest.fixture
def script() -> Script:
    return Script()


NEVER = 1e6
BY_EVENTS = Pace(look_seconds=NEVER, look_seconds_deaf=NEVER, linger_seconds=0, back_off_seconds=0)
"""Who is not woken sees nothing for days."""


@contextlib.asynccontextmanager
async def running(script: Script, pace: Pace) -> AsyncIterator[Tail]:
    tail = Tail(script, pace)
    task = asyncio.create_task(tail.run())
    try:
        yield tail
    finally:
        task.cancel()
        await asyncio.wait({task})


@pytest.fixture
async def tail(script: Script) -> AsyncIterator[Tail]:
    async with running(script, BY_EVENTS) as tail:
        yield tail


async def turns() -> None:
    """Let everybody go on who can."""
    for _ in range(50):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def waiting(watch: Watch, look: Callable[[], Awaitable[str | None]]) -> AsyncIterator[asyncio.Task[str | None]]:
    """Somebody who waits, long behind the time a test has."""
    task = asyncio.create_task(watch.until(look, asyncio.get_running_loop().time() + NEVER))
    await turns()
    try:
        async with asyncio.timeout(patient(30)):
            yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def reading(script: Script) -> None:
    script.ends.put_nowait(None)
    await turns()


async def test_what_is_there_already_is_seen_without_any_event(tail: Tail) -> None:
    with tail.watch(RUN) as watch:
        async with waiting(watch, Looks("done")) as task:
            assert await task == "done"


async def test_nobody_looks_between_wake_ups(tail: Tail, script: Script) -> None:
    looks = Looks()
    with tail.watch(RUN, ENDED) as watch:
        await reading(script)
        async with waiting(watch, looks) as task:
            assert looks.count == 1
            for seq in range(1, 100):
                script.given.put_nowait([record("node_completed", seq), record("run_completed", seq, OTHER)])
            await turns()
            assert looks.count == 1
            looks.there = "done"
            script.given.put_nowait([record("node_completed", 100), record("run_completed", 101)])
            assert await task == "done"
    assert looks.count == 2


async def test_events_that_come_together_are_one_look(tail: Tail, script: Script) -> None:
    looks = Looks()
    with tail.watch(RUN) as watch:
        await reading(script)
        async with waiting(watch, looks) as task:
            script.given.put_nowait([record("node_completed", seq) for seq in range(1, 9)])
            await turns()
            assert looks.count == 2
            assert not task.done()


async def test_an_event_during_a_look_is_not_lost(tail: Tail, script: Script) -> None:
    """It looked before the event and waits after it."""
    looks = Looks()

    async def slow() -> str | None:
        seen = await looks()
        if looks.count == 1:
            looks.there = "done"
            script.given.put_nowait([record("run_completed", 1)])
            await turns()
        return seen

    with tail.watch(RUN) as watch:
        await reading(script)
        async with waiting(watch, slow) as task:
            assert await task == "done"
    assert looks.count == 2


async def test_what_happens_before_the_reader_stands_at_the_end_is_seen_then(tail: Tail, script: Script) -> None:
    """No record of it will ever be read."""
    looks = Looks()
    with tail.watch(RUN, ENDED) as watch:
        async with waiting(watch, looks) as task:
            looks.there = "done"
            await turns()
            assert looks.count == 1
            await reading(script)
            assert await task == "done"


async def test_what_was_heard_before_the_first_look_costs_no_second_one(tail: Tail, script: Script) -> None:
    looks = Looks()
    with tail.watch(RUN) as watch:
        await reading(script)
        script.given.put_nowait([record("run_created", 1)])
        await turns()
        async with waiting(watch, looks):
            assert looks.count == 1


async def test_without_kafka_one_looks_from_time_to_time(script: Script) -> None:
    """Also who began to wait while Kafka was there."""
    looks = Looks()
    async with running(script, replace(BY_EVENTS, look_seconds_deaf=0.01)) as tail:
        with tail.watch(RUN, ENDED) as watch:
            await reading(script)
            async with waiting(watch, looks) as task:
                assert looks.count == 1
                script.given.put_nowait(ConnectionError("down"))
                await turns()
                looks.there = "done"
                assert await task == "done"
        assert not tail.is_reading


async def test_an_event_that_never_comes_is_not_waited_for(script: Script) -> None:
    looks = Looks()
    async with running(script, replace(BY_EVENTS, look_seconds=0.01)) as tail:
        with tail.watch(RUN, ENDED) as watch:
            await reading(script)
            async with waiting(watch, looks) as task:
                looks.there = "done"
                assert await task == "done"


async def test_after_an_outage_everybody_looks_and_hears_again(tail: Tail, script: Script) -> None:
    looks = Looks()
    with tail.watch(RUN, ENDED) as watch:
        await reading(script)
        async with waiting(watch, looks) as task:
            script.given.put_nowait(ConnectionError("gone"))
            await turns()
            assert script.calls == ["to end", "read", "close", "to end"]
            seen = looks.count
            await reading(script)
            assert looks.count == seen + 1
            looks.there = "done"
            script.given.put_nowait([record("run_completed", 7)])
            assert await task == "done"


async def test_a_record_that_tells_nothing_wakes_and_stops_nobody(tail: Tail, script: Script) -> None:
    looks = Looks()
    with tail.watch(RUN, ENDED) as watch:
        await reading(script)
        async with waiting(watch, looks) as task:
            looks.there = "done"
            script.given.put_nowait([Keyed(RUN.encode(), [("ce_sequence", b"x")])])
            assert await task == "done"
    assert "close" not in script.calls


async def test_nothing_is_read_while_nobody_waits(tail: Tail, script: Script) -> None:
    await turns()
    assert script.calls == []
    for _ in range(2):
        with tail.watch(RUN):
            await reading(script)
        script.given.put_nowait([])
        await turns()
        assert not tail.is_reading
    assert script.calls == ["to end", "read"] * 2


async def test_nobody_is_left_behind_by_one_who_leaves(tail: Tail, script: Script) -> None:
    looks = Looks()
    with tail.watch(RUN, ENDED) as watch:
        await reading(script)
        with tail.watch(RUN):
            pass
        async with waiting(watch, looks) as task:
            looks.there = "done"
            script.given.put_nowait([record("run_completed", 1)])
            assert await task == "done"


async def test_a_watch_tells_what_it_heard_last(tail: Tail, script: Script) -> None:
    with tail.watch(RUN) as watch:
        await reading(script)
        deadline = asyncio.get_running_loop().time() + patient(30)
        await watch.wait(deadline)  # The reader has come to the end.
        script.given.put_nowait([record("node_completed", 4), record("run_completed", 5)])
        assert await watch.wait(deadline) == Heard("run_completed", 5)


async def test_a_gateway_that_stops_lets_everybody_look_once_more(tail: Tail, script: Script) -> None:
    looks = Looks()
    with tail.watch(RUN) as watch:
        await reading(script)
        async with waiting(watch, looks) as task:
            tail.close()
            assert await task is None
        assert looks.count == 2
        async with waiting(watch, looks) as task:
            assert await task is None


async def test_a_database_that_is_away_is_asked_again(tail: Tail, script: Script) -> None:
    looks = Looks(failures=[DatabaseUnavailable("down")])
    with tail.watch(RUN) as watch:
        await reading(script)
        async with waiting(watch, looks) as task:
            looks.there = "done"
            script.given.put_nowait([record("node_completed", 1)])
            assert await task == "done"


async def test_the_wait_ends_with_a_last_look(tail: Tail) -> None:
    looks = Looks()
    now = asyncio.get_running_loop().time()
    with tail.watch(RUN) as watch:
        assert await watch.until(looks, now + 0.01) is None
    assert looks.count == 2
