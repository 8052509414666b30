"""An executor goes on whatever one step is: it fails it, gives it back, or leaves it to be found, its siblings run."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable, Sequence, Set
from typing import Any

import asyncpg
import pytest

from bus.store import Out
from handlers.steps.executor import Executor, Heartbeats, Sweeper
from handlers.steps.leases import Claimed, ExpiredLease, RunOf
from handlers.steps.pool import StepPool
from handlers.steps.port import StepCall, StepFailed, StepResult
from projections.runtime import NodeRun
from schemas import registry
from schemas.messages import Command, Rejected
from schemas.runtime import CompleteNode, FailNode
from schemas.workflow.graph import Program
from tests.patience import patient
from tests.schemas.workflows import accepted, node

PROGRAM = accepted(node("call", "tool", tool_binding_id="x"))
GOOD = "good"


def step(version: str = GOOD, *, tenant_id: str = "t1", timeout_seconds: float = 0.0, **changes: Any) -> Claimed:
    """A claimed step of the node `call`, in a run of this version."""
    empty: dict[str, Any] = {"str": "", "int": 0, "float": 0.0, "bool": False}
    fields: dict[str, Any] = {field.name: empty.get(str(field.type)) for field in dataclasses.fields(NodeRun)}
    fields |= {"id": str(uuid.uuid4()), "run_id": str(uuid.uuid4()), "tenant_id": tenant_id, "kind": "tool"}
    fields |= {"node_id": "call", "status": "queued", "ready": True, "lease_token": 1}
    fields |= {"timeout_seconds": timeout_seconds}
    return Claimed(NodeRun(**(fields | changes)), RunOf(version, "", ""))


class Platform:
    """An executor over leases, a log and programs in memory. What an effect does is decided by `effect`."""

    def __init__(self, room: int = 50) -> None:
        self.waiting: list[Claimed] = []
        self.claims: list[Set[str]] = []
        self.given_back: list[str] = []
        self.abandoned: list[str] = []
        self.answers: dict[str, Command] = {}
        self.sent: list[Out] = []
        self.renewed: list[str] = []
        self.effect: Callable[[StepCall], Any] = lambda call: StepResult({"n": 1})
        self.programs: dict[str, Program | Exception] = {GOOD: PROGRAM}
        self.storing: list[Exception] = []
        self.sending: list[Exception] = []
        self.pool = StepPool(
            {"tool": self._perform},
            {"tool": room},
            owner="w",
            deliver=self._deliver,
            abandon=self.abandon,
            default_timeouts={"tool": 60.0},
        )
        self.executor = Executor(self.pool, self, self, self._program, poll_seconds=0.001)

    async def _program(self, version_id: str) -> Program:
        found = self.programs[version_id]
        if isinstance(found, Exception):
            raise found
        return found

    async def _perform(self, call: StepCall) -> StepResult:
        answer = self.effect(call)
        if asyncio.iscoroutine(answer):
            answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, StepResult)
        return answer

    async def _deliver(self, result: Any) -> None:
        await self.executor.deliver(result)

    # The leases.

    async def claim(self, kind: str, count: int, full: Set[str] = frozenset()) -> list[Claimed]:
        self.claims.append(full)
        free = [each for each in self.waiting if each.row.tenant_id not in full][:count]
        self.waiting = [each for each in self.waiting if each not in free]
        return free

    async def finish(self, results: Sequence[tuple[str, int, bytes]]) -> set[str]:
        if self.storing:
            raise self.storing.pop()
        for id, _, stored in results:
            name, body = stored.split(b"\n", 1)
            self.answers[id] = registry.decode_command(name.decode(), body, trusted=True)
        return {id for id, _, _ in results}

    async def give_back(self, ids: Sequence[str], tokens: Sequence[int]) -> None:
        self.given_back += ids

    async def abandon(self, row: NodeRun) -> None:
        self.abandoned.append(row.id)

    async def renew(self, ids: Sequence[str], tokens: Sequence[int]) -> dict[str, str]:
        self.renewed += ids
        return dict.fromkeys(ids, "running")

    # The log.

    async def publish(self, records: Sequence[Out]) -> None:
        self.sent += records

    def encoded(self, records: Sequence[Out]) -> Sequence[Out]:
        return records

    def enqueue(self, records: Sequence[Out], *, patience: float = 0.0) -> asyncio.Future[None]:
        if self.sending:
            raise self.sending.pop()
        self.sent += records
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.ensure_future(self.executor.run())
        try:
            yield
            assert not task.done(), "the executor has ended"
        finally:
            task.cancel()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(patient(10)):
            while not condition():
                await asyncio.sleep(0.001)

    async def executed(self, *steps: Claimed) -> None:
        """Offer these steps, and wait until each was answered, given back or abandoned."""
        self.waiting += steps
        async with self.working():
            await self.until(lambda: all(map(self.is_done, steps)) and not self.pool.held)

    def is_done(self, each: Claimed) -> bool:
        return each.row.id in {*self.answers, *self.given_back, *self.abandoned}

    def failure(self, each: Claimed) -> FailNode:
        answer = self.answers[each.row.id]
        assert isinstance(answer, FailNode), answer
        return answer


def invalid(code: str) -> Rejected:
    return Rejected("version_invalid", "errors", status=422, errors=({"pointer": "", "code": code, "detail": ""},))


BROKEN: dict[str, tuple[dict[str, Any], Exception | None]] = {
    "the version is gone": ({"version": "x"}, LookupError("there is no such version")),
    "the definition is broken": ({"version": "x"}, invalid("dangling_edge")),
    "resolving has a defect": ({"version": "x"}, RecursionError("too deep")),
    "the version has no such node": ({"node_id": "gone"}, None),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_step_that_cannot_be_resolved_fails_alone(what: str) -> None:
    platform = Platform()
    changes, error = BROKEN[what]
    if error is not None:
        platform.programs["x"] = error
    bad, siblings = step(**changes), [step() for _ in range(49)]
    await platform.executed(*siblings[:20], bad, *siblings[20:])
    failure = platform.failure(bad)
    assert (failure.error.code, failure.retryable) == ("step_unresolvable", False)
    assert all(isinstance(platform.answers[each.row.id], CompleteNode) for each in siblings)
    assert platform.pool.room("tool") == 50
    assert {out.key for out in platform.sent} == {each.row.run_id for each in (bad, *siblings)}


async def test_a_row_that_cannot_be_read_fails_alone() -> None:
    platform, sibling = Platform(), step()
    bad = step()._replace(problem="its input is no JSON")
    await platform.executed(bad, sibling)
    assert platform.failure(bad).error.code == "step_unresolvable"
    assert isinstance(platform.answers[sibling.row.id], CompleteNode)


@pytest.mark.parametrize("error", [invalid("unknown_node_type"), asyncpg.ConnectionDoesNotExistError("gone")])
async def test_a_step_that_another_process_may_know_is_given_back(error: Exception) -> None:
    """A node type of a newer release; or Postgres does not answer just now."""
    platform = Platform()
    platform.programs["x"] = error
    new, sibling = step("x"), step()
    await platform.executed(new, sibling)
    assert platform.given_back == [new.row.id]
    assert isinstance(platform.answers[sibling.row.id], CompleteNode)
    assert platform.pool.room("tool") == 50


@pytest.mark.parametrize(
    ("effect", "code"),
    [
        (StepFailed("odd \ud800", "x"), "odd \\ud800"),
        (StepFailed("c" * 10_000, "x"), "c" * 128),
        (StepFailed("broken", object()), "step_error"),  # type: ignore[arg-type]
        (SystemExit(1), "step_error"),
        (asyncio.CancelledError(), "step_error"),
    ],
    ids=["surrogate", "long code", "no message", "exit", "cancelled from within"],
)
async def test_whatever_an_effect_ends_with_is_an_answer(effect: BaseException, code: str) -> None:
    platform, one = Platform(), step()
    platform.effect = lambda call: effect
    await platform.executed(one)
    assert platform.failure(one).error.code == code


async def test_an_answer_too_large_for_a_message_fails_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.steps.executor.MESSAGE_BYTES_MAX", 1_000)
    platform, large, small = Platform(), step(), step()
    platform.effect = lambda call: StepResult({"text": "x" * 2_000 if call.node_run_id == large.row.id else ""})
    await platform.executed(large, small)
    assert platform.failure(large).error.code == "output_too_large"
    assert isinstance(platform.answers[small.row.id], CompleteNode)


async def test_answers_that_cannot_be_stored_are_left_to_the_sweepers() -> None:
    """And those that come after them are stored."""
    platform, one = Platform(), step()
    platform.storing = [RuntimeError("a defect"), RuntimeError("a defect")]
    await platform.executed(one)
    assert platform.abandoned == [one.row.id]
    two = step()
    await platform.executed(two)
    assert isinstance(platform.answers[two.row.id], CompleteNode)


async def test_an_answer_that_was_stored_and_not_sent_is_done() -> None:
    """The sweep finds the stored answer."""
    platform, one, two = Platform(), step(), step()
    platform.sending = [RuntimeError("a defect")]
    await platform.executed(one)
    await platform.executed(two)
    assert platform.abandoned == []
    assert set(platform.answers) == {one.row.id, two.row.id}


async def test_a_step_whose_task_dies_is_found_at_once() -> None:
    platform, one = Platform(), step()

    async def deliver(result: Any) -> None:
        raise RuntimeError("a defect")

    platform.pool.deliver = deliver
    await platform.executed(one)
    assert platform.abandoned == [one.row.id]
    assert platform.pool.held == {}


async def test_a_claim_that_fails_does_not_end_the_executor() -> None:
    platform, one = Platform(), step()
    claim = platform.claim
    failures = [RuntimeError("a defect")]

    async def failing(kind: str, count: int, full: Set[str] = frozenset()) -> list[Claimed]:
        if failures:
            raise failures.pop()
        return await claim(kind, count, full)

    platform.claim = failing  # type: ignore[method-assign]
    await platform.executed(one)
    assert isinstance(platform.answers[one.row.id], CompleteNode)


# Shares of tenants.


async def test_a_tenant_at_its_share_lets_others_first_and_alone_takes_all() -> None:
    platform = Platform(room=10)
    big, small = [step(tenant_id="big") for _ in range(20)], [step(tenant_id="small") for _ in range(3)]
    ends = {each.row.id: asyncio.Event() for each in (*big, *small)}

    async def wait(call: StepCall) -> StepResult:
        await ends[call.node_run_id].wait()
        return StepResult({})

    platform.effect = wait
    platform.waiting = list(big)
    async with platform.working():
        await platform.until(lambda: platform.pool.room("tool") == 0)
        assert {held.row.tenant_id for held in platform.pool.held.values()} == {"big"}
        platform.waiting += small
        for ended, begun in zip(big, small, strict=False):  # What one step leaves is the others', the oldest first.
            ends[ended.row.id].set()
            await platform.until(lambda: platform.pool.room("tool") == 0 and begun.row.id in platform.pool.held)  # noqa: B023
        for event in ends.values():
            event.set()
        await platform.until(lambda: len(platform.answers) == 23)


async def test_a_lanes_own_steps_keep_to_their_share_while_others_were_refused() -> None:
    pool = Platform(room=4).pool
    held = [pool.lease(step(tenant_id="big").row, 0.0, new=True) for _ in range(4)]
    assert all(held)
    assert pool.lease(step(tenant_id="small").row, 0.0, new=True) is None
    pool.give_back(held[0])  # type: ignore[arg-type]
    assert pool.lease(step(tenant_id="big").row, 0.0, new=True) is None
    assert pool.lease(step(tenant_id="small").row, 0.0, new=True) is not None


# Time-outs and heartbeats.


async def test_a_node_without_a_time_out_gets_its_kinds() -> None:
    """By the sweep of the heartbeats, not by a timer of its own."""
    platform, one, bounded = Platform(), step(), step(timeout_seconds=600.0)
    platform.effect = lambda call: asyncio.sleep(3600)
    platform.waiting = [one, bounded]
    heartbeats = Heartbeats(platform.pool, platform, seconds=0.01)
    beating = asyncio.ensure_future(heartbeats.run())
    async with platform.working():
        await platform.until(lambda: len(platform.pool.held) == 2)
        await platform.until(lambda: one.row.id in platform.renewed)
        assert platform.answers == {}
        for held in platform.pool.held.values():
            held.since -= 61
        await platform.until(lambda: one.row.id in platform.answers)
        assert platform.failure(one).error.code == "timeout"
        assert platform.failure(one).retryable
        assert bounded.row.id not in platform.answers
    beating.cancel()
    await platform.pool.stop(0)


async def test_a_step_that_ignores_its_end_is_renewed_no_longer() -> None:
    platform, one, go = Platform(), step(), asyncio.Event()

    async def stubborn(call: StepCall) -> StepResult:
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()
        return StepResult({})

    platform.effect = stubborn
    platform.waiting = [one]
    async with platform.working():
        await platform.until(lambda: len(platform.pool.held) == 1)
        (held,) = platform.pool.held.values()
        before = platform.pool.renewable(0.0)
        platform.pool.withdraw(held, StepFailed("timeout", "too long"))
        after = platform.pool.renewable(0.0)
        await asyncio.sleep(0)
        go.set()
        assert (before, after) == ([held], [])
        await platform.until(lambda: not platform.pool.held)


# The sweeper.


class Swept:
    """Leases with one stored answer that nobody can read, and one that can be."""

    def __init__(self) -> None:
        complete = CompleteNode(run_id=str(uuid.uuid4()), node_run_id=str(uuid.uuid4()), lease_token=1)
        stored = complete.type.encode() + b"\n" + complete.encode()
        self.rows = [self._row(b"runtime.unheard_of\n{}"), self._row(b""), self._row(stored)]

    def _row(self, result: bytes) -> ExpiredLease:
        return ExpiredLease(str(uuid.uuid4()), str(uuid.uuid4()), "t1", 0, 1, "", "", result)

    async def expired(self, lanes: Sequence[int]) -> list[ExpiredLease]:
        return []

    async def unacknowledged(self, lanes: Sequence[int]) -> list[ExpiredLease]:
        return self.rows


async def test_a_stored_answer_that_cannot_be_read_fails_its_step_alone() -> None:
    swept, log = Swept(), Platform()
    sweeper = asyncio.ensure_future(Sweeper(swept, log, lambda: [0], 4, seconds=0.001).run())
    await log.until(lambda: len(log.sent) >= 3)
    assert not sweeper.done()
    sweeper.cancel()
    kinds = [dict(out.headers)["ce_type"].decode() for out in log.sent[:3]]
    assert kinds == ["runtime.fail_node", "runtime.fail_node", "runtime.complete_node"]
