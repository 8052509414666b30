"""Calls that take a manual run's steps, and answer when what they set going has come to rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.responses import Response

from gateway.http.commands import (
    Sending,
    accepted,
    command_id_of,
    json_response,
    outcome_of,
    preference,
    result_of,
)
from gateway.http.ports import Candidate, Outcome
from gateway.http.problems import not_found
from gateway.http.routing import Asked, Body
from gateway.http.state import Gateway, new_id
from projections.runtime import NODE_RUNS, RUNS, NodeRun, Run
from projections.runtime_shown import shown_node_run, shown_run
from schemas.messages import Command, JsonObject, derive
from schemas.runtime import NODE_ENDED, RUN_ENDED, ExecuteNode, ExecuteRun, Worker

LOOK_SECONDS_MIN = 0.005
LOOK_SECONDS_MAX = 0.25
CANDIDATES_MAX = 20
RESTING = RUN_ENDED | {"waiting", "paused"}


class ExecuteNextBody(Body):
    worker_key: Worker = ""


class ExecuteRunBody(Body):
    worker_key: Worker = ""
    max_steps: Annotated[int, Field(ge=1, le=10_000)] = 100


class ExecuteNodeBody(Body):
    worker_key: Worker = ""


class WorkerBody(Body):
    """`lease_seconds` is taken as sent by workers of old; the executor of a step keeps its own lease alive."""

    any_tenant: ClassVar[bool] = True
    worker_key: Worker = ""
    lease_seconds: Annotated[int, Field(ge=1, le=86_400)] = 300


async def execute_next(gateway: Gateway, asked: Asked[ExecuteNextBody]) -> Response:
    """One step of a manual run. An auto run steps by itself: its next progress is waited for."""
    command = ExecuteRun(run_id=asked.target.id, max_steps=1, worker_key=asked.body.worker_key)
    return await _executed(gateway, asked, command, one=True)


async def execute_run(gateway: Gateway, asked: Asked[ExecuteRunBody]) -> Response:
    """Up to `max_steps` steps of a manual run; an auto run is waited for until it rests."""
    body = asked.body
    command = ExecuteRun(run_id=asked.target.id, max_steps=body.max_steps, worker_key=body.worker_key)
    return await _executed(gateway, asked, command, one=False)


async def execute_node(gateway: Gateway, asked: Asked[ExecuteNodeBody]) -> Response:
    target = asked.target
    command = ExecuteNode(run_id=target.parent, node_run_id=target.id, worker_key=asked.body.worker_key)
    tenant_id = asked.caller.tenant
    return await _progressed(gateway, asked, command, lambda result: _node_at_rest(gateway, tenant_id, target.id))


async def _executed(gateway: Gateway, asked: Asked[Any], command: ExecuteRun, *, one: bool) -> Response:
    tenant_id, run_id = asked.caller.tenant, command.run_id

    async def at_rest(result: JsonObject) -> JsonObject | None:
        run: Run | None = await gateway.reads.one(tenant_id, RUNS, run_id)
        if run is None:
            raise not_found("run")
        if run.status in RESTING or (one and run.mode == "auto" and run.seq > result["seq"]):
            return shown_run(run)
        if run.mode == "manual" and not await gateway.reads.step_in_flight(tenant_id, run_id):
            rested: Run | None = await gateway.reads.one(tenant_id, RUNS, run_id)
            return None if rested is None else shown_run(rested)
        return None

    return await _progressed(gateway, asked, command, at_rest)


async def _node_at_rest(gateway: Gateway, tenant_id: str, node_run_id: str) -> JsonObject | None:
    """The node run once nobody executes it nor may claim it."""
    node: NodeRun | None = await gateway.reads.one(tenant_id, NODE_RUNS, node_run_id)
    if node is None:
        raise not_found("node run")
    return None if node.ready and node.status not in NODE_ENDED else shown_node_run(node)


async def _progressed(
    gateway: Gateway,
    asked: Asked[Any],
    command: Command,
    at_rest: Callable[[JsonObject], Awaitable[JsonObject | None]],
) -> Response:
    """Send the command, then look until `at_rest` has something to show: 200; 202 when the wait is over."""
    wait = preference(asked.request, gateway.settings.outcome_wait_seconds)
    deadline = asyncio.get_running_loop().time() + wait.seconds
    command_id = command_id_of(asked.request, asked.caller.tenant, new_id())
    result = await result_of(gateway, asked.call, asked.sending(command, command_id), wait.seconds)
    shown = None if result is None else await _look(lambda: at_rest(result), deadline)
    return accepted(command_id, wait.applied) if shown is None else json_response(shown, 200, wait.headers)


async def _look(at_rest: Callable[[], Awaitable[JsonObject | None]], deadline: float) -> JsonObject | None:
    pause = LOOK_SECONDS_MIN
    while True:
        shown = await at_rest()
        left = deadline - asyncio.get_running_loop().time()
        if shown is not None or left <= 0:
            return shown
        await asyncio.sleep(min(pause, left))
        pause = min(pause * 1.5, LOOK_SECONDS_MAX)


async def worker_execute_next(gateway: Gateway, asked: Asked[WorkerBody]) -> Response:
    """The oldest node run of a manual run that waits, executed; null if none does.

    Several callers take different ones. The n-th command of a request has an id of its own, the same in a
    retry with the same Idempotency-Key: so a retry finds what the first try did, whatever waits by then.
    """
    wait = preference(asked.request, gateway.settings.outcome_wait_seconds)
    deadline = asyncio.get_running_loop().time() + wait.seconds
    command_id = command_id_of(asked.request, asked.caller.tenant, new_id())
    tries = 0
    if "idempotency-key" in asked.request.headers:
        tries, done = await _done_before(gateway, asked, command_id)
        if done is not None:
            return json_response(done.body, 200, wait.headers)
    for candidate in await gateway.reads.candidates(asked.caller.tenant_id, CANDIDATES_MAX):
        if candidate.node_run_id in gateway.claiming:
            continue
        gateway.claiming.add(candidate.node_run_id)
        try:
            it = _claim(asked, candidate, _nth(command_id, tries))
            tries += 1
            outcome = await outcome_of(gateway, asked.call, it, wait.seconds)
            if outcome is None or outcome.status == "succeeded":
                shown = await _claimed(gateway, candidate, deadline) if outcome else None
                if shown is None:
                    return accepted(it.command_id, wait.applied)
                return json_response(shown, 200, wait.headers)
        finally:
            gateway.claiming.discard(candidate.node_run_id)
    return json_response(None, 200, wait.headers)


async def _claimed(gateway: Gateway, candidate: Candidate, deadline: float) -> JsonObject | None:
    return await _look(lambda: _node_at_rest(gateway, candidate.tenant_id, candidate.node_run_id), deadline)


def _nth(command_id: str, tries: int) -> str:
    return derive(command_id, str(tries))


def _claim(asked: Asked[WorkerBody], candidate: Candidate, command_id: str) -> Sending:
    command = ExecuteNode(run_id=candidate.run_id, node_run_id=candidate.node_run_id, worker_key=asked.body.worker_key)
    it = asked.sending(command, command_id)
    return Sending(it.command, it.command_id, candidate.tenant_id, it.actor, it.fingerprint)


async def _done_before(gateway: Gateway, asked: Asked[WorkerBody], command_id: str) -> tuple[int, Outcome | None]:
    """How many commands an earlier try of this request has settled, and the one that succeeded."""
    for tries in range(CANDIDATES_MAX):
        id = _nth(command_id, tries)
        tenant_id = asked.caller.tenant
        if asked.caller.tenant_id is None:
            tenant_id = await gateway.reads.tenant_of("command_outcome", id) or tenant_id
        outcome = await gateway.reads.outcome(tenant_id, id)
        if outcome is None or outcome.status == "succeeded":
            return tries, outcome
    return CANDIDATES_MAX, None
