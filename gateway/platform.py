"""Routes of the gateway itself: readiness, outcomes of commands, audits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Annotated, Literal

from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict

from gateway.audit_table import AUDIT
from gateway.http.call import Call
from gateway.http.commands import CommandView, json_response
from gateway.http.identity import Caller
from gateway.http.lists import ListOf
from gateway.http.problems import Problem, invalid_field
from gateway.http.routing import PUBLIC, Listing, Query, Route
from gateway.http.state import Gateway
from gateway.http.validated import path_id
from projections.views import Tenant
from schemas.examples import Example

CHECK_SECONDS_MAX = 2.0
STATS_SECONDS_DEFAULT = 24 * 3600
STATS_SECONDS_MAX = 31 * 24 * 3600


ServiceState = Literal["up", "down"]


class Services(TypedDict):
    """What the gateway needs."""

    kafka: ServiceState
    postgres: ServiceState


class ReadinessView(TypedDict):
    status: Literal["ready"]
    services: Services


class GatewayServices(Services):
    gateway: Literal["up"]


class HealthView(TypedDict):
    status: Literal["ok", "degraded"]
    services: GatewayServices


class RouteStats(TypedDict):
    """Requests of one route; `failed` were answered with 500 or above."""

    method: Annotated[str, Example("GET")]
    route: Annotated[str, Example("/gateway/runtime/runs")]
    requests: Annotated[int, Example(12)]
    failed: Annotated[int, Example(0)]
    mean_duration_ms: Annotated[float, Example(2.5)]
    p95_duration_ms: Annotated[float, Example(6.0)]


class AuditStatsView(TypedDict):
    """The requests of a tenant in the last `seconds`; `routes` are the busiest ones."""

    tenant_id: Tenant
    seconds: Annotated[int, Example(86_400)]
    requests: Annotated[int, Example(12)]
    by_status: Annotated[dict[str, int], Example({"200": 11, "404": 1})]
    mean_duration_ms: Annotated[float | None, Example(2.5)]
    p95_duration_ms: Annotated[float | None, Example(6.0)]
    routes: list[RouteStats]


async def _state_of(check: Awaitable[None]) -> ServiceState:
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            await check
    except Exception:  # Whatever the reason: it does not answer.
        return "down"
    return "up"


async def _services(gateway: Gateway) -> Services:
    kafka, postgres = await asyncio.gather(_state_of(gateway.kafka_answers()), _state_of(gateway.reads.ping()))
    return {"kafka": kafka, "postgres": postgres}


async def get_readiness(gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
    """200 once requests can be served, else 503 with what is missing."""
    services = await _services(gateway)
    if "down" in services.values():
        down = ", ".join(name for name, state in services.items() if state == "down")
        raise Problem(
            503, "not_ready", f"no answer from {down}", headers={"retry-after": "1"}, extra={"services": services}
        )
    ready: ReadinessView = {"status": "ready", "services": services}
    return json_response(ready)


async def get_health(gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
    """200 as long as the gateway itself answers; `status` says whether all it needs does."""
    services = await _services(gateway)
    health: HealthView = {
        "status": "degraded" if "down" in services.values() else "ok",
        "services": {"gateway": "up", **services},
    }
    return json_response(health)


async def get_command(gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
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


async def get_audit_stats(gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
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


AUDIT_LIST = ListOf(AUDIT, ("request_id",), ("method", "route", "status_code", "user_id", "api_key_id"))

ROUTES: tuple[Route, ...] = (
    Query("/ready", get_readiness, PUBLIC, ReadinessView),
    Query("/gateway/services/health", get_health, PUBLIC, HealthView),
    Query("/gateway/commands/{command_id}", get_command, "gateway:commands:read", CommandView),
    Listing("/gateway/audits", AUDIT_LIST, "gateway:audits:read", prepare=_flush),
    Query("/gateway/audits/stats", get_audit_stats, "gateway:audits:read", AuditStatsView),
)
