"""Executing steps that no worker took itself: claim, execute, store the answer, tell the lane."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bus.postgres import DRIVER_ERRORS
from bus.store import Log, Out, SendFailed
from handlers.steps.leases import Claimed, ExpiredLease, HeldLeases, LostLeases, RunOf
from handlers.steps.pool import Held, Result, StepPool
from handlers.steps.port import StepFailed
from handlers.steps.resolve import UNRESOLVABLE, NotKnownHere, ProgramById, node_of
from projections.runtime import NodeRun
from schemas import registry
from schemas.envelope import Envelope
from schemas.messages import Command, derive
from schemas.runtime import ExpireLease, FailNode, Failure
from schemas.topics import COMMANDS, MESSAGE_BYTES_MAX, partition_of

log = logging.getLogger("agent_platform.steps")

DATABASE_ERRORS = DRIVER_ERRORS
STORE_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 3.0)
CLAIM_MAX = 100
"""Steps in one claim."""


class _Packed(NamedTuple):
    """A result in the bytes that are stored, and the record that is sent."""

    row: NodeRun
    stored: bytes
    out: Out


class Executor:
    """Claims ready steps of its pool's kinds while there is room. `wake()`: a hint says that some are ready.

    A claim is one statement, and so is storing answers; the record to the lane follows, and if it is lost the
    lane's sweeper finds the stored answer. Whatever is wrong with one step ends neither this nor other steps.
    """

    def __init__(
        self, pool: StepPool, leases: HeldLeases, out: Log, program: ProgramById, *, poll_seconds: float = 0.5
    ) -> None:
        self._pool = pool
        self._leases = leases
        self._log = out
        self._program = program
        self._poll_seconds = poll_seconds
        self._hinted = asyncio.Event()
        self._finished: list[tuple[_Packed, asyncio.Future[None]]] = []
        self._storing: asyncio.Task[None] | None = None

    def wake(self) -> None:
        self._hinted.set()

    async def run(self) -> None:
        """Claim until cancelled."""
        while True:
            claimed = 0
            try:
                for kind in self._pool.kinds:
                    room = self._pool.room(kind)
                    if room > 0:
                        claimed += await self._claim(kind, min(room, CLAIM_MAX))
            except DATABASE_ERRORS as error:
                log.warning("claiming steps waits for Postgres: %s", error)
            except Exception:
                log.exception("claiming steps failed")
            if not claimed:
                self._hinted.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hinted.wait(), self._poll_seconds)

    async def _claim(self, kind: str, count: int) -> int:
        """Claim and begin steps: of tenants that hold their share only what others leave. How many were begun."""
        before = time.monotonic()
        full = self._pool.full(kind)
        claimed = await self._leases.claim(kind, count, full)
        if full and len(claimed) < count:
            claimed += await self._leases.claim(kind, count - len(claimed))
        for each in claimed:
            self._pool.take(each.row)
        given_back = [each.row for each in claimed if not await self._begin(each, before)]
        if given_back:
            await self._leases.give_back([row.id for row in given_back], [row.lease_token for row in given_back])
        return len(claimed) - len(given_back)

    async def _begin(self, claimed: Claimed, leased_at: float) -> bool:
        """Execute a step, or answer why it cannot be. False: it is to be given back."""
        row, run = claimed.row, claimed.run or RunOf("", "", "")
        try:
            node = await node_of(claimed, self._program)
            held = self._pool.prepare(row, node, run.traceparent, run.correlation_id, leased_at)
        except NotKnownHere as reason:
            log.warning("step %s is given back: %s", row.id, reason)
            self._pool.give_back(row)
            return False
        except StepFailed as failed:
            log.warning("step %s: %s", row.id, failed.message)
            self._pool.give_back(row)
            self._submit(self._pool.failure(row, run.traceparent, run.correlation_id, failed))
            return True
        self._pool.start(held)
        return True

    async def deliver(self, result: Result) -> None:
        """Store an answer and send it; what comes together is stored together.

        Raises what storing it raised if that is no fault of the database.
        """
        await self._submit(result)

    def _submit(self, result: Result) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_noted_unstored)
        self._finished.append((self._pack(result), future))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.ensure_future(self._store())
        return future

    def _pack(self, result: Result) -> _Packed:
        """The answer as it is stored and sent; one that is too large becomes a failure of its step."""
        out = result.out
        if len(out.body) > MESSAGE_BYTES_MAX:
            failed = StepFailed("output_too_large", f"an answer of {len(out.body)} bytes", retryable=False)
            envelope = result.envelope
            result = self._pool.failure(result.row, envelope.traceparent, envelope.correlation_id, failed)
            out = result.out
        return _Packed(result.row, result.command.type.encode() + b"\n" + out.body, out)

    async def _store(self) -> None:
        while self._finished:
            batch, self._finished = self._finished, []
            if await self._store_all(batch) is not None:  # Then perhaps because of one of them only.
                for each in batch:
                    defect = await self._store_all([each])
                    if defect is not None:
                        each[1].set_exception(defect)
            for _, future in batch:
                if not future.done():
                    future.set_result(None)

    async def _store_all(self, batch: Sequence[tuple[_Packed, asyncio.Future[None]]]) -> Exception | None:
        try:
            await self._store_patiently([packed for packed, _ in batch])
        except Exception as defect:
            return defect
        return None

    async def _store_patiently(self, results: Sequence[_Packed]) -> None:
        """Try for about as long as a lease lasts: an answer that is dropped means that its effect is repeated."""
        for pause in (*STORE_PAUSES_SECONDS, None):
            try:
                await self._store_batch(results)
                return
            except DATABASE_ERRORS as error:
                log.warning("answers of %d steps could not be stored: %s", len(results), error)
            if pause is not None:
                await asyncio.sleep(pause)

    async def _store_batch(self, results: Sequence[_Packed]) -> None:
        accepted = await self._leases.finish([(each.row.id, each.row.lease_token, each.stored) for each in results])
        outs = [each.out for each in results if each.row.id in accepted]
        if not outs:
            return
        try:
            self._log.enqueue(outs).add_done_callback(_noted)
        except Exception as error:
            log.warning("answers were stored and not sent, their lanes will find them: %s", error)


def _noted(sending: asyncio.Future[None]) -> None:
    if not sending.cancelled() and sending.exception() is not None:
        log.warning("answers were stored and not sent, their lanes will find them: %s", sending.exception())


def _noted_unstored(stored: asyncio.Future[None]) -> None:
    if not stored.cancelled() and stored.exception() is not None:
        log.error("an answer could not be stored", exc_info=stored.exception())


class Heartbeats:
    """Renews the leases of steps that take long; ends those that are no longer ours or past their kind's time-out."""

    def __init__(self, pool: StepPool, leases: HeldLeases, seconds: float) -> None:
        self._pool = pool
        self._leases = leases
        self._seconds = seconds

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            for held, timeout in self._pool.overdue():
                self._pool.withdraw(held, timeout)
            held_long = self._pool.renewable(self._seconds / 2)
            if held_long:
                await self._renew(held_long)

    async def _renew(self, held: Sequence[Held]) -> None:
        started = time.monotonic()
        try:
            status = await self._leases.renew([h.row.id for h in held], [h.row.lease_token for h in held])
        except DATABASE_ERRORS as error:
            log.warning("leases were not renewed: %s", error)
            return
        for each in held:
            if each.row.id not in status:
                self._pool.withdraw(each, None)
            elif status[each.row.id] == "cancelling":
                self._pool.withdraw(each, StepFailed("cancelled", "the run is being cancelled", retryable=False))
            else:
                self._pool.renewed(each, started)


