"""Calls that take a manual run's steps, and answer when what they set going has come to rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Field
from starlette.responses import Response

from gateway.http.commands import (
    OutgoingCommand,
    accepted,
    command_id_of,
    json_response,
    outcome_of,
    preference,
    result_of,
)
from gateway.http.ports import Candidate, Outcome
from gateway.http.problems import not_found
from gateway.http.request_body import Body
from gateway.http.state import Gateway, new_id
from gateway.http.validated import ValidatedRequest
from projections.runtime import NODE_RUNS, RUNS, NodeRun, Run
from projections.runtime_views import node_run_view, run_view
from schemas.examples import Example
from schemas.messages import Command, derive
from schemas.runtime import NODE_ENDED, RUN_ENDED, ExecuteNode, ExecuteRun, Worker

CANDIDATES_MAX = 20
RESTING = RUN_ENDED | {"waiting"}


class ExecuteNext(Body):
    """`lease_seconds` is taken as sent by workers of old; the executor of a step keeps its own lease alive."""

    any_tenant: ClassVar[bool] = True
    worker_key: Worker = ""
    lease_seconds: Annotated[int, Field(ge=1, le=86_400), Example(300)] = 300


C = TypeVar("C", bound=Command)
Shown = Mapping[str, Any]


async def execute_run_next(gateway: Gateway, valid: ValidatedRequest[ExecuteRun]) -> Response:
    """One step of a manual run. An auto run steps by itself: its next progress is waited for."""
    return await _executed(gateway, valid, one=True)


async def execute_run(gateway: Gateway, valid: ValidatedRequest[ExecuteRun]) -> Response:
    """Up to `max_steps` steps of a manual run; an auto run is waited for until it rests."""
    return await _executed(gateway, valid, one=False)


async def execute_node_run(gateway: Gateway, valid: ValidatedRequest[ExecuteNode]) -> Response:
    """One queued node run of a manual run; it is waited for until it rests."""
    tenant_id, id = valid.caller.tenant, valid.body.node_run_id
    return await _progressed(gateway, valid, valid.body.run_id, lambda result: _node_at_rest(gateway, tenant_id, id))


async def _executed(gateway: Gateway, valid: ValidatedRequest[ExecuteRun], *, one: bool) -> Response:
    tenant_id, run_id = valid.caller.tenant, valid.body.run_id

    async def at_rest(result: Shown) -> Shown | None:
        run: Run | None = await gateway.reads.one(tenant_id, RUNS, run_id)
        if run is None:
            raise not_found("run")
        if run.is_held or run.status in RESTING or (one and run.mode == "auto" and run.seq > result["seq"]):
            return run_view(run)
        if run.mode == "manual" and not await gateway.reads.step_in_flight(tenant_id, run_id):
            rested: Run | None = await gateway.reads.one(tenant_id, RUNS, run_id)
            return None if rested is None else run_view(rested)
        return None

    return await _progressed(gateway, valid, run_id, at_rest)


async def _node_at_rest(gateway: Gateway, tenant_id: str, node_run_id: str) -> Shown | None:
    """The node run once nobody executes it nor may claim it."""
    node: NodeRun | None = await gateway.reads.one(tenant_id, NODE_RUNS, node_run_id)
    if node is None:
        raise not_found("node run")
    return None if node.ready and node.status not in NODE_ENDED else node_run_view(node)


async def _progressed(
    gateway: Gateway,
    valid: ValidatedRequest[C],
    run_id: str,
    at_rest: Callable[[Shown], Awaitable[Shown | None]],
) -> Response:
    """Send the command, then wait until `at_rest` has something to show: 200; 202 when the wait is over."""
    wait = preference(valid.request, gateway.settings.outcome_wait_seconds)
    deadline = asyncio.get_running_loop().time() + wait.seconds
    command_id = command_id_of(valid.request, valid.caller.tenant, new_id())
    with gateway.tail.watch(run_id) as watch:
        result = await result_of(gateway, valid.call, valid.outgoing(valid.body, command_id), wait.seconds)
        shown = None if result is None else await watch.until(lambda: at_rest(result), deadline)
    return accepted(command_id, wait.applied) if shown is None else json_response(shown, 200, wait.headers)


async def execute_next(gateway: Gateway, valid: ValidatedRequest[ExecuteNext]) -> Response:
    """The oldest node run of a manual run that waits, executed; null if none does.

    Several callers take different ones. The n-th command of a request has an id of its own, the same in a
    retry with the same Idempotency-Key: so a retry finds what the first try did, whatever waits by then.
    """
    wait = preference(valid.request, gateway.settings.outcome_wait_seconds)
    deadline = asyncio.get_running_loop().time() + wait.seconds
    command_id = command_id_of(valid.request, valid.caller.tenant, new_id())
    tries = 0
    if "idempotency-key" in valid.request.headers:
        tries, done = await _done_before(gateway, valid, command_id)
        if done is not None:
            return json_response(done.body, 200, wait.headers)
    for candidate in await gateway.reads.candidates(valid.caller.tenant_id, CANDIDATES_MAX):
        if candidate.node_run_id in gateway.claiming:
            continue
        gateway.claiming.add(candidate.node_run_id)
        try:
            outgoing = _claim(valid, candidate, _nth(command_id, tries))
            tries += 1
            with gateway.tail.watch(candidate.run_id) as watch:
                outcome = await outcome_of(gateway, valid.call, outgoing, wait.seconds)
                if outcome is None or outcome.status == "succeeded":
                    shown = await watch.until(partial(_claimed, gateway, candidate), deadline) if outcome else None
                    if shown is None:
                        return accepted(outgoing.command_id, wait.applied)
                    return json_response(shown, 200, wait.headers)
        finally:
            gateway.claiming.discard(candidate.node_run_id)
    return json_response(None, 200, wait.headers)


async def _claimed(gateway: Gateway, candidate: Candidate) -> Shown | None:
    return await _node_at_rest(gateway, candidate.tenant_id, candidate.node_run_id)


def _nth(command_id: str, tries: int) -> str:
    return derive(command_id, str(tries))


def _claim(valid: ValidatedRequest[ExecuteNext], candidate: Candidate, command_id: str) -> OutgoingCommand:
    command = ExecuteNode(run_id=candidate.run_id, node_run_id=candidate.node_run_id, worker_key=valid.body.worker_key)
    return replace(valid.outgoing(command, command_id), tenant_id=candidate.tenant_id)


async def _done_before(
    gateway: Gateway, valid: ValidatedRequest[ExecuteNext], command_id: str
) -> tuple[int, Outcome | None]:
    """How many commands an earlier try of this request has settled, and the one that succeeded."""
    for tries in range(CANDIDATES_MAX):
        id = _nth(command_id, tries)
        tenant_id = valid.caller.tenant
        if valid.caller.tenant_id is None:
            tenant_id = await gateway.reads.tenant_of("command_outcome", id) or tenant_id
        outcome = await gateway.reads.outcome(tenant_id, id)
        if outcome is None or outcome.status == "succeeded":
            return tries, outcome
    return CANDIDATES_MAX, None
