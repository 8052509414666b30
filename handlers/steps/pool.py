"""Executing steps: leases on a bounded number, heartbeats, time-outs, results as commands."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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


@dataclass(slots=True)
class Held:
    """A step this process executes. `until`: by our monotonic clock, when its lease runs out.

    `traceparent`: that of its run, then of its own span.
    """

    row: NodeRun
    node: Node
    traceparent: str
    correlation_id: str
    until: float
    since: float
    task: asyncio.Task[None] | None = None
    cancelled: bool = False


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

    `capacity` bounds each kind of step. `deliver(result)` is called once per step, when it has an answer and its
    lease still holds by our own clock; a step whose lease has run out is dropped: somebody else repeats it.
    """

    def __init__(
        self,
        performers: Performers,
        capacity: dict[str, int],
        *,
        owner: str,
        deliver: Callable[[Result], Awaitable[None]],
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
        self._now = now
        self._room = {kind: count for kind, count in capacity.items() if kind in performers}
        self._closed = False
        self._leased_at: dict[str, float] = {}
        self.held: dict[str, Held] = {}

    def room(self, kind: str) -> int:
        return 0 if self._closed else self._room.get(kind, 0)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in self.performers if self._capacity.get(kind)]

    def lease(self, row: NodeRun, at: float, *, new: bool) -> NodeRun | None:
        """The row leased to us from database time `at` on, or None if there is no room for its kind.

        `new`: it is inserted as leased, and its lane will find it for a while without a list.
        """
        if self.room(row.kind) <= 0:
            return None
        self._room[row.kind] -= 1
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

    def take(self, kind: str) -> None:
        """Room for a step that was claimed in Postgres."""
        self._room[kind] -= 1

    def give_back(self, row: NodeRun) -> None:
        """A lease that was not committed."""
        self._room[row.kind] += 1
        self._leased_at.pop(row.id, None)

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
        return sorted(
            (held for held in self.held.values() if now - held.since >= older_than_seconds), key=lambda h: h.row.id
        )

    def renewed(self, held: Held, started: float) -> None:
        held.until = started + self.lease_seconds - 0.5

    def withdraw(self, held: Held, *, cancelled: bool) -> None:
        """Stop a step: its run is being cancelled, which it then answers; or its lease is somebody else's."""
        held.cancelled = cancelled
        if held.task is not None:
            held.task.cancel()

    async def stop(self, seconds: float) -> None:
        """Let steps under way finish for so long; the others are repeated elsewhere when their leases run out."""
        self._closed = True
        tasks = [held.task for held in self.held.values() if held.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()

    async def _execute(self, held: Held) -> None:
        row = held.row
        started_at = self._now()
        span = self._telemetry.step(_described(held))
        held.traceparent = span.traceparent
        error = "withdrawn"
        try:
            if time.monotonic() >= held.until:  # We stood still since: somebody else may be executing it.
                log.warning("the lease of step %s ran out before its start", row.id)
                return
            command = await self._answer(held, started_at)
            error = command.error.code if isinstance(command, FailNode) else ""
            if time.monotonic() < held.until:
                await self.deliver(self.result(held, command))
            else:
                log.warning("the lease of step %s ran out before its answer", row.id)
        except asyncio.CancelledError:
            log.info("step %s is withdrawn", row.id)
            if held.cancelled:
                stopped = StepFailed("cancelled", "the run is being cancelled", retryable=False)
                await self.deliver(self.result(held, self._failed(_names(row), started_at, stopped)))
        except Exception:
            log.exception("the answer of step %s could not be delivered", row.id)
        finally:
            span.end(error)
            if self.held.get(row.id) is held:
                del self.held[row.id]
            self._room[row.kind] += 1

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
        names = _names(row)
        perform = self.performers[row.kind]
        try:
            if row.timeout_seconds:
                async with asyncio.timeout(row.timeout_seconds):
                    result = await perform(call)
            else:
                result = await perform(call)
        except StepFailed as failed:
            return self._failed(names, started_at, failed)
        except TimeoutError:
            return self._failed(names, started_at, StepFailed("timeout", f"no answer in {row.timeout_seconds} s"))
        except Exception as defect:
            log.exception("executing a %s step failed", row.kind)
            return self._failed(names, started_at, StepFailed("step_error", f"{type(defect).__name__}: {defect}"))
        refusal = _refusal(result.output, result.text)
        if refusal is not None:
            return self._failed(names, started_at, refusal)
        return CompleteNode(
            **names,
            output=result.output,
            output_text=result.text,
            started_at=started_at,
            ended_at=self._now(),
            worker=self.owner,
        )

    def _failed(self, names: dict[str, Any], started_at: float, failed: StepFailed) -> FailNode:
        kept = _refusal(failed.output, failed.text) is None
        return FailNode(
            **names,
            error=Failure(code=failed.code, message=printable(failed.message)[:MESSAGE_CHARACTERS_MAX]),
            retryable=failed.retryable,
            output=failed.output if kept else None,
            output_text=failed.text if kept else None,
            started_at=started_at,
            ended_at=self._now(),
            worker=self.owner,
        )

    def result(self, held: Held, command: CompleteNode | FailNode) -> Result:
        row = held.row
        envelope = Envelope(
            id=derive(row.id, f"result:{row.lease_token}"),
            type=command.type,
            tenant_id=row.tenant_id,
            subject=row.run_id,
            correlation_id=held.correlation_id,
            causation_id=row.id,
            traceparent=held.traceparent,
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
