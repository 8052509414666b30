"""A command on its way out and its outcome on its way back, as HTTP says both."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import orjson
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from bus.producer import BusUnavailable
from gateway.http.call import Call
from gateway.http.ports import DatabaseUnavailable, Outcome
from gateway.http.problems import Problem, problem_of, unavailable
from projections.views import Uuid
from schemas.envelope import Envelope
from schemas.examples import Example
from schemas.messages import Command, natural_id
from schemas.problems import FieldError
from schemas.topics import COMMANDS, partition_of

if TYPE_CHECKING:
    from gateway.http.state import Gateway

WAIT_SECONDS_MAX = 30.0
SEND_SECONDS_MAX = 12.0
"""Beyond the producer's own time-out, which tells more."""
IDEMPOTENCY_KEY_CHARACTERS_MAX = 255
_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?$")


@dataclass(frozen=True, slots=True)
class Preference:
    """How long the sender is willing to wait, and what to confirm as `Preference-Applied` (RFC 7240)."""

    seconds: float
    applied: str | None

    @property
    def headers(self) -> dict[str, str]:
        return {"preference-applied": self.applied} if self.applied else {}


def preference(request: Request, default_seconds: float, seconds_max: float = WAIT_SECONDS_MAX) -> Preference:
    """From `Prefer: wait=N` or `respond-async`; preferences that are not understood are ignored."""
    seconds, applied = default_seconds, None
    for header in request.headers.getlist("prefer"):
        for preferred in header.lower().split(","):
            if preferred.strip() == "respond-async":
                return Preference(0.0, "respond-async")
            if found := _WAIT.match(preferred.strip()):
                seconds = min(float(found[1]), seconds_max)
                applied = f"wait={seconds:g}"
    return Preference(seconds, applied)


def command_id_of(request: Request, tenant_id: str, fresh: str) -> str:
    """The command's id: derived from the Idempotency-Key if there is one. Raises Problem 400 or 422."""
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return fresh
    if len(keys) > 1:
        raise Problem(400, "repeated_header", "a request has one Idempotency-Key at most")
    (key,) = keys
    if not 0 < len(key) <= IDEMPOTENCY_KEY_CHARACTERS_MAX or not key.isprintable():
        pointer = "/header/idempotency-key"
        detail = f"must have 1 to {IDEMPOTENCY_KEY_CHARACTERS_MAX} printable characters"
        error: FieldError = {"pointer": pointer, "code": "invalid_idempotency_key", "detail": detail}
        raise Problem(422, "invalid_idempotency_key", detail, errors=(error,))
    return natural_id(tenant_id, "command", key)


def fingerprint(call: Call, body: bytes) -> str:
    """What an Idempotency-Key stands for."""
    return hashlib.sha256(b"\n".join((call.method.encode(), call.path.encode(), body))).hexdigest()


class CommandView(TypedDict):
    """A command and what became of it: `result` once it has succeeded, `error` once it was refused or failed."""

    command_id: Uuid
    status: Literal["pending", "succeeded", "rejected", "failed"]
    result: NotRequired[Annotated[Any, Example(None)]]
    error: NotRequired[Annotated[Any, Example(None)]]


@dataclass(frozen=True, slots=True)
class OutgoingCommand:
    """One command with all that its envelope says."""

    command: Command
    command_id: str
    tenant_id: str
    actor: str
    fingerprint: str


async def outcome_of(gateway: Gateway, call: Call, outgoing: OutgoingCommand, seconds: float) -> Outcome | None:
    """Send the command and wait for its outcome; None if it is not there in time.

    Raises Problem 422 or 429 before anything is sent, 503 with the command's id once that may have happened.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    future = gateway.in_flight.begin(outgoing.tenant_id, outgoing.command_id, outgoing.fingerprint)
    try:
        await _send(gateway, call, outgoing)
        if seconds <= 0:
            return None
        async with asyncio.timeout_at(deadline):
            return await future
    except TimeoutError:
        pass
    finally:
        gateway.in_flight.stop_waiting(outgoing.command_id, future)
    return await _stored(gateway, outgoing)


async def result_of(gateway: Gateway, call: Call, outgoing: OutgoingCommand, seconds: float) -> Any | None:
    """What a command that succeeded answers; None if its outcome is not there in time.

    Raises the Problem that a refusal is, and those of `outcome_of`.
    """
    outcome = await outcome_of(gateway, call, outgoing, seconds)
    if outcome is not None and outcome.status != "succeeded":
        raise refused(outcome)
    return outcome and outcome.body


async def _stored(gateway: Gateway, outgoing: OutgoingCommand) -> Outcome | None:
    """The outcome as Postgres has it: its reply may have been lost."""
    try:
        outcome = await gateway.reads.outcome(outgoing.tenant_id, outgoing.command_id)
    except DatabaseUnavailable:
        raise unavailable("postgres", outgoing.command_id) from None
    if outcome is not None:
        gateway.in_flight.ended(outgoing.command_id)
    return outcome


async def _send(gateway: Gateway, call: Call, outgoing: OutgoingCommand) -> None:
    key = outgoing.command.aggregate_id(outgoing.tenant_id, outgoing.command_id)
    envelope = Envelope(
        id=outgoing.command_id,
        type=outgoing.command.type,
        tenant_id=outgoing.tenant_id,
        subject=key,
        time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        correlation_id=call.request_id,
        actor=outgoing.actor,
        traceparent=call.traceparent,
        fingerprint=outgoing.fingerprint,
        reply_partition=gateway.settings.gateway_instance,
    )
    partition = partition_of(key, gateway.settings.commands_partitions)
    try:
        async with asyncio.timeout(SEND_SECONDS_MAX):
            await gateway.bus.send(COMMANDS, partition, key, envelope.headers(), outgoing.command.encode())
    except (BusUnavailable, TimeoutError):
        raise unavailable("kafka", outgoing.command_id) from None


def accepted(command_id: str, applied: str | None, extra: Mapping[str, Any] | None = None) -> Response:
    """202: taken, not known yet what becomes of outgoing."""
    headers = {"location": f"/gateway/commands/{command_id}", "retry-after": "1"}
    if applied:
        headers["preference-applied"] = applied
    pending: CommandView = {"command_id": command_id, "status": "pending"}
    return json_response({**(extra or {}), **pending}, 202, headers)


def refused(outcome: Outcome) -> Problem:
    """The problem that a rejected or failed command's outcome is."""
    body = outcome.body if isinstance(outcome.body, dict) else {}
    status = 500 if outcome.status == "failed" else 409
    return problem_of({"status": status, "code": outcome.status} | body, outcome.command_id)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")