class Sweeper:
    """For the lanes this process owns: tells them of leases that ran out and of answers that they did not hear."""

    def __init__(
        self, leases: LostLeases, out: Log, lanes: Callable[[], Sequence[int]], partitions: int, seconds: float = 1.0
    ) -> None:
        self._leases = leases
        self._log = out
        self._lanes = lanes
        self._partitions = partitions
        self._seconds = seconds

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            lanes = self._lanes()
            if not lanes:
                continue
            try:
                expired = await self._leases.expired(lanes)
                unacknowledged = await self._leases.unacknowledged(lanes)
                records = [self._record(row, _expiry(row), "expire") for row in expired]
                records += [self._record(row, _answer(row), "result") for row in unacknowledged]
                if records:
                    await self._log.publish(records)
            except (*DATABASE_ERRORS, SendFailed) as error:
                log.warning("the sweep of leases waits: %s", error)
            except Exception:
                log.exception("the sweep of leases failed")

    def _record(self, row: ExpiredLease, command: Command, what: str) -> Out:
        envelope = Envelope(
            id=derive(row.id, f"{what}:{row.lease_token}"),
            type=command.type,
            tenant_id=row.tenant_id,
            subject=row.run_id,
            correlation_id=row.correlation_id,
            causation_id=row.id,
            traceparent=row.traceparent,
        )
        partition = partition_of(row.run_id, self._partitions)
        return Out(-1, 0, COMMANDS, partition, row.run_id, envelope.headers(), command.encode(), row.tenant_id)


def _expiry(row: ExpiredLease) -> Command:
    return ExpireLease(run_id=row.run_id, node_run_id=row.id, lease_token=row.lease_token)


def _answer(row: ExpiredLease) -> Command:
    """The stored answer, or that it cannot be read: the next attempt may do better."""
    name, _, body = (row.result or b"").partition(b"\n")
    try:
        return registry.decode_command(name.decode(), body, trusted=True)
    except Exception as error:
        log.warning("the stored answer of step %s cannot be read: %s", row.id, error)
        failure = Failure(code=UNRESOLVABLE, message="the stored answer cannot be read")
        return FailNode(run_id=row.run_id, node_run_id=row.id, lease_token=row.lease_token, error=failure)
