"""Starting a run and waiting for its end in one request: `?until=ended`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.http import commands
from gateway.http.call import Call
from gateway.http.commands import CommandView, accepted, command_id_of, json_response, preference, result_of
from gateway.http.identity import Caller
from gateway.http.problems import invalid_field
from gateway.http.routing import Write
from gateway.http.state import Gateway, new_id
from gateway.http.validated import ValidatedRequest, existing, validated
from schemas.messages import JsonObject
from schemas.runtime import RUN_ENDED, CreateRun

UNTIL = "until"
ENDED = "ended"
WAIT_SECONDS_MAX = 60.0
"""For the end. A start whose outcome is not known after commands.WAIT_SECONDS_MAX is answered as any other command."""
ENDINGS = frozenset(f"runtime.run_{status}" for status in RUN_ENDED)
"""Types of the last event of a run."""


@dataclass(frozen=True, slots=True)
class StartRun(Write[CreateRun]):
    """Starts a run; with `until=ended` it is shown as it has ended, if it does in time, else where it goes on (202)."""

    async def __call__(self, gateway: Gateway, request: Request, call: Call, caller: Caller) -> Response:
        if not waits_for_end(request):
            return await Write.__call__(self, gateway, request, call, caller)
        valid = await validated(gateway, request, call, caller, self.takes, self.named)
        return await self._ended(gateway, valid)

    async def _ended(self, gateway: Gateway, valid: ValidatedRequest[CreateRun]) -> Response:
        caller, view = valid.caller, self.view
        command_id = command_id_of(valid.request, caller.tenant, new_id())
        run_id = valid.body.aggregate_id(caller.tenant, command_id)
        wait = preference(valid.request, gateway.settings.outcome_wait_seconds, WAIT_SECONDS_MAX)
        deadline = asyncio.get_running_loop().time() + wait.seconds
        outcome_seconds = min(wait.seconds, commands.WAIT_SECONDS_MAX)
        shown: Any = None

        async def ended() -> Any | None:
            nonlocal shown
            run = await existing(gateway, caller, view, run_id)
            shown = view.of(run)
            return shown if run.status in RUN_ENDED else None

        with gateway.tail.watch(run_id, ENDINGS) as watch:
            shown = await result_of(gateway, valid.call, valid.outgoing(valid.body, command_id), outcome_seconds)
            if shown is None:
                return accepted(command_id, wait.applied, {"id": run_id})
            found = await watch.until(ended, deadline)
        if found is not None:
            return json_response(found, self.status, wait.headers)
        done: CommandView = {"command_id": command_id, "status": "succeeded", "result": shown}
        headers = {"location": f"{self.path}/{run_id}", "retry-after": "1", **wait.headers}
        return json_response({"id": run_id, **done}, 202, headers)


def waits_for_end(request: Request) -> bool:
    """Raises Problem 422 for anything else to wait for."""
    asked = request.query_params.getlist(UNTIL)
    if any(each != ENDED for each in asked):
        raise invalid_field(f"/query/{UNTIL}", "unknown_value", f"must be {ENDED}")
    return bool(asked)


def openapi_parameter() -> JsonObject:
    detail = f"Answer when the run has ended; `Prefer: wait=N` may then be {WAIT_SECONDS_MAX:g} s"
    return {"name": UNTIL, "in": "query", "description": detail, "schema": {"type": "string", "enum": [ENDED]}}
