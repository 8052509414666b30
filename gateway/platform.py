"""Routes of the gateway itself: readiness, outcomes of commands, audits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.audit_table import AUDITS
from gateway.http.call import Call
from gateway.http.commands import json_response
from gateway.http.identity import Caller
from gateway.http.lists import ListOf
from gateway.http.ports import AuditRecord
from gateway.http.problems import Problem, invalid_field
from gateway.http.routing import PUBLIC, Ask, Listing, Route, path_id
from gateway.http.state import Gateway
from infra.db import instant
from schemas.messages import JsonObject

CHECK_SECONDS_MAX = 2.0
STATS_SECONDS_DEFAULT = 24 * 3600
STATS_SECONDS_MAX = 31 * 24 * 3600


async def _state_of(check: Awaitable[None]) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            await check
    except Exception:  # Whatever the reason: it does not answer.
        return "down"
    return "up"


async def _services(gateway: Gateway) -> JsonObject:
    kafka, postgres = await asyncio.gather(_state_of(gateway.kafka_answers()), _state_of(gateway.reads.ping()))
    return {"kafka": kafka, "postgres": postgres}


async def ready(gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
    """200 once requests can be served, else 503 with what is missing."""
    services = await _services(gateway)
    if "down" in services.values():
        down = ", ".join(name for name, state in services.items() if state == "down")
        raise Problem(
            503, "not_ready", f"no answer from {down}", headers={"retry-after": "1"}, extra={"services": services}
        )
    return json_response({"status": "ready", "services": services})


async def health(gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
    """200 as long as the gateway itself answers; `status` says whether all it needs does."""
    services = await _services(gateway)
    status = "degraded" if "down" in services.values() else "ok"
    return json_response({"status": status, "services": {"gateway": "up", **services}})


async def command(gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
    """What became of a command; one that is not known (yet) is pending."""
    id = path_id(request, "command")
    tenant_id = caller.tenant
    if caller.tenant_id is None:
        tenant_id = await gateway.reads.tenant_of("command_outcome", id) or tenant_id
    outcome = await gateway.reads.outcome(tenant_id, id)
    if outcome is None:
        return json_response({"command_id": id, "status": "pending"}, 200, {"retry-after": "1"})
    name = "result" if outcome.status == "succeeded" else "error"
    return json_response({"command_id": id, "status": outcome.status, name: outcome.body})


async def audit_stats(gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
    """Requests of the last `seconds` (a day if left out), counted and timed."""
    text = request.query_params.get("seconds", str(STATS_SECONDS_DEFAULT))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 0 < int(text) <= STATS_SECONDS_MAX:
        raise invalid_field("/query/seconds", "out_of_range", f"must be from 1 to {STATS_SECONDS_MAX}")
    await gateway.audit.flush()
    stats = await gateway.reads.audit_stats(caller.tenant, time.time() - int(text))
    return json_response({"tenant_id": caller.tenant, "seconds": int(text), **stats})


async def _flush(gateway: Gateway) -> None:
    """So that a caller finds the requests it has just made."""
    await gateway.audit.flush()


def shown_audit(record: AuditRecord) -> JsonObject:
    shown: dict[str, Any] = asdict(record)
    return shown | {"created_at": instant(record.created_at)}


AUDIT_LIST = ListOf(
    AUDITS,
    shown_audit,
    ("method", "route", "status_code", "user_id", "api_key_id", "request_id"),
)

ROUTES: tuple[Route, ...] = (
    Ask("/ready", ready, PUBLIC, "Ready"),
    Ask("/gateway/services/health", health, PUBLIC, "Health"),
    Ask("/gateway/commands/{command_id}", command, "gateway:commands:read", "CommandOutcome"),
    Listing("/gateway/audits", AUDIT_LIST, "gateway:audits:read", "Audit", prepare=_flush),
    Ask("/gateway/audits/stats", audit_stats, "gateway:audits:read", "AuditStats"),
)
