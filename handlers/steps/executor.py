"""Executing steps that no worker took itself: claim, execute, store the answer, tell the lane."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from bus.postgres import DRIVER_ERRORS
from bus.store import Log, Out, SendFailed
from handlers.steps.leases import ExpiredLease, Leases, RunOf
from handlers.steps.pool import Result, StepPool
from projections.runtime import NodeRun
from schemas import registry
from schemas.envelope import Envelope
from schemas.messages import Command, derive
from schemas.runtime import ExpireLease
from schemas.topics import COMMANDS, partition_of
from schemas.workflow.graph import Program

log = logging.getLogger("agent_platform.steps")

DATABASE_ERRORS = DRIVER_ERRORS
STORE_PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 3.0)
ProgramById = Callable[[str], Awaitable[Program]]


class Executor:
    """Claims ready steps of its pool's kinds while there is room. `wake()`: a hint says that some are ready.

    A claim is one statement, and so is storing answers; the record to the lane follows, and if it is lost the
    lane's sweeper finds the stored answer.
    """

    def __init__(
        self, pool: StepPool, leases: Leases, out: Log, program: ProgramById, *, poll_seconds: float = 0.5
    ) -> None:
        self._pool = pool
        self._leases = leases
        self._log = out
        self._program = program
        self._poll_seconds = poll_seconds
        self._hinted = asyncio.Event()
        self._finished: list[tuple[Result, asyncio.Future[None]]] = []
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
                        claimed += await self._claim(kind, min(room, 100))
            except DATABASE_ERRORS as error:
                log.warning("claiming steps waits for Postgres: %s", error)
            if not claimed:
                self._hinted.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hinted.wait(), self._poll_seconds)

    async def _claim(self, kind: str, count: int) -> int:
        before = time.monotonic()
        claimed = await self._leases.claim(kind, count)
        for row, run in claimed:
            await self._start(row, run, before)
        return len(claimed)

    async def _start(self, row: NodeRun, run: RunOf, leased_at: float) -> None:
        program = await self._program(run.version_id)
        self._pool.take(row.kind)
        node = program.nodes[program.by_id[row.node_id]]
        self._pool.start(self._pool.prepare(row, node, run.traceparent, run.correlation_id, leased_at))

    async def deliver(self, result: Result) -> None:
        """Store an answer and send it; what comes together is stored together."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._finished.append((result, future))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.ensure_future(self._store())
        await future

    async def _store(self) -> None:
        while self._finished:
            batch, self._finished = self._finished, []
            await self._store_patiently([result for result, _ in batch])
            for _, future in batch:
                if not future.done():
                    future.set_result(None)

    async def _store_patiently(self, results: Sequence[Result]) -> None:
        """Try for about as long as a lease lasts: an answer that is dropped means that its effect is repeated."""
        for pause in (*STORE_PAUSES_SECONDS, None):
            try:
                await self._store_batch(results)
                return
            except DATABASE_ERRORS as error:
                log.warning("answers of %d steps could not be stored: %s", len(results), error)
            if pause is not None:
                await asyncio.sleep(pause)

    async def _store_batch(self, results: Sequence[Result]) -> None:
        accepted = await self._leases.finish([
            (result.row.id, result.row.lease_token, _stored(result)) for result in results
        ])  # fmt: skip
        outs = [result.out for result in results if result.row.id in accepted]
        if outs:
            self._log.enqueue(outs).add_done_callback(_noted)


def _noted(sending: asyncio.Future[None]) -> None:
    if not sending.cancelled() and sending.exception() is not None:
        log.warning("answers were stored and not sent, their lanes will find them: %s", sending.exception())


def _stored(result: Result) -> bytes:
    return result.command.type.encode() + b"\n" + result.command.encode()


class Heartbeats:
    """Renews the leases of steps that take long; withdraws those that are no longer ours."""

    def __init__(self, pool: StepPool, leases: Leases, seconds: float) -> None:
        self._pool = pool
        self._leases = leases
        self._seconds = seconds

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            held = self._pool.renewable(self._seconds / 2)
            if not held:
                continue
            started = time.monotonic()
            try:
                status = await self._leases.renew([h.row.id for h in held], [h.row.lease_token for h in held])
            except DATABASE_ERRORS as error:
                log.warning("leases were not renewed: %s", error)
                continue
            for each in held:
                if each.row.id not in status:
                    self._pool.withdraw(each, cancelled=False)
                elif status[each.row.id] == "cancelling":
                    self._pool.withdraw(each, cancelled=True)
                else:
                    self._pool.renewed(each, started)


class Sweeper:
    """For the lanes this process owns: tells them of leases that ran out and of answers that they did not hear."""

    def __init__(
        self, leases: Leases, out: Log, lanes: Callable[[], Sequence[int]], partitions: int, seconds: float = 1.0
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
    name, body = (row.result or b"").split(b"\n", 1)
    return registry.decode_command(name.decode(), body, trusted=True)
