"""Executing steps: leases on a bounded number, heartbeats, time-outs, results as commands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from bus.store import Incoming, Out
from bus.telemetry import SILENT, Step, Telemetry
from handlers.steps.port import Performers, StepCall, StepFailed
from infra.db import changed
from projections.runtime import LEASED, UNLISTED, NodeRun
from schemas.envelope import Envelope
from schemas.messages import JsonObject, derive, storable
from schemas.problems import printable
from schemas.runtime import VALUE_BYTES_MAX, CompleteNode, FailNode, Failure
from schemas.topics import COMMANDS
from schemas.workflow.graph import Node

log = logging.getLogger("agent_platform.steps")

MESSAGE_CHARACTERS_MAX = 2_000
CODE_CHARACTERS_MAX = 128
REFUSED_TENANTS_MAX = 100
REFUSED_SECONDS = 1.0
"""So long after a tenant found no room, those that hold their share leave room for it."""


@dataclass(slots=True)
class Held:
    """A step this process executes. `until`: by our monotonic clock, when its lease runs out.

    `traceparent`: that of its run, then of its own span. `withdrawn`: it was told to stop, and answers `ending`.
    """

    row: NodeRun
    node: Node
    traceparent: str
    correlation_id: str
    until: float
    since: float
    task: asyncio.Task[None] | None = None
    answered: bool = False
    withdrawn: bool = False
    ending: StepFailed | None = None


class Result(NamedTuple):
    """What a step answered: a command for its lane, handed over as `incoming` or sent as `out`."""

    row: NodeRun
    command: CompleteNode | FailNode
    envelope: Envelope

    @property
    def out(self) -> Out:
        row = self.row
        return Out(
            -1, 0, COMMANDS, row.lane, row.run_id, self.envelope.headers(), self.command.encode(), row.tenant_id
        )  # fmt: skip

    @property
    def incoming(self) -> Incoming:
        row = self.row
        return Incoming(row.lane, -1, row.run_id.encode(), (), b"", decoded=(self.envelope, self.command))


class StepPool:
    """Executes leased steps concurrently.

    `capacity` bounds each kind of step; `default_timeouts` are for nodes that name none (a sweep applies them:
    `overdue`). `deliver(result)` is called once per step, when it has an answer and its lease still holds by our own
    clock; a step whose lease has run out is dropped: somebody else repeats it. `abandon(row)` is called when the
    answer could not be delivered, for whatever reason: somebody else must find the step at once.
    """

    def __init__(
        self,
        performers: Performers,
        capacity: dict[str, int],
        *,
        owner: str,
        deliver: Callable[[Result], Awaitable[None]],
        abandon: Callable[[NodeRun], Awaitable[None]],
        default_timeouts: Mapping[str, float] = MappingProxyType({}),
        lease_seconds: float = 8.0,
        now: Callable[[], float] = time.time,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self.owner = owner
        self._telemetry = telemetry
        self.lease_seconds = lease_seconds
        self.performers = performers
        self._capacity = capacity
        self.deliver = deliver
        self.abandon = abandon
        self.default_timeouts = default_timeouts
        self._now = now
        self._room = {kind: count for kind, count in capacity.items() if kind in performers}
        self._tenants: dict[str, Counter[str]] = {kind: Counter() for kind in self._room}
        self._refused: dict[str, dict[str, float]] = {kind: {} for kind in self._room}
        self._closed = False
        self._leased_at: dict[str, float] = {}
        self.held: dict[str, Held] = {}

    def room(self, kind: str) -> int:
        return 0 if self._closed else self._room.get(kind, 0)

    def capacity(self, kind: str) -> int:
        """How many steps of a kind may be held at once."""
        return self._capacity.get(kind, 0)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in self.performers if self._capacity.get(kind)]

    def lease(self, row: NodeRun, at: float, *, new: bool) -> NodeRun | None:
        """The row leased to us from database time `at` on, or None if there is no room for its kind.

        `new`: it is inserted as leased, and its lane will find it for a while without a list.
        """
        if self.room(row.kind) <= 0 or (self._refused[row.kind] and self._must_wait(row)):
            self._refuse(row)
            return None
        self._take(row)
        self._leased_at[row.id] = time.monotonic()
        deadline = at + row.timeout_seconds if row.timeout_seconds else 0.0
        return changed(
            row,
            leased_by=self.owner,
            lease_until=at + self.lease_seconds,
            started_at=at,
            deadline_at=deadline,
            listed=UNLISTED if new else LEASED,
        )

    def full(self, kind: str) -> frozenset[str]:
        """The tenants that hold their share of a kind: others that wait come first."""
        tenants = self._tenants[kind]
        share = self._share(kind)
        return frozenset(tenant for tenant, held in tenants.items() if held >= share)

    def _share(self, kind: str) -> int:
        """An equal part for each tenant that holds some, and for one that may wait."""
        return max(1, self._capacity[kind] // (len(self._tenants[kind]) + 1))

    def _refuse(self, row: NodeRun) -> None:
        refused = self._refused.get(row.kind)
        if refused is not None and (len(refused) < REFUSED_TENANTS_MAX or row.tenant_id in refused):
            refused[row.tenant_id] = time.monotonic()

    def _must_wait(self, row: NodeRun) -> bool:
        """Whether its tenant holds its share while another one was refused a moment ago."""
        refused, now = self._refused[row.kind], time.monotonic()
        for tenant in [tenant for tenant, at in refused.items() if now - at > REFUSED_SECONDS]:
            del refused[tenant]
        others = len(refused) > (row.tenant_id in refused)
        return others and self._tenants[row.kind][row.tenant_id] >= self._share(row.kind)

    def take(self, row: NodeRun) -> None:
        """Room for a step that was claimed in Postgres."""
        self._take(row)

    def give_back(self, row: NodeRun) -> None:
        """A lease that was not committed, or whose step was not begun."""
        self._leave(row)
        self._leased_at.pop(row.id, None)

    def _take(self, row: NodeRun) -> None:
        self._room[row.kind] -= 1
        self._tenants[row.kind][row.tenant_id] += 1

    def _leave(self, row: NodeRun) -> None:
        self._room[row.kind] += 1
        tenants = self._tenants[row.kind]
        tenants[row.tenant_id] -= 1
        if not tenants[row.tenant_id]:
            del tenants[row.tenant_id]

    def prepare(
        self, row: NodeRun, node: Node, traceparent: str, correlation_id: str, leased_at: float | None = None
    ) -> Held:
        """What `start` takes.

        `leased_at`: by our monotonic clock, before the lease began; unless `lease` made it, which knows.
        """
        since = self._leased_at[row.id] if leased_at is None else leased_at
        return Held(row, node, traceparent, correlation_id, since + self.lease_seconds - 0.5, since)

    def start(self, held: Held) -> None:
        """Execute a step whose lease is committed."""
        self._leased_at.pop(held.row.id, None)
        self.held[held.row.id] = held
        held.task = asyncio.create_task(self._execute(held))

    def renewable(self, older_than_seconds: float) -> list[Held]:
        now = time.monotonic()
        held = (each for each in self.held.values() if now - each.since >= older_than_seconds and not each.withdrawn)
        return sorted(held, key=lambda each: each.row.id)

    def overdue(self) -> list[tuple[Held, StepFailed]]:
        """The steps past the default time-out of their kind, each with what that means."""
        now = time.monotonic()
        found = []
        for held in self.held.values():
            seconds = 0.0 if held.row.timeout_seconds else self.default_timeouts.get(held.row.kind, 0.0)
            if seconds and now - held.since >= seconds and not held.withdrawn:
                found.append((held, StepFailed("timeout", f"no answer in {seconds:g} s")))
        return found

    def renewed(self, held: Held, started: float) -> None:
        held.until = started + self.lease_seconds - 0.5

    def withdraw(self, held: Held, ending: StepFailed | None) -> None:
        """Stop a step: it answers `ending`, or nothing if its lease is somebody else's. One that has answered stays."""
        if held.answered or held.withdrawn:
            return
        held.withdrawn, held.ending = True, ending
        if held.task is not None:
            held.task.cancel()

    async def stop(self, seconds: float) -> None:
        """Let steps under way finish for so long; the others are repeated elsewhere when their leases run out."""
        self._closed = True
        tasks = {held.task: held for held in self.held.values() if held.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for task, held in tasks.items():
            held.withdrawn = True
            task.cancel()

    async def _execute(self, held: Held) -> None:
        row = held.row
        span, error = None, "withdrawn"
        try:
            span = self._telemetry.step(_described(held))
            held.traceparent = span.traceparent
            if time.monotonic() >= held.until:  # We stood still since: somebody else may be executing it.
                log.warning("the lease of step %s ran out before its start", row.id)
                return
            command = await self._ended(held, self._now())
            if command is None:
                log.info("step %s is withdrawn", row.id)
                return
            error = command.error.code if isinstance(command, FailNode) else ""
            if time.monotonic() < held.until:
                held.answered = True
                await self.deliver(self.result(held, command))
            else:
                log.warning("the lease of step %s ran out before its answer", row.id)
        except Exception:
            log.exception("the answer of step %s could not be delivered", row.id)
            await self._abandon(row)
        finally:
            if self.held.get(row.id) is held:
                del self.held[row.id]
            self._leave(row)
            if span is not None:
                span.end(error)

    async def _abandon(self, row: NodeRun) -> None:
        try:
            await self.abandon(row)
        except Exception as error:  # Then its lease has to run out first.
            log.warning("step %s could not be abandoned: %s", row.id, error)

    async def _ended(self, held: Held, started_at: float) -> CompleteNode | FailNode | None:
        """What a step comes to, whatever its effect does; None if it was withdrawn with nothing to answer."""
        try:
            return await self._answer(held, started_at)
        except asyncio.CancelledError:
            if held.withdrawn and held.ending is None:
                return None
            failed = held.ending or StepFailed("step_error", "the effect was cancelled from within")
        except (Exception, SystemExit) as defect:
            log.exception("executing a %s step failed", held.row.kind)
            failed = StepFailed("step_error", f"{type(defect).__name__}: {defect}")
        return self._failed(held.row, started_at, failed)

    async def _answer(self, held: Held, started_at: float) -> CompleteNode | FailNode:
        row = held.row
        call = StepCall(
            node_run_id=row.id,
            run_id=row.run_id,
            tenant_id=row.tenant_id,
            node_id=row.node_id,
            attempt=row.attempt,
            config=held.node.config,
            input=row.input or {},
            timeout_seconds=row.timeout_seconds,
            traceparent=held.traceparent,
            lease_token=row.lease_token,
        )
        perform = self.performers[row.kind]
        try:
            if row.timeout_seconds:
                async with asyncio.timeout(row.timeout_seconds):
                    result = await perform(call)
            else:
                result = await perform(call)
        except StepFailed as failed:
            return self._failed(row, started_at, failed)
        except TimeoutError:
            return self._failed(row, started_at, StepFailed("timeout", f"no answer in {row.timeout_seconds} s"))
        refusal = _refusal(result.output, result.text)
        if refusal is not None:
            return self._failed(row, started_at, refusal)
        return CompleteNode(
            **_names(row),
            output=result.output,
            output_text=result.text,
            started_at=started_at,
            ended_at=self._now(),
            worker=self.owner,
        )

    def failure(self, row: NodeRun, traceparent: str, correlation_id: str, failed: StepFailed) -> Result:
        """The answer of a step that was leased and cannot be executed, or whose own answer cannot be sent."""
        return _result(row, traceparent, correlation_id, self._failed(row, self._now(), failed))

    def _failed(self, row: NodeRun, started_at: float, failed: StepFailed) -> FailNode:
        kept = _refusal(failed.output, failed.text) is None
        code = printable(failed.code)[:CODE_CHARACTERS_MAX]
        return FailNode(
            **_names(row),
            error=Failure(code=code, message=printable(failed.message)[:MESSAGE_CHARACTERS_MAX]),
            retryable=failed.retryable,
            output=failed.output if kept else None,
            output_text=failed.text if kept else None,
            started_at=started_at,
            ended_at=self._now(),
            worker=self.owner,
        )

    def result(self, held: Held, command: CompleteNode | FailNode) -> Result:
        return _result(held.row, held.traceparent, held.correlation_id, command)


def _result(row: NodeRun, traceparent: str, correlation_id: str, command: CompleteNode | FailNode) -> Result:
    envelope = Envelope(
        id=derive(row.id, f"result:{row.lease_token}"),
        type=command.type,
        tenant_id=row.tenant_id,
        subject=row.run_id,
        correlation_id=correlation_id,
        causation_id=row.id,
        traceparent=traceparent,
    )
    return Result(row, command, envelope)


def _refusal(output: JsonObject | None, text: str | None) -> StepFailed | None:
    """Why an answer cannot be stored; None if it can."""
    try:
        size = len(orjson.dumps(output))
        storable(text or "")
    except (TypeError, ValueError) as error:
        return StepFailed("output_invalid", f"the output cannot be stored: {error}", retryable=False)
    if size > VALUE_BYTES_MAX or len(text or "") > VALUE_BYTES_MAX:
        return StepFailed("output_too_large", f"the output is over {VALUE_BYTES_MAX} bytes", retryable=False)
    return None


def _described(held: Held) -> Step:
    row = held.row
    return Step(
        row.kind,
        row.tenant_id,
        row.run_id,
        row.id,
        row.node_id,
        row.attempt,
        row.lease_token,
        held.traceparent,
        held.correlation_id,
    )


def _names(row: NodeRun) -> dict[str, Any]:
    return {"run_id": row.run_id, "node_run_id": row.id, "lease_token": row.lease_token}
